"""A whole running instance for integration tests: the real `canarium up` on free ports."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml

from serving import processes
from serving.paths import Paths

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")


def unclaimed_ports(count: int) -> list[int]:
    """Free ports below those that the kernel gives to whoever asks for any: an instance binds some of its own only when
    Ray, which asks for many, has been starting for a while."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 32_768), 12_768):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"not {count} ports from 20000 to 32767 are free")


class Stack:
    """One instance: its addresses, its files, its processes."""

    def __init__(self, document: dict[str, Any], folder: Path) -> None:
        ports = unclaimed_ports(4)
        self.http_port, self.grpc_port, self.monitor_port, self.control_port = ports
        self.document = {
            **document,
            "server": {
                **document.get("server", {}),
                "http_port": ports[0],
                "grpc_port": ports[1],
                "monitor_port": ports[2],
                "control_port": ports[3],
            },
            "state": {**document.get("state", {}), "dir": str(folder / "state")},
        }
        self.folder = folder
        self.paths = Paths.of(folder / "state")
        self.config_file = folder / "canarium.yaml"
        self.config_file.write_text(yaml.safe_dump(self.document))
        self.log = folder / "up.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.http_port}", timeout=60, trust_env=False)
        self.admin = httpx.Client(
            base_url=f"http://127.0.0.1:{self.control_port}/admin/v1", timeout=60, trust_env=False
        )
        self.monitor = httpx.Client(base_url=f"http://127.0.0.1:{self.monitor_port}", timeout=60, trust_env=False)

    # ------------------------------------------------------------ life

    def start(self, timeout_s: float = 400) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "serving.cli", "up", "-f", str(self.config_file)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            )
        deadline = time.monotonic() + timeout_s
        while "Ctrl-C" not in self.output():
            assert self.process.poll() is None, f"`canarium up` ended:\n{self.output()}"
            assert time.monotonic() < deadline, f"`canarium up` is not ready after {timeout_s} s:\n{self.output()}"
            time.sleep(0.2)

    def stop(self) -> int:
        """Ctrl-C; returns the exit code."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(150)
        finally:
            processes.end([self.process.pid, *processes.members(self.paths.instance)], 2)

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    # ------------------------------------------------------------ use

    def canarium(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command line against this instance."""
        done = subprocess.run(
            [sys.executable, "-m", "serving.cli", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "CANARIUM_CONTROL": f"http://127.0.0.1:{self.control_port}"},
        )
        assert not check or done.returncode == 0, f"canarium {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done

    def infer(self, model: str, *texts: str, version: str = "", **headers: str) -> httpx.Response:
        """One JSON inference request; header names with '_' for '-'."""
        path = f"/v2/models/{model}{f'/versions/{version}' if version else ''}/infer"
        body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}]}
        return self.http.post(path, json=body, headers={key.replace("_", "-"): value for key, value in headers.items()})

    def traffic(self, model: str, reason: str = "test", **change: Any) -> dict[str, Any]:
        """PUT traffic; returns the model's view."""
        answer = self.admin.put(f"/models/{model}/traffic", json={"reason": reason, "actor": "test", **change})
        assert answer.status_code == 200, answer.text
        view: dict[str, Any] = answer.json()
        return view

    def post(self, path: str, **body: Any) -> httpx.Response:
        """POST to the admin API with a reason."""
        return self.admin.post(path, json={"reason": "test", "actor": "test", **body})

    def model(self, name: str) -> dict[str, Any]:
        view: dict[str, Any] = self.admin.get(f"/models/{name}").json()
        return view

    def pids(self, title: str) -> list[int]:
        """This instance's processes whose title or command line holds `title`, such as `Replica:…:int8`."""
        found = []
        for pid in processes.members(self.paths.instance):
            with contextlib.suppress(OSError):
                if title in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                    found.append(pid)
        return found

    def pid(self, title: str, timeout_s: float = 120) -> int:
        """The one process of that title, once there is exactly one (a replaced replica is gone)."""
        return wait_for(lambda: found[0] if len(found := self.pids(title)) == 1 else None, timeout_s)


def wait_for(what: Callable[[], T | None], timeout_s: float = 60, every_s: float = 0.1) -> T:
    """Poll until `what` gives something true; its last value is in the failure."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = what()
        if value:
            return value
        assert time.monotonic() < deadline, f"still {value!r} after {timeout_s} s"
        time.sleep(every_s)


@contextlib.contextmanager
def running(document: dict[str, Any], folder: Path) -> Iterator[Stack]:
    """A started instance that is ended, whatever happens."""
    stack = Stack(document, folder)
    try:
        stack.start()
        yield stack
    finally:
        if stack.process is not None and stack.process.poll() is None:
            stack.stop()
        processes.end(processes.members(stack.paths.instance), 2)
