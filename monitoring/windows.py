"""One row a second for each variant: what the console's charts show. Pure; time is in the records."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

#: Seconds kept; and for how many seconds a second stays open for late records.
KEPT_S = 900
OPEN_S = 5
_GROWTH = np.log(1.05)
_BINS = 290  # 5 % wide, from 50 us up to more than a minute
_FLOOR_US = 50.0

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class _Open(msgspec.Struct):
    requests: int = 0
    errors: int = 0
    rows: int = 0
    flips: int = 0
    latency: dict[int, int] = {}


class VariantState(msgspec.Struct):
    """Closed seconds as rows (second, requests, errors, p50_ms, p99_ms, rows, flips), and open ones."""

    closed: list[tuple[int, int, int, float, float, int, int]] = []
    open: dict[int, _Open] = {}


class Window:
    """The last minutes of one variant."""

    def __init__(self, state: VariantState | None = None) -> None:
        self._rows = {row[0]: row for row in state.closed} if state else {}
        self._open = dict(state.open) if state else {}
        self._newest = max((*self._rows, *self._open), default=0)
        self.late = 0

    def requests(self, seconds: Ints, durations_us: Floats, errors: npt.NDArray[np.bool_]) -> None:
        """Answered requests: second since the epoch, duration and whether each was an error."""
        for second in np.unique(seconds).tolist():
            mine = seconds == second
            row = self._row(second)
            if row is None:
                self.late += int(mine.sum())
                continue
            row.requests += int(mine.sum())
            row.errors += int(errors[mine].sum())
            bins, counts = np.unique(_bin(durations_us[mine]), return_counts=True)
            for bin_, count in zip(bins.tolist(), counts.tolist(), strict=True):
                row.latency[bin_] = row.latency.get(bin_, 0) + count

    def pairs(self, seconds: Ints, rows: Ints, flips: Ints) -> None:
        """Rows scored by the teacher too, and how many of them differ."""
        for second in np.unique(seconds).tolist():
            mine = seconds == second
            row = self._row(second)
            if row is not None:
                row.rows += int(rows[mine].sum())
                row.flips += int(flips[mine].sum())

    def series(self, now_s: int, seconds: int) -> dict[str, list[Any]]:
        """`rps`, `p50_ms`, `p99_ms`, `error_ratio`, `agreement` for the `seconds` before `now_s`;
        what is unknown in a second without requests or pairs is None."""
        columns: dict[str, list[Any]] = {name: [] for name in ("rps", "p50_ms", "p99_ms", "error_ratio", "agreement")}
        for second in range(now_s - seconds, now_s):
            _, requests, errors, p50, p99, rows, flips = self._get(second)
            columns["rps"].append(requests)
            columns["p50_ms"].append(round(p50, 3) if requests else None)
            columns["p99_ms"].append(round(p99, 3) if requests else None)
            columns["error_ratio"].append(round(errors / requests, 5) if requests else None)
            columns["agreement"].append(round(1 - flips / rows, 5) if rows else None)
        return columns

    def rate(self, now_s: int, seconds: int) -> float:
        """Answered requests a second over the `seconds` before `now_s`."""
        return sum(self._requests(second) for second in range(now_s - seconds, now_s)) / seconds

    def _requests(self, second: int) -> int:
        open_ = self._open.get(second)
        return open_.requests if open_ is not None else self._get(second)[1]

    def state(self) -> VariantState:
        return VariantState(sorted(self._rows.values()), self._open)

    def _get(self, second: int) -> tuple[int, int, int, float, float, int, int]:
        open_ = self._open.get(second)
        if open_ is not None:
            return _close(second, open_)
        return self._rows.get(second, (second, 0, 0, 0.0, 0.0, 0, 0))

    def rewind(self, now_s: int) -> None:
        """Drop what is from the future: the clock was set back, and what comes now would be late for as long.

        By the clock, not by how late a record is: after a pause the spools are read one after the other.
        """
        if self._newest <= now_s + OPEN_S:
            return
        self._rows = {second: row for second, row in self._rows.items() if second <= now_s}
        self._open = {second: row for second, row in self._open.items() if second <= now_s}
        self._newest = max((*self._rows, *self._open), default=0)

    def _row(self, second: int) -> _Open | None:
        """The open second, or None if it is closed already."""
        if second > self._newest:
            self._newest = second
            self._retire()
        if second <= self._newest - OPEN_S:
            return None
        return self._open.setdefault(second, _Open())

    def _retire(self) -> None:
        for second in [second for second in self._open if second <= self._newest - OPEN_S]:
            self._rows[second] = _close(second, self._open.pop(second))
        for second in [second for second in self._rows if second <= self._newest - KEPT_S]:
            del self._rows[second]


def _bin(durations_us: Floats) -> Ints:
    scaled = np.log(np.maximum(durations_us, _FLOOR_US) / _FLOOR_US) / _GROWTH
    bins: Ints = np.minimum(scaled.astype(np.int64), _BINS)
    return bins


def _close(second: int, row: _Open) -> tuple[int, int, int, float, float, int, int]:
    p50, p99 = _quantile(row.latency, 0.5), _quantile(row.latency, 0.99)
    return (second, row.requests, row.errors, p50, p99, row.rows, row.flips)


def _quantile(latency: dict[int, int], level: float) -> float:
    """Milliseconds; the geometric middle of the bin, 0 without any."""
    left = sum(latency.values()) * level
    for bin_ in sorted(latency):
        left -= latency[bin_]
        if left <= 0:
            return float(_FLOOR_US * np.exp((bin_ + 0.5) * _GROWTH) / 1000)
    return 0.0
