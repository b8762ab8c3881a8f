"""Is the baseline slower than it was before the candidate got traffic?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from monitoring.detectors.base import Detector

#: A block of the reference: at least so long (ns) and so many requests; blocks are kept for a day.
BLOCK_NS = 3_600_000_000_000
BLOCK_REQUESTS = 512
KEPT_NS = 24 * BLOCK_NS
#: A spell: at least so long (ns) and so many requests; a bad one has over SLOW_SHARE of them over the threshold.
SPELL_NS = 1_000_000_000
SPELL_REQUESTS = 20
SLOW_SHARE = 0.05
#: A clock that is so far behind was started anew.
_BACK_NS = 60_000_000_000
_LOOK = 256
_GROWTH = math.log(1.02)  # width of a histogram bin: 2 %
_BINS = 1200


class Reference:
    """What the baseline's latency is by itself: the highest of its quantiles of the last day's hours, microseconds.

    The highest hour, so that a baseline which is slower at noon by itself is not blamed on a candidate that came in
    the morning. Infinite until 512 requests were seen. Histograms have bins 2 % wide over [1 us, 10,000 s].

    >>> reference = Reference(0.99)
    >>> for number in range(512):
    ...     reference.observe(1000 + number, wall_ns=number)
    >>> 1480 < reference.value < 1540
    True
    """

    def __init__(self, level: float = 0.99) -> None:
        self.level = level
        self.reset()

    def reset(self) -> None:
        self.value = math.inf
        self._past: list[tuple[int, float]] = []  # end of a block, its quantile
        self._counts: dict[int, int] = {}
        self._seen = 0
        self._began_ns = 0

    def observe(self, latency_us: float, wall_ns: int) -> None:
        """A live request of the baseline while no candidate takes traffic; at `wall_ns`, nanoseconds of record time."""
        if not math.isfinite(latency_us):
            return
        if not self._seen:
            self._began_ns = wall_ns
        bin_ = min(_BINS, int(math.log(latency_us) / _GROWTH)) if latency_us > 1 else 0
        self._counts[bin_] = self._counts.get(bin_, 0) + 1
        self._seen += 1
        if self._seen < BLOCK_REQUESTS:
            return
        finished = wall_ns - self._began_ns >= BLOCK_NS
        if finished or self._seen % _LOOK == 0:
            self._look(wall_ns, finished)

    def _look(self, wall_ns: int, finished: bool) -> None:
        present = self._quantile()
        self._past = [(end, value) for end, value in self._past if wall_ns - KEPT_NS < end <= wall_ns]
        self.value = max([present, *(value for _, value in self._past)])
        if finished:
            self._past.append((wall_ns, present))
            self._counts, self._seen = {}, 0

    def _quantile(self) -> float:
        left = self._seen * (1.0 - self.level)
        for bin_ in sorted(self._counts, reverse=True):
            left -= self._counts[bin_]
            if left < 0:
                return math.exp((bin_ + 1) * _GROWTH)
        return math.inf

    def state(self) -> dict[str, Any]:
        return {
            "value": min(self.value, 1e300),
            "past": [list(item) for item in self._past],
            "counts": sorted(self._counts.items()),
            "seen": self._seen,
            "began_ns": self._began_ns,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Raises `KeyError`, `TypeError` or `ValueError` if it is no stored reference."""
        self.value = float(state["value"]) if state["value"] < 1e300 else math.inf
        self._past = [(int(end), float(value)) for end, value in state["past"]]
        self._counts = {int(bin_): int(count) for bin_, count in state["counts"]}
        self._seen, self._began_ns = int(state["seen"]), int(state["began_ns"])


class Interference(Detector):
    """The baseline's latency while a candidate takes traffic, against its own before that.

    A candidate that starves the machine slows both arms, and a race sees nothing. This is no comparison of arms but
    an absolute limit, so whatever else makes the baseline slow for minutes counts against the candidate too.
    Assumption: by itself the baseline's latency stays below the threshold, but in a share of the time that is no
    larger than `spells`; the threshold leaves room for a load that doubles it.
    Observation: a spell of at least a second and 20 live requests of the baseline, X = 1{over 5 % of them took longer
    than the threshold}, in {0, 1}. A burst of slow requests is one observation, however many it holds.
    Formula: threshold = q (1 + margin) + margin_ms, q the highest 99th percentile of an hour of the last day without
    candidates (`Reference`), fixed when the candidate gets its traffic; E[X | past] <= spells. Passes by the mirrored
    test. Source: betting.py; Podkopaev & Ramdas (ICLR 2022), for a risk against a level of its own past.

    Args:
        margin: tolerated relative excess over q, >= 0.
        margin_ms: tolerated absolute excess on top, milliseconds, >= 0.
        spells: tolerated share of bad spells, in (0, 1).

    >>> guard = Interference(margin=1.0, margin_ms=5.0, spells=0.5, alpha=0.002)
    >>> for tenth in range(600):  # ten requests a second, of 20 ms
    ...     guard.learn(20_000, wall_ns=tenth * 100_000_000)
    >>> next(tenth for tenth in range(600, 2000) if guard.observe(60_000, at_ns=tenth * 100_000_000))
    880
    """

    name: ClassVar[str] = "interference"
    FIELDS: ClassVar[tuple[str, ...]] = (
        *Detector.FIELDS, "reference", "reference_us", "_start_ns", "_requests", "_slow",
    )  # fmt: skip
    KEPT: ClassVar[tuple[str, ...]] = ("reference",)
    NULL: ClassVar[tuple[str, ...]] = (*Detector.NULL, "margin", "margin_ms", "spells")

    def __init__(self, margin: float = 1.0, margin_ms: float = 5.0, spells: float = 0.5, **budgets: float) -> None:
        self.reference = Reference()
        self.margin = margin
        self.margin_ms = margin_ms
        self.spells = spells
        super().__init__(**budgets)

    def reset(self) -> None:
        super().reset()
        self.reference.reset()
        self.reference_us = 0.0  # what it is held to in this arming; 0: not known yet
        self._start_ns = 0
        self._requests = self._slow = 0

    def learn(self, latency_us: float, wall_ns: int) -> None:
        """A live request of the baseline while no candidate takes traffic, at `wall_ns` (see `Reference`)."""
        self.reference.observe(latency_us, wall_ns)

    @property
    def threshold_us(self) -> float:
        """What the baseline must stay under, microseconds; of no meaning while `reference_us` is 0."""
        return self.reference_us * (1.0 + self.margin) + self.margin_ms * 1000.0

    def observe(self, latency_us: float, at_ns: int) -> bool:
        """One live request of the baseline while the candidate takes traffic; True when it makes the detector fail.

        Args:
            latency_us: duration as the client saw it, microseconds.
            at_ns: when it was answered, nanoseconds of the monotonic clock.
        """
        if not self.reference_us:
            if not math.isfinite(self.reference.value):
                return False
            self.reference_us = self.reference.value
        failed = False
        if at_ns < self._start_ns - _BACK_NS:
            self._requests = 0
        elif at_ns - self._start_ns >= SPELL_NS and self._requests >= SPELL_REQUESTS:
            failed = self._close()
        if not self._requests:
            self._start_ns, self._slow = at_ns, 0
        self._requests += 1
        self._slow += latency_us > self.threshold_us
        return failed

    def _close(self) -> bool:
        bad = self._slow > SLOW_SHARE * self._requests
        self._requests = 0
        self.observations += 1
        self.events += bad
        self._against.update(float(bad), self.spells)
        self._for.update(float(bad), self.spells)
        return self._judge()

    def numbers(self) -> dict[str, Any]:
        known = self.reference_us > 0
        return {
            "reference_ms": round(self.reference_us / 1000, 3) if known else None,
            "threshold_ms": round(self.threshold_us / 1000, 3) if known else None,
            "spells_limit": self.spells,
        }
