"""Binds Canarium to Ray: deployments, the control actor, and the process that starts them on one machine.

Nothing imports this module. `canarium up` runs it as a process of its own (Ray reads its environment
when it is imported, so that must be complete before); KubeRay finds `build_app` and `build_variant` by name.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import monitoring
from serving.config import Config, load_config
from serving.contract import VariantEntry
from serving.control.actor import ControlActor, ControlSettings, VariantFacts
from serving.errors import CanariumError, StartError
from serving.gateway.replica import CONTROL_NAME, NAMESPACE, Gateway, GatewaySettings, VariantReplica
from serving.paths import Paths
from serving.registry.store import Registry
from serving.serve_env import NOTE, REQUIRED, missing

GATEWAY_APP = "canarium"
#: Serve's own admission stays out of the way: the batcher's bounded queue is the one that decides.
SERVE_ONGOING = 100_000
SERVICER = "tritonclient.grpc.service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"


# ---------------------------------------------------------------- what is deployed


def variant_app_name(model: str, variant: str) -> str:
    """Name of the Serve application of an isolated variant."""
    return f"canarium-{model}-{variant}"


def gateway_deployment(settings: GatewaySettings) -> Any:
    """The ingress application."""
    config = settings.parsed()
    deployment: Any = serve.deployment(
        serve.ingress()(Gateway),
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

    Returns:
        Lines that say where the configuration file and the stored state differ; the store wins.

    Raises:
        StartError: the actor did not start; carries its own words.
    """
    node = _head_node()
    remote: Any = ray.remote(ControlActor)
    actor = remote.options(
        name=CONTROL_NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=1000,
        num_cpus=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    ).remote(settings)
    try:
        started = ray.get(actor.ready.remote(), timeout=60)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise StartError(f"the control plane did not start: {reason}") from None
    differences: list[str] = started["differences"]
    return differences


def control_settings(config: Config, registry: Registry) -> ControlSettings:
    """What the control actor is created with, and comes back with after a crash."""
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
        monitor_url=f"http://{server.reachable}:{server.monitor_port}",
        console_dir=str(Path(next(iter(monitoring.__path__))) / "console"),
        urls=server.urls(),
        version=version("canarium"),
    )


def _head_node() -> str:
    """The id of the head node, where the control plane lives. Raises `StartError` if there is none."""
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"] and "node:__internal_head__" in node["Resources"]:
            return str(node["NodeID"])
    raise StartError("the Ray cluster has no live head node")


# ---------------------------------------------------------------- KubeRay's entry points


def build_app(args: dict[str, str]) -> Any:
    """The ingress application for `serveConfigV2`; starts the control plane as well. `args`: `config`, a path."""
    config = load_config(args["config"]).absolute()
    paths = Paths.of(config.state.dir)
    paths.create()
    start_control(control_settings(config, Registry(config.registry.dir)))
    return gateway_deployment(GatewaySettings.of(config, paths))


def build_variant(args: dict[str, str]) -> Any:
    """The application of one isolated variant for `serveConfigV2`. `args`: `config`, `model`, `variant`."""
    config = load_config(args["config"]).absolute()
    paths = Paths.of(config.state.dir)
    paths.create()
    model, variant = args["model"], args["variant"]
    entry = tables(config, Registry(config.registry.dir))[model][variant]
    return variant_deployment(GatewaySettings.of(config, paths), model, entry)


# ---------------------------------------------------------------- one machine, or a cluster that is joined


def main(arguments: list[str] | None = None) -> int:
    """Start Ray (or join `RAY_ADDRESS`), Serve, the control plane, gateways and variants; stay until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m serving.app")
    parser.add_argument("--config", required=True, help="JSON of a checked configuration with absolute paths")
    config = Config.model_validate_json(Path(parser.parse_args(arguments).config).read_bytes())
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    joined = bool(os.environ.get("RAY_ADDRESS"))
    try:
        _start_ray(joined)
        try:
            if not stop.is_set():
                _deploy(config)
            stop.wait()
        finally:
            _end(joined)
    except CanariumError as error:
        print(error, file=sys.stderr)
        return 1
    except Exception as error:
        lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
        print(f"{lines[-1].strip()} (details: /tmp/ray/session_latest/logs)", file=sys.stderr)
        return 1
    return 0


def _start_ray(joined: bool) -> None:
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if joined:
        ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)
        _check_nodes()
        return
    ray.init(
        address="local",
        num_cpus=os.cpu_count(),
        namespace=NAMESPACE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        object_store_memory=128 << 20,
        _node_ip_address="127.0.0.1",
    )


def _deploy(config: Config) -> None:
    server, registry = config.server, Registry(config.registry.dir)
    for line in start_control(control_settings(config, registry)):
        print(f"{NOTE}{line}", flush=True)
    serve.start(
        proxy_location=ProxyLocation.EveryNode,
        http_options=HTTPOptions(host=server.host, port=server.http_port, request_timeout_s=None),
        grpc_options=gRPCOptions(port=server.grpc_port, grpc_servicer_functions=[SERVICER]),
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    settings = GatewaySettings.of(config, Paths.of(config.state.dir))
    targets = [
        serve.RunTarget(target=variant_deployment(settings, model, entry), name=entry.app, route_prefix=None)
        for model, variants in tables(config, registry).items()
        for entry in variants.values()
        if entry.placement == "isolated"
    ]
    serve.run_many([*targets, serve.RunTarget(target=gateway_deployment(settings), name=GATEWAY_APP)])


def _end(joined: bool) -> None:
    try:
        actor: Any = ray.get_actor(CONTROL_NAME, namespace=NAMESPACE)
        ray.get(actor.shutdown.remote(), timeout=5)
        ray.kill(actor)
    except (ValueError, ray.exceptions.RayError):
        pass  # it never started, or is gone already
    if joined:
        serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


def _check_nodes() -> None:
    """Refuse a cluster on which a node lacks the settings under which Serve must run."""

    @ray.remote(num_cpus=0)
    def settings(names: list[str]) -> dict[str, str]:
        return {name: os.environ[name] for name in names if name in os.environ}

    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            found = ray.get(settings.options(scheduling_strategy=strategy).remote(list(REQUIRED)), timeout=60)
            if lacking := missing(found):
                raise StartError(
                    f"RAY_ADDRESS: node {node['NodeManagerAddress']} lacks {' '.join(lacking)}; "
                    "set them before `ray start` on every node (see deployments/ray/env)"
                )


if __name__ == "__main__":
    sys.exit(main())
