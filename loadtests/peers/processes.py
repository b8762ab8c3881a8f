"""A server as its processes: started, found again whoever their parent is now, accounted for, ended."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from serving.processes import alive, end

MARK = "CANARIUM_BENCH"
_TICK = os.sysconf("SC_CLK_TCK")


class Processes:
    """One server: the command that started it and everything that descends from it."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], log: Path) -> None:
        self._token = secrets.token_hex(8)
        self._known: set[int] = set()
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._root = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, **env, MARK: self._token},
            )

    @property
    def ended(self) -> bool:
        """Whether the command itself has ended."""
        return self._root.poll() is not None

    def pids(self) -> list[int]:
        """All processes that carry the mark, or descend from one that did (titles overwrite the environment)."""
        mark = f"{MARK}={self._token}".encode()
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, IndexError, ValueError):
                    pid = int(entry.name)
                    parents[pid] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    if pid not in self._known and mark in (entry / "environ").read_bytes().split(b"\0"):
                        self._known.add(pid)
        self._known.intersection_update(parents)
        grown = True
        while grown:
            new = {pid for pid, parent in parents.items() if parent in self._known and pid not in self._known}
            self._known |= new
            grown = bool(new)
        return [pid for pid in sorted(self._known) if alive(pid)]

    def cpu_seconds(self) -> dict[str, float]:
        """CPU seconds used so far, by process title."""
        used: dict[str, float] = {}
        for pid in self.pids():
            with contextlib.suppress(OSError, IndexError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                name = title(pid)
                used[name] = used.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / _TICK
        return used

    def memory_mib(self) -> float:
        """Resident memory, pages shared between processes counted once (PSS), MiB."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError, IndexError, ValueError):
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += int(rollup.partition("\nPss:")[2].split()[0])
        return total / 1024

    def output(self) -> str:
        """The last lines it wrote."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return "\n".join(lines[-12:])

    def stop(self, grace_s: float = 15.0) -> None:
        """Ask it to end as Ctrl-C does, then end whatever is left."""
        self.pids()
        with contextlib.suppress(ProcessLookupError):
            self._root.send_signal(signal.SIGINT)
        deadline = time.monotonic() + grace_s
        while not self.ended and time.monotonic() < deadline:
            time.sleep(0.05)
        end(self.pids(), 2)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._root.wait(5)


def title(pid: int) -> str:
    """A short name: what the process calls itself, else its program or script."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").split()
    if not words:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    if words[0].startswith("ray::"):
        return words[0].partition(".")[0]  # what follows is the method that runs just now
    if "::" in words[0] or words[0].endswith(":"):
        return " ".join(words)[:60]
    program = os.path.basename(words[0])
    if program.startswith("python"):
        for word in words[1:]:
            if not word.startswith("-") and word.endswith(".py"):
                return os.path.basename(word)
        if "-m" in words[:-1]:
            return words[words.index("-m") + 1]
        if "-c" in words:
            return "python worker"
        return os.path.basename(next((word for word in words[1:] if not word.startswith("-")), program))[:40]
    return program
