"""`canarium up` and `down`: start the processes of an instance in order, watch them, end them all.

Two children: the cluster process (`serving.app`: Ray, Serve, control plane, gateways, variants) and the
monitor. The monitor is restarted when it dies; without the cluster process there is nothing to serve.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TypeVar

import httpx
import msgspec
from rich.console import Console

from serving import processes
from serving.artifacts import started
from serving.config import Config
from serving.errors import StartError
from serving.loading import Loader
from serving.monitor_settings import monitor_settings
from serving.paths import Paths, write_private
from serving.registry.store import Registry
from serving.serve_env import INSTANCE_VARIABLE, NOTE, did_not_start, local_environment
from serving.transport.listeners import ListenerHolder

T = TypeVar("T")

#: How long the baselines have to become ready, and after them the other variants.
READY_TIMEOUT_S, VARIANTS_GRACE_S = 240.0, 60.0
#: A baseline whose workers do not start is waited for a little longer, in case Ray Serve succeeds after all.
FAILED_GRACE_S = 30.0
#: What goes wrong again and again is said this often.
SAY_AGAIN_S = 60.0
#: How long the cluster process may take to end, on one machine and on a cluster that stays.
STOP_GRACE_S, LEAVE_GRACE_S = 20.0, 35.0
NO_ANSWER = "the gateway does not answer"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
    ended += _end_strays(paths.instance, 3.0)
    paths.up_file.unlink(missing_ok=True)
    shutil.rmtree(paths.short_dir, ignore_errors=True)
    return ended


def _end_strays(instance: str, grace_s: float) -> int:
    """End what a crash left behind; returns how many processes that were.

    Those that joined a cluster get the time to leave it: what they do not take down there, nobody else does.
    """
    strays = processes.members(instance)
    processes.end(processes.joined(strays), LEAVE_GRACE_S)
    processes.end(processes.members(instance), grace_s)
    return len(strays)


class _Stopped(BaseException):
    """A signal asked for the end. No `Exception`, so that nothing on the way takes it for a failure."""


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
        self._monitor_restarts = processes.Restarts()
        self._monitor_due_s: float | None = None
        self._monitor_said_s = -SAY_AGAIN_S
        self._baselines: set[tuple[str, int]] = set()
        self._notes: list[str] = []
        self._notes_at = 0
        self._stopping = False
        self._listeners: ListenerHolder | None = None

    def run(self) -> int:
        server, paths = self._config.server, self._paths
        registry = Registry(self._config.registry.dir)
        self._config = started(self._config, registry)
        loader = Loader(self._config, registry)
        self._config, notes = loader.fitted(self._config)
        for note in notes:
            self._say(f"{NOTE}{note}")
        for name, model in self._config.models.items():
            for variant_name, variant in model.variants.items():
                # Missing, damaged, unfit or unapproved: refused before anything starts.
                manifest, _ = loader.open(
                    name,
                    variant_name,
                    variant.artifact,
                    runs_here=not self._joined,
                    warn=lambda said: self._say(f"{NOTE}{said}"),
                )
                if variant_name == model.baseline:
                    self._baselines.add((name, manifest.version))
        paths.create()
        lock = processes.InstanceLock(paths.lock_file)
        if not lock.acquire():
            holder = lock.holder
            user = f"process {holder}" if holder else "another process, which has just started"
            raise StartError(f"state.dir: {paths.state_dir} is in use by {user}; `canarium down` ends it")
        _end_strays(paths.instance, 2.0)
        ports = {name: getattr(server, name) for name in ("http_port", "grpc_port", "monitor_port", "control_port")}
        processes.require_free(server.host, ports)
        for leftover in paths.socket_dir.glob("*/*.sock"):
            leftover.unlink(missing_ok=True)
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # `nohup canarium up` stays
                signal.signal(number, self._on_signal)
        began = time.monotonic()
        try:
            self._write_up_file("starting")
            self._start()
            self._wait_ready()
            self._wait_variants()
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
            environment |= local_environment(paths.instance, secrets.token_hex(32), self._config.server.max_body_mib)
            server = self._config.server
            # Held here, so that clients wait while a gateway is replaced instead of being refused.
            self._listeners = ListenerHolder(
                paths.listeners_socket, server.host, server.http_port, server.grpc_port, server.gateways
            )
        self._environment = environment
        write_private(self._monitor_file, msgspec.json.encode(monitor_settings(self._config)))
        self._start_monitor()
        self._say(f"{'joining' if self._joined else 'starting'} Ray, the control plane, gateways and variants …")
        settings = paths.instance_file
        write_private(settings, self._config.model_dump_json().encode())
        self._notes_at = self._log("cluster").stat().st_size if self._log("cluster").exists() else 0
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
        """Until the server says that it is ready, which means that every baseline is."""
        began = time.monotonic()
        failed_s: float | None = None
        waiting = NO_ANSWER
        while waiting:
            self._watch()
            now = time.monotonic()
            failures = self._failures(self._baselines)
            failed_s = now if failures and failed_s is None else failed_s
            if failed_s is not None and now - failed_s > FAILED_GRACE_S:
                raise StartError("\n".join(failures))
            if now - began > READY_TIMEOUT_S:
                raise StartError(f"not ready after {READY_TIMEOUT_S:g} s: {waiting} (logs: {self._paths.log_dir})")
            time.sleep(0.1)
            answer = self._ask(lambda client, base: client.get(f"{base}/health/ready").status_code)
            waiting = NO_ANSWER if answer is None else "" if answer == 200 else "a baseline has no worker"

    def _wait_variants(self) -> None:
        """For a while, until each variant has a worker or is known to get none; what is left is said, and no more."""
        if self._config.auth.mode != "none":
            return  # which variants have workers is not told without a token
        deadline = time.monotonic() + VARIANTS_GRACE_S
        while True:
            self._watch()
            waiting = {entry for entry in self._unserved() if not self._failures({entry})}
            if not waiting or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        for model, version in sorted(waiting):
            self._say(
                f"{NOTE}{model} version {version} has no worker yet; its traffic is answered by the baseline "
                f"(logs: {self._paths.log_dir})"
            )

    def _unserved(self) -> set[tuple[str, int]]:
        """The variants of which the gateway says that they have no worker, as model and version."""
        index = self._ask(lambda client, base: client.post(f"{base}/repository/index"))
        if index is None or index.status_code != 200:
            return set(self._baselines)  # it does not answer just now: ask again
        return {(entry["name"], int(entry["version"])) for entry in index.json() if entry["state"] != "READY"}

    def _failures(self, variants: set[tuple[str, int]]) -> list[str]:
        """What the cluster process said of these variants' workers that do not start."""
        beginnings = tuple(did_not_start(model, version) for model, version in variants)
        return [note.removeprefix(NOTE) for note in self._notes if note.startswith(beginnings)]

    # ------------------------------------------------------------ watch

    def _watch(self) -> None:
        """One look at everything. Raises `StartError` when the cluster process has ended."""
        self._repeat_notes()
        if self._cluster is not None and self._cluster.poll() is not None:
            code = self._cluster.returncode
            words = _last_line(self._log("cluster")) or f"the cluster process ended with code {code}"
            if code < 0:
                words = f"the cluster process was killed by signal {-code}"
            raise StartError(f"{words} (log: {self._log('cluster')})")
        self._watch_monitor(time.monotonic())

    def _watch_monitor(self, now: float) -> None:
        """Start it again when it ends. Nothing that goes wrong with that may end serving, such as a full disk."""
        if self._monitor is not None and self._monitor.poll() is None:
            return
        if self._monitor_due_s is None:
            code = "" if self._monitor is None else f" with code {self._monitor.returncode}"
            self._plan_monitor(now, f"the monitor ended{code}: {_last_line(self._log('monitor'))}")
        elif now >= self._monitor_due_s:
            self._monitor_due_s = None
            try:
                self._start_monitor()
            except (OSError, subprocess.SubprocessError) as error:
                self._plan_monitor(now, f"the monitor cannot be started: {error}")

    def _plan_monitor(self, now: float, trouble: str) -> None:
        wait_s = self._monitor_restarts.ended(now)
        self._monitor_due_s = now + wait_s
        if now - self._monitor_said_s >= SAY_AGAIN_S:
            self._monitor_said_s = now
            self._say(f"{trouble}; starting it again in {wait_s:g} s (log: {self._log('monitor')})")

    def _start_monitor(self) -> None:
        self._monitor_restarts.started(time.monotonic())
        self._monitor = self._spawn("monitor", "monitoring.sidecar", self._monitor_file)

    @property
    def _monitor_file(self) -> Path:
        return self._paths.run_dir / "monitor.json"

    # ------------------------------------------------------------ end

    def _stop(self) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if self._listeners is not None:
            self._listeners.close()
        cluster_s = LEAVE_GRACE_S if self._joined else STOP_GRACE_S
        for child, grace_s in ((self._cluster, cluster_s), (self._monitor, 5.0)):
            if child is not None:
                with contextlib.suppress(ProcessLookupError):
                    child.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(grace_s)
        processes.end(processes.members(self._paths.instance), 5.0)
        self._paths.up_file.unlink(missing_ok=True)
        shutil.rmtree(self._paths.short_dir, ignore_errors=True)

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
        urls = self._config.server.urls()
        lines = (
            f"inference  {urls['http']}/v2  (HTTP)   {urls['grpc']}  (gRPC)",
            f"console    {urls['control']}/",
            f"metrics    {urls['monitor']}/metrics",
            "Ctrl-C or `canarium down` stops everything.",
        )
        try:
            print(*lines, sep="\n", flush=True)
        except OSError:
            _mute(sys.stdout)

    def _repeat_notes(self) -> None:
        """Say the notes that the cluster process has written since the last time."""
        try:
            with self._log("cluster").open("rb") as log:
                log.seek(self._notes_at)
                whole, newline, _ = log.read(1 << 20).rpartition(b"\n")
        except OSError:
            return
        self._notes_at += len(whole) + len(newline)
        for line in whole.decode(errors="replace").splitlines():
            if line.startswith(NOTE):
                self._notes.append(line)
                self._say(line)

    def _ask(self, question: Callable[[httpx.Client, str], T]) -> T | None:
        """Ask the gateway; None if it does not answer. Raises `StartError` for an address that is none."""
        url = self._config.server.urls()["http"]
        try:
            with httpx.Client(timeout=2, trust_env=False) as client:
                return question(client, f"{url}/v2")
        except httpx.InvalidURL as error:
            raise StartError(f"server.host: {self._config.server.host} makes no usable address: {error}") from None
        except httpx.HTTPError:
            return None

    def _log(self, name: str) -> Path:
        return self._paths.log_dir / f"{name}.log"

    def _say(self, text: str) -> None:
        try:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        except (OSError, SystemExit):  # the terminal is gone; rich takes a broken pipe for a reason to leave
            self._console.quiet = True
            _mute(self._console.file)


def _mute(stream: IO[str]) -> None:
    """Send a stream whose terminal or pipe is gone nowhere, so that what it still holds fails nobody."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = [line for line in log.read_text(errors="replace")[-4000:].splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""
    return ""
