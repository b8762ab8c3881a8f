"""Binds Canarium to Ray: deployments, the control actor, and the process that starts them on one machine.

Nothing imports this module. `canarium up` runs it as a process of its own (Ray reads its environment
when it is imported, so that must be complete before); KubeRay finds `build_app` and `build_variant` by name.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import signal
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import ray
from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.schema import ApplicationStatus
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import monitoring
from serving.artifacts import started
from serving.config import Config, Started, load_config
from serving.contract import VariantEntry
from serving.control.actor import ControlActor, ControlSettings, VariantFacts
from serving.errors import CanariumError, StartError
from serving.gateway.replica import CONTROL_NAME, NAMESPACE, Gateway, GatewaySettings, VariantReplica
from serving.loading import Loader
from serving.paths import Paths
from serving.registry.store import Registry
from serving.serve_env import NOTE, REQUIRED, did_not_start, missing

GATEWAY_APP = "canarium"
#: Serve's own admission stays out of the way: the batcher's bounded queue is the one that decides.
SERVE_ONGOING = 100_000
#: Looks (one a second) without a live head node after which the instance gives up.
LOST_AFTER = 5
#: How the line of a traceback begins that names the error.
ERROR_LINE = re.compile(r"([\w.]+\.)?\w*(Error|Exception|Refused|Failure)\b.*: ")
#: How long the end may take: gateways finish what they have, then Serve goes, then the control plane; seconds.
DRAIN_S, SERVE_END_S, CONTROL_END_S = 7.0, 12.0, 4.0
#: How long a control actor that is replaced may take to go, seconds.
REPLACE_S = 20.0
#: How long the kubelet may take to bring a new configuration to a pod, seconds.
REVISION_S = 300.0
#: What the head node has, whichever it is by now.
HEAD = "node:__internal_head__"


# ---------------------------------------------------------------- what is deployed


def variant_app_name(model: str, variant: str) -> str:
    """Name of the Serve application of an isolated variant."""
    return f"canarium-{model}-{variant}"


def gateway_deployment(settings: GatewaySettings) -> Any:
    """The application of the gateways. It has no route: they listen on sockets of their own."""
    config = settings.parsed()
    deployment: Any = serve.deployment(
        Gateway,
        name="Gateway",
        num_replicas=config.server.gateways,
        max_ongoing_requests=SERVE_ONGOING,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=5,
        graceful_shutdown_wait_loop_s=0.2,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    return deployment.bind(settings)


def variant_deployment(settings: GatewaySettings, model: str, entry: VariantEntry) -> Any:
    """The application of one isolated variant. It has no route: only gateways talk to it."""
    deployment: Any = serve.deployment(
        VariantReplica,
        name=entry.name,
        num_replicas=entry.replicas,
        max_ongoing_requests=SERVE_ONGOING,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=1,
        health_check_timeout_s=5,
        graceful_shutdown_timeout_s=2,
        graceful_shutdown_wait_loop_s=0.2,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    return deployment.bind(settings, model, entry)


def tables(config: Config, registry: Registry) -> dict[str, dict[str, VariantEntry]]:
    """The configured variants of every model as gateways know them. Raises `RegistryError`."""
    entries: dict[str, dict[str, VariantEntry]] = {}
    for model, settings in config.models.items():
        entries[model] = {}
        for name, variant in settings.variants.items():
            manifest = registry.resolve(variant.artifact)
            entries[model][name] = VariantEntry(
                name=name,
                version=manifest.version,
                artifact=manifest.ref,
                placement=variant.placement,
                runtime=variant.runtime,
                max_batch=variant.max_batch,
                replicas=variant.replicas,
                app=variant_app_name(model, name) if variant.placement == "isolated" else "",
            )
    return entries


# ---------------------------------------------------------------- the control plane


def start_control(settings: ControlSettings) -> list[str]:
    """Start (or find) the detached control actor on the head node and wait until it answers.

    One that runs with other settings is replaced: its state is in the store, and gateways keep serving meanwhile.

    Returns:
        Lines that say where the configuration file and the stored state differ; the store wins.

    Raises:
        StartError: the actor did not start; carries its own words.
    """
    replaced = _remove_unlike(settings)
    _require_head()
    remote: Any = ray.remote(ControlActor)
    actor = remote.options(**control_options()).remote(settings)
    deadline = time.monotonic() + (REPLACE_S if replaced else 0)
    while True:
        try:
            differences: list[str] = ray.get(actor.ready.remote(), timeout=60)["differences"]
            return differences
        except ray.exceptions.RayError as error:
            if time.monotonic() < deadline:  # a killed one may hold the port for a moment
                time.sleep(0.5)
                continue
            raise StartError(f"the control plane did not start: {_last_words(str(error))}") from None


def control_options() -> dict[str, Any]:
    """How Ray keeps the control actor: on the head by its resource, for the node id of a replaced head is another."""
    return {
        "name": CONTROL_NAME,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "max_task_retries": 0,
        "max_concurrency": 1000,
        "num_cpus": 0,
        "resources": {HEAD: 0.001},
    }


def _remove_unlike(settings: ControlSettings) -> bool:
    """End a control actor that has other settings, or does not answer; whether there was one. Raises `StartError`."""
    try:
        actor: Any = ray.get_actor(CONTROL_NAME, namespace=NAMESPACE)
    except ValueError:
        return False
    with contextlib.suppress(ray.exceptions.RayError, AttributeError):  # an older one has no such method
        if ray.get(actor.settings_digest.remote(), timeout=30) == settings.digest():
            return False
    _end_control(actor)
    deadline = time.monotonic() + REPLACE_S
    while time.monotonic() < deadline:
        try:
            ray.get_actor(CONTROL_NAME, namespace=NAMESPACE)
        except ValueError:
            return True
        time.sleep(0.1)
    raise StartError(f"the control plane of another configuration does not end within {REPLACE_S:g} s; try again")


def _end_control(actor: Any) -> None:
    """Let it save and release what it has; killed even if it does not answer, for it is detached."""
    try:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(actor.shutdown.remote(), timeout=CONTROL_END_S)
    finally:
        with contextlib.suppress(ValueError, ray.exceptions.RayError):
            ray.kill(actor)


def control_settings(config: Config, registry: Registry) -> ControlSettings:
    """What the control actor is created with, and comes back with after a crash.

    On a cluster the monitor may be on another node: `CANARIUM_MONITOR` is its address.
    """
    paths, server = Paths.of(config.state.dir), config.server
    facts = {
        model: {name: VariantFacts.of(entry, registry.resolve(entry.artifact)) for name, entry in variants.items()}
        for model, variants in tables(config, registry).items()
    }
    return ControlSettings(
        instance=paths.instance,
        config=config.model_dump_json(),
        variants=facts,
        state_dir=str(paths.state_dir),
        word_path=str(paths.word_path),
        host=server.host,
        port=server.control_port,
        monitor_url=os.environ.get("CANARIUM_MONITOR") or server.urls()["monitor"],
        console_dir=str(Path(next(iter(monitoring.__path__))) / "console"),
        urls=server.urls(),
        version=version("canarium"),
    )


def _require_head() -> None:
    """Raises `StartError` if there is no head node, where the control plane lives."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    if not any(node["Alive"] and HEAD in node["Resources"] for node in nodes):
        raise StartError("the Ray cluster has no live head node")


# ---------------------------------------------------------------- KubeRay's entry points


def build_app(args: dict[str, str]) -> Any:
    """The gateways' application for `serveConfigV2`; starts the control plane as well.

    Args:
        args: `config`, a path; `revision`, what the file of that name beside it must say first (see `_await_revision`).
    """
    config, registry = _configured(args)
    paths = Paths.of(config.state.dir)
    paths.create()
    start_control(control_settings(config, registry))
    return gateway_deployment(GatewaySettings.of(config, paths))


def build_variant(args: dict[str, str]) -> Any:
    """The application of one isolated variant for `serveConfigV2`. `args`: as for `build_app`, `model`, `variant`."""
    config, registry = _configured(args)
    paths = Paths.of(config.state.dir)
    paths.create()
    model, variant = args["model"], args["variant"]
    entry = tables(config, registry)[model][variant]
    return variant_deployment(GatewaySettings.of(config, paths), model, entry)


def _configured(args: dict[str, str]) -> tuple[Config, Registry]:
    """What an application is built from.

    Raises:
        RegistryError, GovernanceError: an artifact may not be served; what was deployed before goes on, which it would
            not if replicas found that out, for those before them have ended by then.
    """
    if "revision" in args:
        _await_revision(Path(args["config"]).with_name("revision"), args["revision"])
    config = load_config(args["config"]).absolute()
    registry = Registry(config.registry.dir)
    config = started(config, registry)
    loader = Loader(config, registry)
    config, notes = loader.fitted(config)
    for note in notes:
        _say(f"{NOTE}{note}")
    _open_all(config, loader)
    return config, registry


def _open_all(config: Config, loader: Loader) -> None:
    """Open what the replicas will open, on whichever node; its processor is judged there. Raises as `Loader.open`."""
    for model, settings in config.models.items():
        for name, variant in settings.variants.items():
            loader.open(model, name, variant.artifact, runs_here=False, warn=lambda said: _say(f"{NOTE}{said}"))


def _await_revision(file: Path, revision: str) -> None:
    """Wait until a mounted ConfigMap is the one that this application was submitted with.

    Applications that change reach a running cluster at once, the kubelet renews the file within a minute or two. What
    is built from the file before would be some of the old configuration and some of the new.

    Raises:
        StartError: it does not come; what was deployed before goes on.
    """
    deadline = time.monotonic() + REVISION_S
    while (found := _text(file)) != revision:
        if time.monotonic() >= deadline:
            raise StartError(f"{file} says {found[:12] or 'nothing'} after {REVISION_S:g} s, expected {revision[:12]}")
        time.sleep(1)


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


# ---------------------------------------------------------------- one machine, or a cluster that is joined


class _Stop(BaseException):
    """A signal asked for the end. No `Exception`, so that nothing on the way takes it for a failure."""


def main(arguments: list[str] | None = None) -> int:
    """Start Ray (or join `RAY_ADDRESS`), Serve, the control plane, gateways and variants; stay until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m serving.app")
    parser.add_argument("--config", required=True, help="JSON of a checked configuration with absolute paths")
    config = Started.model_validate_json(Path(parser.parse_args(arguments).config).read_bytes())
    joined = bool(os.environ.get("RAY_ADDRESS"))
    try:
        _on_signals(_stop)
        _start_ray(joined)
        _on_signals(_stop)  # once more: `ray.init` puts its own in their place
        if joined:
            _check_nodes(config)
        try:
            _follow(_deploy(config))
        finally:
            _on_signals(signal.SIG_IGN)  # the end is under way, a second signal must not break it off
            _end(joined)
    except _Stop:
        return 0
    except CanariumError as error:
        print(error, file=sys.stderr)
        return 1
    except Exception as error:
        print(f"{_last_words(str(error)) or type(error).__name__} (details: {_ray_logs()})", file=sys.stderr)
        return 1


def _stop(number: int, frame: object) -> None:
    raise _Stop


def _on_signals(handler: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handler)


def _start_ray(joined: bool) -> None:
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if joined:
        ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)
        return
    ray.init(
        address="local",
        namespace=NAMESPACE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        object_store_memory=128 << 20,
        _node_ip_address="127.0.0.1",
    )


def _deploy(config: Config) -> dict[str, str]:
    """Deploy everything, waiting for no application: one that cannot start must not take the others down.

    Returns:
        The applications, each with how a note begins that says that it did not start; of the gateways it is empty.
    """
    registry = Registry(config.registry.dir)
    for line in start_control(control_settings(config, registry)):
        _say(f"{NOTE}{line}")
    serve.start(
        proxy_location=ProxyLocation.Disabled,  # no proxy of Serve's: gateways are their own
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    settings = GatewaySettings.of(config, Paths.of(config.state.dir))
    isolated = [
        (model, entry)
        for model, variants in tables(config, registry).items()
        for entry in variants.values()
        if entry.placement == "isolated"
    ]
    targets = [
        serve.RunTarget(target=variant_deployment(settings, model, entry), name=entry.app, route_prefix=None)
        for model, entry in isolated
    ]
    gateways = serve.RunTarget(target=gateway_deployment(settings), name=GATEWAY_APP, route_prefix=None)
    serve.run_many([*targets, gateways], wait_for_applications_running=False)
    return {GATEWAY_APP: ""} | {entry.app: did_not_start(model, entry.version) for model, entry in isolated}


def _cluster_lives() -> bool:
    """Whether Ray still has a live head node; without one nothing is replaced and no table reaches a gateway."""
    try:
        _require_head()
    except Exception:
        return False
    return True


def _follow(pending: dict[str, str]) -> NoReturn:
    """Say which applications do not start, and why; stays until a signal.

    Raises:
        StartError: the gateways do not start, without which nothing is served, or Ray is gone.
    """
    absent = 0
    while True:
        time.sleep(1)
        absent = 0 if _cluster_lives() else absent + 1
        if absent >= LOST_AFTER:
            raise StartError(f"the Ray cluster is gone: its node does not answer (logs: {_ray_logs()})")
        if not pending:
            continue
        try:
            applications = serve.status().applications
        except Exception:  # the controller is away for a moment, or comes back
            continue
        for name in [name for name in pending if name in applications]:
            status = applications[name].status
            if status not in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.RUNNING):
                continue
            words = pending.pop(name)
            if status is ApplicationStatus.RUNNING:
                continue
            said = [applications[name].message, *(one.message for one in applications[name].deployments.values())]
            reason = f"{failure_of(said)} (logs: {_ray_logs()}/serve)"
            if name == GATEWAY_APP:
                raise StartError(f"the gateways did not start: {reason}")
            _say(f"{words}: {reason}")


def failure_of(messages: list[str]) -> str:
    """The one line of Ray Serve's words on a failed application that names the error, such as `ValueError: no`."""
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if ERROR_LINE.match(line)]
    return (errors or lines or ["Ray Serve does not say why"])[-1]


def _end(joined: bool) -> None:
    """Let gateways finish their requests, then end Serve and the control plane; bounded in time."""
    ending = threading.Thread(target=_end_serve, daemon=True)
    ending.start()
    ending.join(SERVE_END_S)
    with contextlib.suppress(ValueError, ray.exceptions.RayError):  # it never started, or is gone already
        _end_control(ray.get_actor(CONTROL_NAME, namespace=NAMESPACE))
    if joined:
        ending.join(SERVE_END_S)  # nobody else ends what is left on a cluster
    ray.shutdown()


def _end_serve() -> None:
    """The gateways first, while their variants are there to finish with."""
    with contextlib.suppress(Exception):  # nothing was deployed, or the controller is gone
        serve.delete(GATEWAY_APP, _blocking=False)
        deadline = time.monotonic() + DRAIN_S
        while GATEWAY_APP in serve.status().applications and time.monotonic() < deadline:
            time.sleep(0.1)
    with contextlib.suppress(Exception):
        serve.shutdown()  # type: ignore[no-untyped-call]


def _check_nodes(config: Config) -> None:
    """Refuse a cluster on which a node lacks the settings under which Serve must run."""

    @ray.remote(num_cpus=0)
    def settings(names: list[str]) -> dict[str, str]:
        return {name: os.environ[name] for name in names if name in os.environ}

    names, body = list(REQUIRED), config.server.max_body_mib
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            found = ray.get(settings.options(scheduling_strategy=strategy).remote(names), timeout=60)
            if lacking := missing(found, body):
                raise StartError(
                    f"RAY_ADDRESS: node {node['NodeManagerAddress']} lacks {' '.join(lacking)}; "
                    "set them before `ray start` on every node (see deployments/ray/env)"
                )


def _say(line: str) -> None:
    """Into the log, which `canarium up` reads; on a full disk serving goes on without the words."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


def _ray_logs() -> str:
    if not ray.is_initialized():
        return "/tmp/ray/session_latest/logs"
    return f"/tmp/ray/{ray.get_runtime_context().get_session_name()}/logs"


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


if __name__ == "__main__":
    sys.exit(main())
