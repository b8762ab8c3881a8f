"""Latency percentiles in fixed memory: a log-linear histogram and the table printed from it."""

from __future__ import annotations

import math
from collections.abc import Iterable

#: Linear cells per power of two: a percentile is at most 1/128 (0.8 %) above the true one.
_BITS = 7
_CELLS = 1 << _BITS
#: 2**37 microseconds is 38 hours; anything longer is counted in the last cell.
_POWERS = 30

QUANTILES: tuple[float, ...] = (0.5, 0.9, 0.99, 0.999)


class Histogram:
    """Counts of durations in microseconds, 0.8 % wide, from 1 µs to 38 hours, in a few thousand cells.

    `quantile` is the nearest-rank definition: the smallest recorded value that at least
    ceil(q·n) values do not exceed, rounded up to the end of its cell and never above the maximum.
    The layout is that of HdrHistogram (Tene): exact below 128 µs, then 128 cells per doubling.
    """

    def __init__(self) -> None:
        self._counts = [0] * (_CELLS * (_POWERS + 1))
        self.count = 0
        self.total_us = 0
        self.min_us = 0
        self.max_us = 0

    def add(self, microseconds: float) -> None:
        """Count one duration; negative ones (a clock stepped back) count as zero."""
        value = max(0, round(microseconds))
        self._counts[min(_cell(value), len(self._counts) - 1)] += 1
        self.min_us = value if self.count == 0 else min(self.min_us, value)
        self.max_us = max(self.max_us, value)
        self.count += 1
        self.total_us += value

    def merge(self, others: Iterable[Histogram]) -> Histogram:
        """A new histogram of this one and the others."""
        merged = Histogram()
        for one in (self, *others):
            if one.count:
                merged._counts = [mine + theirs for mine, theirs in zip(merged._counts, one._counts, strict=True)]
                merged.min_us = one.min_us if merged.count == 0 else min(merged.min_us, one.min_us)
                merged.max_us = max(merged.max_us, one.max_us)
                merged.count += one.count
                merged.total_us += one.total_us
        return merged

    def quantile(self, q: float) -> float | None:
        """Microseconds at quantile `q` in [0, 1]; None if nothing was counted."""
        if not self.count:
            return None
        rank, seen = max(1, math.ceil(q * self.count)), 0
        for cell, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                return float(max(self.min_us, min(_upper(cell), self.max_us)))
        return float(self.max_us)

    @property
    def mean(self) -> float | None:
        return self.total_us / self.count if self.count else None

    def milliseconds(self) -> dict[str, float | int | None]:
        """`{"count", "mean", "p50", "p90", "p99", "p99.9", "max"}`, durations in milliseconds."""
        row: dict[str, float | int | None] = {"count": self.count, "mean": _ms(self.mean)}
        row |= {label(q): _ms(self.quantile(q)) for q in QUANTILES}
        row["max"] = _ms(self.max_us if self.count else None)
        return row


def label(q: float) -> str:
    """0.999 -> "p99.9"."""
    return f"p{q * 100:g}"


def _cell(value: int) -> int:
    power = max(0, value.bit_length() - 1 - _BITS)
    return power * _CELLS + (value >> power)


def _upper(cell: int) -> int:
    """The largest value that falls into a cell."""
    if cell < _CELLS:
        return cell
    power = cell // _CELLS - 1
    return ((cell % _CELLS + _CELLS + 1) << power) - 1


def _ms(microseconds: float | None) -> float | None:
    return None if microseconds is None else round(microseconds / 1000, 3)
