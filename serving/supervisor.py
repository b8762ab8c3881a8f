"""`canarium up` and `down`: start the processes of an instance in order, watch them, end them all.

Two children: the cluster process (`serving.app`: Ray, Serve, control plane, gateways, variants) and the
monitor. The monitor is restarted when it dies; without the cluster process there is nothing to serve.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import msgspec
from rich.console import Console

from serving import processes
from serving.config import Config
from serving.errors import StartError
from serving.monitor_settings import monitor_settings
from serving.paths import Paths, write_private
from serving.registry.store import Registry
from serving.serve_env import INSTANCE_VARIABLE, NOTE, local_environment

READY_TIMEOUT_S = 240.0
MONITOR_RESTART_S = 1.0
STOP_GRACE_S = 20.0


def up(config: Config, config_path: str | Path, console: Console | None = None) -> int:
    """Start the instance in the foreground and stay until a signal; returns the exit code.

    Raises:
        CanariumError: it cannot start; one clear line.
    """
    return _Instance(config.absolute(), Path(config_path), console or Console(stderr=True)).run()


def down(state_dir: str | Path, grace_s: float = 40.0) -> int:
    """End the instance of a state directory and everything it left behind; returns how many processes that were."""
    paths = Paths.of(state_dir)
    ended = 0
    if (pid := processes.InstanceLock(paths.lock_file).holder) is not None:
        ended += 1
        processes.end([pid], grace_s)
    stray = processes.members(paths.instance)
    processes.end(stray, 3.0)
    paths.up_file.unlink(missing_ok=True)
    return ended + len(stray)


class _Stopped(Exception):
    """A signal asked for the end."""


class _Instance:
    def __init__(self, config: Config, config_path: Path, console: Console) -> None:
        self._config = config
        self._config_path = config_path
        self._console = console
        self._paths = Paths.of(config.state.dir)
        self._joined = bool(os.environ.get("RAY_ADDRESS"))
        self._environment: Mapping[str, str] = {}
        self._cluster: subprocess.Popen[bytes] | None = None
        self._monitor: subprocess.Popen[bytes] | None = None
        self._monitor_died_s = 0.0
        self._log_start = 0
        self._stopping = False

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
        ports = {name: getattr(server, name) for name in ("http_port", "grpc_port", "monitor_port", "control_port")}
        processes.require_free(server.host, ports)
        for leftover in paths.socket_dir.glob("*/*.sock"):
            leftover.unlink(missing_ok=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        began = time.monotonic()
        try:
            self._write_up_file("starting")
            self._start()
            self._wait_ready()
            self._say(f"ready after {time.monotonic() - began:.1f} s")
            self._announce()
            while True:
                time.sleep(0.2)
                self._watch()
        except _Stopped:
            self._say("stopping …")
            return 0
        finally:
            self._stop()
            lock.release()

    # ------------------------------------------------------------ start

    def _start(self) -> None:
        paths = self._paths
        environment = {**os.environ, INSTANCE_VARIABLE: paths.instance, "PYTHONUNBUFFERED": "1"}
        if not self._joined:
            names = ("stats", "metrics", "fallback_http", "fallback_grpc")
            extra = dict(zip(names, processes.free_ports(len(names)), strict=True))
            environment |= local_environment(paths.instance, paths.haproxy_dir, extra, secrets.token_hex(32))
        self._environment = environment
        self._start_monitor()
        self._say(f"{'joining' if self._joined else 'starting'} Ray, the control plane, gateways and variants …")
        settings = paths.run_dir / "instance.json"
        write_private(settings, self._config.model_dump_json().encode())
        self._log_start = len(self._log("cluster").read_text(errors="replace")) if self._log("cluster").exists() else 0
        self._cluster = self._spawn("cluster", "serving.app", settings)

    def _spawn(self, name: str, module: str, settings: Path) -> subprocess.Popen[bytes]:
        with self._log(name).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module, "--config", str(settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is ours to pass on, in order
                env=self._environment,
            )

    def _wait_ready(self) -> None:
        """Until the server says it is ready and, where that can be asked without a token, every variant is."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        waiting = "the gateway does not answer"
        while waiting:
            self._watch()
            if time.monotonic() > deadline:
                raise StartError(f"not ready after {READY_TIMEOUT_S:g} s: {waiting} (logs: {self._paths.log_dir})")
            time.sleep(0.1)
            with contextlib.suppress(httpx.HTTPError):
                waiting = self._not_ready()

    def _not_ready(self) -> str:
        base = f"{self._config.server.urls()['http']}/v2"
        with httpx.Client(timeout=2, trust_env=False) as client:
            if client.get(f"{base}/health/ready").status_code != 200:
                return "a baseline has no worker"
            if self._config.auth.mode != "none":
                return ""
            index = client.post(f"{base}/repository/index")
            index.raise_for_status()
            return ", ".join(
                f"{entry['name']} version {entry['version']}: {entry['reason']}"
                for entry in index.json()
                if entry["state"] != "READY"
            )

    # ------------------------------------------------------------ watch

    def _watch(self) -> None:
        if self._cluster is not None and self._cluster.poll() is not None:
            words = _last_line(self._log("cluster")) or f"it ended with code {self._cluster.returncode}"
            raise StartError(f"{words} (log: {self._log('cluster')})")
        if self._monitor is None or self._monitor.poll() is None:
            return
        now = time.monotonic()
        if not self._monitor_died_s:
            self._monitor_died_s = now
            words = _last_line(self._log("monitor"))
            self._say(f"the monitor ended with code {self._monitor.returncode}, restarting it ({words})")
        if now - self._monitor_died_s >= MONITOR_RESTART_S:
            self._monitor_died_s = 0.0
            self._start_monitor()

    def _start_monitor(self) -> None:
        settings = self._paths.run_dir / "monitor.json"
        write_private(settings, msgspec.json.encode(monitor_settings(self._config)))
        self._monitor = self._spawn("monitor", "monitoring.sidecar", settings)

    # ------------------------------------------------------------ end

    def _stop(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        for child, grace_s in ((self._cluster, STOP_GRACE_S), (self._monitor, 5.0)):
            if child is not None:
                with contextlib.suppress(ProcessLookupError):
                    child.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(grace_s)
        processes.end(processes.members(self._paths.instance), 5.0)
        self._paths.up_file.unlink(missing_ok=True)

    def _on_signal(self, number: int, frame: object) -> None:
        if not self._stopping:
            self._stopping = True
            raise _Stopped

    # ------------------------------------------------------------ words

    def _write_up_file(self, status: str) -> None:
        urls = self._config.server.urls()
        document = {"pid": os.getpid(), "status": status, "config": str(self._config_path.resolve()), **urls}
        write_private(self._paths.up_file, json.dumps(document).encode())

    def _announce(self) -> None:
        self._write_up_file("ready")
        for line in self._log("cluster").read_text(errors="replace")[self._log_start :].splitlines():
            if line.startswith(NOTE):
                self._say(line)
        urls = self._config.server.urls()
        print(f"inference  {urls['http']}/v2  (HTTP)   {urls['grpc']}  (gRPC)")
        print(f"console    {urls['control']}/")
        print(f"metrics    {urls['monitor']}/metrics")
        print("Ctrl-C or `canarium down` stops everything.", flush=True)

    def _log(self, name: str) -> Path:
        return self._paths.log_dir / f"{name}.log"

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = [line for line in log.read_text(errors="replace")[-4000:].splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""
    return ""
