"""Finding and ending the processes of an instance, ports included: what `up` and `down` need of the OS."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import time
from collections.abc import Iterable
from pathlib import Path

from serving.errors import StartError
from serving.serve_env import INSTANCE_VARIABLE


class InstanceLock:
    """Held by `up` (or a control plane) for as long as it lives: a stale file never passes for a running instance."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def acquire(self) -> bool:
        """Take the lock and write our process id into it; False if another process holds it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        except OSError:  # a full disk
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def holder(self) -> int | None:
        """Process id of whoever holds the lock; None if nobody does, or has only this moment taken it.

        The id in the file counts only while that process has this very file open: one that a crash left there may
        be a stranger's by now. The lock itself is not tried, for that could refuse it to an `up` that starts.
        """
        try:
            pid = int(self._path.read_text() or 0)
            lock = self._path.stat()
        except (OSError, ValueError):
            return None
        return pid if pid > 0 and _has_open(pid, lock) else None


class Restarts:
    """How long to wait before a process that ended is started again: ever longer while it ends at once.

    The clock is an argument: seconds that never go back.
    """

    FIRST_S, MOST_S = 1.0, 30.0
    #: A process that has run for so long has started well.
    STEADY_S = 30.0

    def __init__(self) -> None:
        self._started_s = 0.0
        self._wait_s = 0.0

    def started(self, now_s: float) -> None:
        self._started_s = now_s

    def ended(self, now_s: float) -> float:
        """Seconds to wait now."""
        steady = now_s - self._started_s >= self.STEADY_S
        self._wait_s = self.FIRST_S if steady or not self._wait_s else min(2 * self._wait_s, self.MOST_S)
        return self._wait_s


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def members(instance: str) -> list[int]:
    """Every process that carries the instance's mark in its environment, this one excluded."""
    mark = f"{INSTANCE_VARIABLE}={instance}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if mark in _environment(int(entry.name)) and alive(int(entry.name)):
                found.append(int(entry.name))
    return found


def joined(pids: Iterable[int]) -> list[int]:
    """Those that were started to join a Ray cluster, which stays when they end."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if any(entry.startswith(b"RAY_ADDRESS=") and entry != b"RAY_ADDRESS=" for entry in _environment(pid)):
                found.append(pid)
    return found


def end(pids: Iterable[int], grace_s: float) -> list[int]:
    """SIGTERM, then SIGKILL after `grace_s`. Returns what still lives (normally nothing)."""
    left = _signal(pids, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [pid for pid in left if alive(pid)]
    left = _signal(left, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [pid for pid in left if alive(pid)]
    return left


def require_free(host: str, ports: dict[str, int]) -> None:
    """Raises `StartError` naming the first port that is taken and the setting to change."""
    for name, port in ports.items():
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except (socket.gaierror, UnicodeError):
                raise StartError(f"server.host: {host} is no address of this machine") from None
            except OSError as error:
                raise StartError(
                    f"server.{name}: port {port} on {host} is not free ({error.strerror}); "
                    f"stop what uses it or pass --set server.{name}=PORT"
                ) from None


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _environment(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def _has_open(pid: int, file: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.path.samestat(entry.stat(), file):
                    return True
    return False


def _signal(pids: Iterable[int], number: signal.Signals) -> list[int]:
    reached = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
            reached.append(pid)
    return [pid for pid in reached if alive(pid)]
