"""Resident memory of processes, and whether a series of it is flat."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

MIB = 1024  # of the kilobytes that /proc counts in


class Resident(NamedTuple):
    """Resident memory of one process, MiB. `own` is anonymous memory; the rest is files and shared mappings."""

    total: float
    own: float


def resident(pid: int | str = "self") -> Resident:
    """Read it from /proc. Raises `OSError` if the process is gone."""
    total = own = 0
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "VmRSS":
            total = int(rest.split()[0])
        elif name == "RssAnon":
            own = int(rest.split()[0])
    if not total:
        raise ProcessLookupError(f"process {pid} has ended")
    return Resident(total / MIB, own / MIB)


def title(pid: int) -> str:
    """A short name of a process: Ray's title, `-m` and its module, or the program."""
    words = [word.decode(errors="replace") for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") if word]
    if not words:
        return "?"
    if words[0].startswith("ray::"):
        return words[0].removeprefix("ray::").partition(".")[0]  # after the dot comes the method that runs now
    if "-m" in words[:-1]:
        return " ".join(words[words.index("-m") + 1 :][:2])
    script = next((word for word in words[1:] if word.endswith(".py")), None)
    return Path(script if "python" in Path(words[0]).name and script else words[0]).name


def of_processes(pids: Iterable[int]) -> dict[tuple[int, str], Resident]:
    """Resident memory by process id and title; those that end meanwhile are left out."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            found[pid, title(pid)] = resident(pid)
    return found


def growth(series: Sequence[float]) -> float:
    """Relative change from the first to the last tenth of a series (at least one value each), by their means.

    Means, because one reading is a moment between a batch's arrays and their release.
    """
    count = max(1, len(series) // 10)
    first, last = sum(series[:count]) / count, sum(series[-count:]) / count
    return last / first - 1
