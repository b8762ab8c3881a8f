"""The one module that reads the system clock; everything else takes a `Clock`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """Where time comes from, so that tests can own it."""

    def monotonic_ns(self) -> int:
        """Nanoseconds of CLOCK_MONOTONIC: comparable across processes of one boot."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""
        ...


class SystemClock:
    """The machine's clocks."""

    monotonic_ns = staticmethod(time.monotonic_ns)
    wall_ns = staticmethod(time.time_ns)


def boot_id() -> int:
    """Which boot of the machine this is, a number; CLOCK_MONOTONIC begins anew with each. 0 if it cannot be known."""
    try:
        return int(Path("/proc/sys/kernel/random/boot_id").read_text()[:8], 16)
    except (OSError, ValueError):
        return 0


def suspended_ns() -> int:
    """For how long the machine has slept in this boot, nanoseconds; CLOCK_MONOTONIC stood still meanwhile."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()


class FakeClock:
    """A clock that moves only when told; for tests and replay."""

    def __init__(self, wall_ns: int = 1_700_000_000_000_000_000, monotonic_ns: int = 1_000_000_000) -> None:
        self._wall = wall_ns
        self._monotonic = monotonic_ns

    def monotonic_ns(self) -> int:
        return self._monotonic

    def wall_ns(self) -> int:
        return self._wall

    def advance(self, seconds: float) -> None:
        step = int(seconds * 1e9)
        self._wall += step
        self._monotonic += step
