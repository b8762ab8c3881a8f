"""Build, start, await and stop the quickstart's server; used by the demo and by the benchmark."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from serving.client import AdminClient, ClientError, InferenceClient
from serving.config import Config, load_config
from serving.errors import RegistryError, StartError

HERE = Path(__file__).resolve().parent
RECIPE = HERE / "recipe.yaml"
CONFIG = HERE / "canarium.yaml"
DATA = HERE / "data"
CANARIUM = (sys.executable, "-m", "serving.cli")
#: Where a server started from here keeps its state: apart from the user's own, and new every time.
STATE_DIR = ".canarium/quickstart"

READY_LIMIT_S = 240.0
STOP_LIMIT_S = 45.0
LOG_TAIL_LINES = 15


def missing_artifacts(config: Config) -> list[str]:
    """References in the configuration that the registry cannot give."""
    from serving.registry.store import Registry

    wanted = [variant.artifact for model in config.models.values() for variant in model.variants.values()]
    if not Path(config.registry.dir).is_dir():
        return wanted
    registry, missing = Registry(Path(config.registry.dir)), []
    for ref in wanted:
        try:
            registry.resolve(ref)
        except RegistryError:
            missing.append(ref)
    return missing


def build_if_needed(config: Config, say: Callable[[str], None]) -> None:
    """Run `canarium build` unless every artifact is there. Raises `StartError`."""
    missing = missing_artifacts(config)
    if not missing:
        return
    say(f"building {', '.join(missing)} (once; a few minutes)")
    command = (*CANARIUM, "build", str(RECIPE), "--registry", config.registry.dir)
    if subprocess.run(command, check=False).returncode != 0:
        raise StartError(f"`canarium build {RECIPE}` failed; see above")


class Quickstart:
    """A `canarium up` of the quickstart in a process of its own, stopped at the end of the `with` block.

    Args:
        overrides: `key=value` strings as for `canarium up --set`.
        say: told what is going on, in short lines.
        log: the server's output; inside the state directory by default.
    """

    def __init__(self, overrides: tuple[str, ...] = (), *, say: Callable[[str], None] = print) -> None:
        named = any(one.startswith("state.dir=") for one in overrides)
        self.overrides = overrides if named else (*overrides, f"state.dir={STATE_DIR}")
        self._fresh = not named
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self.config = load_config(CONFIG, self.overrides)
        self.state_dir = Path(self.config.state.dir)
        self.log = self.state_dir / "logs" / "up.log"
        server = self.config.server
        self.http_url = f"http://{server.host}:{server.http_port}"
        self.monitor_url = f"http://{server.host}:{server.monitor_port}"
        self.control_url = f"http://{server.host}:{server.control_port}"

    def __enter__(self) -> Quickstart:
        try:
            build_if_needed(self.config, self._say)
            self._start()
            self._await_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the server: ask, then `canarium down`, then kill its process group. Never raises."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            self._say("stopping the server")
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_LIMIT_S)
        if process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired, OSError):
                subprocess.run(
                    (*CANARIUM, "down", "--state-dir", str(self.state_dir)), timeout=STOP_LIMIT_S, check=False
                )
        with contextlib.suppress(ProcessLookupError):  # its group is its own: see `start_new_session`
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)

    def _start(self) -> None:
        if self._fresh and self.state_dir.is_dir():
            self._refuse_if_running()
            shutil.rmtree(self.state_dir)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        sets = [argument for one in self.overrides for argument in ("--set", one)]
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                (*CANARIUM, "up", "-f", str(CONFIG), *sets),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops the server in order
            )
        self._say(f"starting the server (log: {self.log})")

    def _refuse_if_running(self) -> None:
        from serving.commands.examine import instance_pids

        if instance_pids(self.state_dir):
            raise StartError(
                f"a server runs from {self.state_dir}; stop it with `canarium down --state-dir {self.state_dir}`"
            )

    def _await_ready(self) -> None:
        """Until inference is ready and the monitor's heartbeat has arrived. Raises `StartError`."""
        deadline = time.monotonic() + READY_LIMIT_S
        with InferenceClient(self.http_url, timeout_s=2) as server, AdminClient(self.control_url, timeout_s=2) as admin:
            while time.monotonic() < deadline:
                if self._process is None or self._process.poll() is not None:
                    raise StartError(f"the server ended while starting; the end of {self.log}:\n{self._tail()}")
                with contextlib.suppress(ClientError):
                    if server.ready() and admin.status()["monitor"]["alive"]:
                        return
                time.sleep(0.5)
        raise StartError(f"the server was not ready after {READY_LIMIT_S:g} s; the end of {self.log}:\n{self._tail()}")

    def _tail(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])
