"""`canarium up` and `down`: start every process of an instance in order, watch them, end them all."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
from rich.console import Console

from serving import processes
from serving.clock import SystemClock
from serving.config import Config
from serving.errors import CanariumError, StartError
from serving.monitor_settings import monitor_settings
from serving.paths import Paths
from serving.registry.store import Registry
from serving.serve_env import INSTANCE_VARIABLE, REQUIRED, local_environment, missing

READY_TIMEOUT_S = 180.0
MONITOR_RESTART_S = 1.0


def up(config: Config, config_path: str | Path, console: Console | None = None) -> int:
    """Start the instance in the foreground and stay until a signal; returns the exit code.

    Raises:
        CanariumError: it cannot start; one clear line.
    """
    return _Instance(config, Path(config_path), console or Console(stderr=True)).run()


def down(state_dir: str | Path, grace_s: float = 40.0) -> int:
    """End the instance of a state directory and everything it left behind; returns the number of processes ended."""
    paths = Paths.of(state_dir)
    ended = 0
    if (pid := processes.InstanceLock(paths.lock_file).holder) is not None:
        ended += 1
        processes.end([pid], grace_s)
    stray = processes.members(paths.instance)
    processes.end(stray, 3.0)
    paths.up_file.unlink(missing_ok=True)
    return ended + len(stray)


class _Instance:
    def __init__(self, config: Config, config_path: Path, console: Console) -> None:
        self._console = console
        self._config_path = config_path
        self._paths = Paths.of(config.state.dir)
        self._config = config
        self._clock = SystemClock()
        self._monitor: subprocess.Popen[bytes] | None = None
        self._monitor_died_ns = 0
        self._stopping = False
        self._joined = bool(os.environ.get("RAY_ADDRESS"))

    def run(self) -> int:
        server, paths = self._config.server, self._paths
        registry = Registry(self._config.registry.dir)
        for model in self._config.models.values():
            for variant in model.variants.values():
                registry.open(variant.artifact)  # a missing or damaged artifact is refused before anything starts
        paths.create()
        lock = processes.InstanceLock(paths.lock_file)
        if not lock.acquire():
            raise StartError(
                f"state.dir: {paths.state_dir} is in use by process {lock.holder}; `canarium down` ends it"
            )
        processes.end(processes.members(paths.instance), 2.0)  # what a crash left behind
        processes.require_free(
            server.host,
            {
                "http_port": server.http_port,
                "grpc_port": server.grpc_port,
                "monitor_port": server.monitor_port,
                "control_port": server.control_port,
            },
        )
        for leftover in paths.socket_dir.glob("*/*.sock"):
            leftover.unlink(missing_ok=True)
        self._write_up_file("starting")
        handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._start()
            self._announce()
            while not self._stopping:
                time.sleep(0.2)
                self._watch_monitor()
            self._say("stopping …")
            return 0
        except KeyboardInterrupt:
            return 0 if self._stopping else 130
        finally:
            for number in handlers:
                signal.signal(number, signal.SIG_IGN)
            self._stop()
            lock.release()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    # ------------------------------------------------------------ start

    def _start(self) -> None:
        began = time.monotonic()
        self._environment()
        self._start_monitor()
        self._say("starting Ray and Ray Serve …")
        # Ray reads its environment when it is imported, so this module must not import it earlier.
        from serving import app

        config = app.absolute(self._config)
        try:
            _start_ray(self._joined)
            self._start_serve(app)
            self._say("starting the control plane …")
            registry = Registry(config.registry.dir)
            app.start_control(self._control_settings(app, config, registry))
            self._say("starting gateways and variants …")
            self._deploy(app, config, registry)
        except CanariumError:
            raise
        except Exception as error:
            lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
            raise StartError(f"start failed: {lines[-1].strip()} (logs: {self._paths.log_dir}, /tmp/ray)") from error
        self._wait_ready()
        self._say(f"ready after {time.monotonic() - began:.1f} s")

    def _environment(self) -> None:
        paths = self._paths
        os.environ[INSTANCE_VARIABLE] = paths.instance
        if self._joined:
            return
        extra = dict(zip(("stats", "metrics", "fallback_http", "fallback_grpc"), processes.free_ports(4), strict=True))
        os.environ.update(local_environment(paths.instance, paths.haproxy_dir, extra, secrets.token_hex(32)))

    def _start_serve(self, app: Any) -> None:
        from ray import serve
        from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions

        if self._joined:
            _check_nodes()
        server = self._config.server
        serve.start(
            proxy_location=ProxyLocation.EveryNode,
            http_options=HTTPOptions(host=server.host, port=server.http_port, request_timeout_s=None),
            grpc_options=gRPCOptions(
                port=server.grpc_port,
                grpc_servicer_functions=[
                    "tritonclient.grpc.service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"
                ],
            ),
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )

    def _control_settings(self, app: Any, config: Config, registry: Registry) -> Any:
        from serving.control.actor import ControlSettings, VariantFacts

        entries = app.tables(config, registry)
        facts = {
            model: {name: VariantFacts.of(entry, registry.resolve(entry.artifact)) for name, entry in variants.items()}
            for model, variants in entries.items()
        }
        server = config.server
        return ControlSettings(
            instance=self._paths.instance,
            config=config.model_dump_json(),
            variants=facts,
            state_dir=str(self._paths.state_dir),
            word_path=str(self._paths.word_path),
            host=server.host,
            port=server.control_port,
            monitor_url=f"http://{_reachable(server.host)}:{server.monitor_port}",
            console_dir=str(_console_dir()),
            urls=self._urls(),
        )

    def _deploy(self, app: Any, config: Config, registry: Registry) -> None:
        from ray import serve

        settings = app.GatewaySettings(
            config=config.model_dump_json(),
            state_dir=str(self._paths.state_dir),
            unit_secret=_unit_secret(self._paths),
        )
        targets = [
            serve.RunTarget(target=app.variant_deployment(settings, model, entry), name=entry.app, route_prefix=None)
            for model, variants in app.tables(config, registry).items()
            for entry in variants.values()
            if entry.placement == "isolated"
        ]
        targets.append(serve.RunTarget(target=app.gateway_deployment(settings), name=app.GATEWAY_APP))
        serve.run_many(targets)

    def _wait_ready(self) -> None:
        server = self._config.server
        url = f"http://{_reachable(server.host)}:{server.http_port}/v2/health/ready"
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self._stopping:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(url, timeout=2).status_code == 200:
                    break
            if time.monotonic() > deadline:
                raise StartError(f"not ready after {READY_TIMEOUT_S:g} s: {url} does not answer 200")
            time.sleep(0.1)

    # ------------------------------------------------------------ monitor

    def _start_monitor(self) -> None:
        settings = self._paths.run_dir / "monitor.json"
        _write_private(settings, msgspec.json.encode(monitor_settings(self._config, self._paths)))
        with (self._paths.log_dir / "monitor.log").open("ab") as log:
            self._monitor = subprocess.Popen(
                [sys.executable, "-m", "monitoring.sidecar", "--config", str(settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _watch_monitor(self) -> None:
        """Restart the monitor a moment after it died; inference does not depend on it."""
        if self._monitor is None or self._monitor.poll() is None:
            return
        now = self._clock.monotonic_ns()
        if not self._monitor_died_ns:
            self._monitor_died_ns = now
            self._say(f"the monitor ended with code {self._monitor.returncode}, restarting it")
        if now - self._monitor_died_ns >= MONITOR_RESTART_S * 1e9:
            self._monitor_died_ns = 0
            self._start_monitor()

    # ------------------------------------------------------------ end

    def _stop(self) -> None:
        with contextlib.suppress(Exception):
            import ray

            if ray.is_initialized():
                self._stop_serve()
                ray.shutdown()
        if self._monitor is not None:
            processes.end([self._monitor.pid], 5.0)
            self._monitor.wait()
        processes.end(processes.members(self._paths.instance), 5.0)
        self._paths.up_file.unlink(missing_ok=True)

    def _stop_serve(self) -> None:
        import ray
        from ray import serve

        from serving.app import CONTROL_NAME, NAMESPACE

        with contextlib.suppress(Exception):
            actor = ray.get_actor(CONTROL_NAME, namespace=NAMESPACE)
            ray.get(actor.shutdown.remote(), timeout=5)
            ray.kill(actor)
        if self._joined:
            serve.shutdown()  # type: ignore[no-untyped-call]

    def _on_signal(self, number: int, frame: object) -> None:
        if self._stopping:
            return
        self._stopping = True
        raise KeyboardInterrupt

    # ------------------------------------------------------------ words

    def _write_up_file(self, status: str) -> None:
        document = {"pid": os.getpid(), "status": status, "config": str(self._config_path.resolve()), **self._urls()}
        _write_private(self._paths.up_file, json.dumps(document).encode())

    def _urls(self) -> dict[str, str]:
        server = self._config.server
        host = _reachable(server.host)
        return {
            "http": f"http://{host}:{server.http_port}",
            "grpc": f"{host}:{server.grpc_port}",
            "monitor": f"http://{host}:{server.monitor_port}",
            "control": f"http://{host}:{server.control_port}",
        }

    def _announce(self) -> None:
        self._write_up_file("ready")
        urls = self._urls()
        print(f"inference  {urls['http']}/v2  (HTTP)   {urls['grpc']}  (gRPC)")
        print(f"console    {urls['control']}/")
        print(f"metrics    {urls['monitor']}/metrics")
        print("Ctrl-C or `canarium down` stops everything.", flush=True)

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False)


def _start_ray(joined: bool) -> None:
    import ray

    logging.getLogger("ray.serve").setLevel(logging.WARNING)

    if joined:
        ray.init(namespace="canarium", log_to_driver=False, logging_level=logging.WARNING)
        return
    ray.init(
        address="local",
        num_cpus=os.cpu_count(),
        namespace="canarium",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        object_store_memory=128 << 20,
        _node_ip_address="127.0.0.1",
    )


def _check_nodes() -> None:
    """Refuse a cluster on which a node lacks the settings under which Serve must run."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

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


def _console_dir() -> Path:
    import monitoring

    return Path(next(iter(monitoring.__path__))) / "console"


def _unit_secret(paths: Paths) -> str:
    """The key of the hashes by which the monitor tells users apart without knowing them; made once."""
    file = paths.state_dir / "unit.key"
    if not file.exists():
        _write_private(file, secrets.token_hex(16).encode())
    return file.read_text()


def _write_private(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    temporary.rename(path)


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::", "localhost") else host
