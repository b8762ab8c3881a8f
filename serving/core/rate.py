"""A token bucket whose rate may change from call to call. Pure: time is given."""

from __future__ import annotations

#: Seconds' worth of tokens that a quiet time saves up.
BURST_S = 0.5


class TokenBucket:
    """Admits `rate` units a second on average, and what `BURST_S` allows at once.

    A request larger than the bucket is admitted when the bucket is full, and the debt is waited off by those after it.
    """

    __slots__ = ("_at_ns", "_level")

    def __init__(self) -> None:
        self._level: float | None = None  # None: full
        self._at_ns = 0

    def take(self, units: int, rate: float, now_ns: int) -> float:
        """Take `units` if there are as many: 0, else the seconds until there are.

        Args:
            rate: units a second, over 0.
            now_ns: a monotonic clock, nanoseconds.
        """
        full = max(1.0, rate * BURST_S)
        level = full if self._level is None else min(full, self._level + (now_ns - self._at_ns) / 1e9 * rate)
        self._at_ns = now_ns
        needed = min(float(units), full)
        if level < needed:
            self._level = level
            return (needed - level) / rate
        self._level = level - units
        return 0.0
