"""Is the candidate in the slow tail more often than its share of the traffic explains?"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from monitoring.detectors.base import BatchRace, Detector
from monitoring.detectors.betting import Betting

#: Baseline observations between two freezes of the threshold, and before the first one.
BLOCK = 256
WARM_UP = 512
#: Share of the past that a block keeps: the threshold follows the load within some 10,000 requests.
KEEP = 0.98
#: Shortest spell, ns: longer than a stall of a worker, its queue included.
SPELL_NS = 500_000_000
#: A clock that is so far behind was started anew.
_BACK_NS = 60_000_000_000
_GROWTH = math.log(1.02)  # width of a histogram bin: 2 %
_BINS = 1200


class RunningQuantile:
    """A quantile of the past, frozen for a block at a time, so that it is known before what it judges.

    A histogram with bins 2 % wide over [1 us, 10,000 s], older blocks fading by 2 % a block.

    >>> quantile = RunningQuantile(0.99)
    >>> for value in range(1, 1025):
    ...     quantile.observe(value)
    >>> 1000 < quantile.value < 1040
    True
    """

    def __init__(self, level: float) -> None:
        self.level = level
        self.reset()

    def reset(self) -> None:
        self._counts: dict[int, float] = {}
        self._block: list[float] = []  # durations that are in no bin yet: sorted in a block at a time
        self._seen = 0
        self.value = math.inf  # microseconds; no value is over it during the warm-up

    def observe(self, value_us: float) -> None:
        """One duration in microseconds."""
        self._block.append(value_us)
        self._seen += 1
        if self._seen % BLOCK == 0:
            self._sort()
            if self._seen >= WARM_UP:
                self._freeze()

    def _sort(self) -> None:
        bins = np.log(np.maximum(self._block, 1.0)) / _GROWTH
        for bin_ in np.minimum(bins, _BINS).astype(np.int64).tolist():
            self._counts[bin_] = self._counts.get(bin_, 0.0) + 1.0
        self._block.clear()

    def _freeze(self) -> None:
        left = sum(self._counts.values()) * (1.0 - self.level)
        for bin_ in sorted(self._counts, reverse=True):
            left -= self._counts[bin_]
            if left < 0:
                self.value = math.exp((bin_ + 1) * _GROWTH)
                break
        faded = {bin_: count * KEEP for bin_, count in self._counts.items()}
        self._counts = {bin_: count for bin_, count in faded.items() if count > 1e-3}

    def state(self) -> dict[str, Any]:
        if self._block:
            self._sort()
        return {
            "level": self.level,
            "counts": sorted(self._counts.items()),
            "seen": self._seen,
            "value": min(self.value, 1e300),
        }

    def load(self, state: dict[str, Any]) -> None:
        if state["level"] != self.level:
            self.reset()  # it is learned again within 512 requests
            return
        self._counts = {int(bin_): float(count) for bin_, count in state["counts"]}
        self._block.clear()
        self._seen = int(state["seen"])
        self.value = float(state["value"]) if state["value"] < 1e300 else math.inf


class Spells(Betting):
    """Was the candidate slow over time, or once? One observation a spell, however many requests it holds.

    A stall of one worker makes everything in its queue slow at once: many tail events, one cause.
    A spell is at least half a second long and has requests of both arms; X is the candidate's share
    of slow requests less the baseline's, in [-1, 1], put to E[X | past] <= 0. Stalls that strike both
    arms' workers alike, common ones, and a slow start of a few seconds are then no evidence.

    >>> spells = Spells()
    >>> for tenth in range(200):
    ...     spells.count(tenth % 2 == 0, slow=tenth % 2 == 0, at_ns=tenth * 100_000_000)
    >>> round(spells.log_evidence, 1)
    23.1
    """

    def __init__(self) -> None:
        super().__init__(upper=2.0)
        self._forget()

    def reset(self) -> None:
        super().reset()
        self._forget()

    def _forget(self) -> None:
        self._start_ns = 0
        self._requests, self._slow = [0, 0], [0, 0]  # baseline, candidate

    def count(self, from_candidate: bool, slow: bool, at_ns: int) -> None:
        """One live request of an arm, at a time of the monotonic clock."""
        if at_ns < self._start_ns - _BACK_NS:
            self._forget()
        elif at_ns - self._start_ns >= SPELL_NS and all(self._requests):
            baseline, candidate = (slow / all_ for slow, all_ in zip(self._slow, self._requests, strict=True))
            self.update(1.0 + candidate - baseline, 1.0)
            self._forget()
        if not any(self._requests):
            self._start_ns = at_ns
        self._requests[from_candidate] += 1
        self._slow[from_candidate] += slow

    def state(self) -> list[float]:
        return [*super().state(), self._start_ns, *self._requests, *self._slow]

    def load(self, state: list[float]) -> None:
        super().load(state[:-5])
        self._start_ns, *counts = (int(value) for value in state[-5:])
        self._requests, self._slow = counts[:2], counts[2:]


class Latency(Detector):
    """A race of tail events between the candidate and the baseline, confirmed over time.

    Assumption: units fall to the arms by a hash, so slowness common to both strikes the candidate
    with the share w of its traffic; a slow batch is one event (see `BatchRace`).
    Observation: at each tail event X = 1{it came from the candidate}, in {0, 1}. The baseline has one
    over its own running quantile q, the candidate over q (1 + margin) + margin_ms; q is frozen from
    the past for 256 baseline requests at a time.
    Formula: not being slower by more than the margin means E[X | past] <= w. The evidence is the
    lesser of the race's and that of `Spells`, which a burst of slow requests with one cause does not
    move: either null keeps it small. Passes by the mirrored test of the race. When w is 1 there is
    nobody to race against and nothing is concluded.
    Source: Lindon & Malek (NeurIPS 2022) for the race; Howard & Ramdas, "Sequential estimation of
    quantiles" (Bernoulli 2022), for comparing tails at a quantile; betting.py for the evidence.

    Args:
        quantile: level of q, in (0.5, 1).
        margin: tolerated relative excess, >= 0.
        margin_ms: tolerated absolute excess in milliseconds, >= 0.

    >>> guard = Latency(quantile=0.99, margin=0.25, margin_ms=5.0)
    >>> for n in range(1024):
    ...     _ = guard.observe(from_candidate=False, latency_us=1000 + n % 100, share=0.05, at_ns=n * 1_000_000)
    >>> def second(n, slow_us):  # a second in which each arm answers once
    ...     guard.observe(False, 1000, share=0.05, at_ns=n * 1_000_000_000)
    ...     return guard.observe(True, slow_us, share=0.05, at_ns=n * 1_000_000_000 + 1)
    >>> next(n for n in range(2, 100) if second(n, slow_us=50_000))
    16
    """

    name: ClassVar[str] = "latency"
    FIELDS: ClassVar[tuple[str, ...]] = (
        *Detector.FIELDS, "race", "spells", "baseline", "candidate_requests", "candidate_slow", "last_limit",
    )  # fmt: skip
    KEPT: ClassVar[tuple[str, ...]] = ("baseline",)
    NULL: ClassVar[tuple[str, ...]] = (*Detector.NULL, "quantile", "margin", "margin_ms")

    def __init__(self, quantile: float = 0.99, margin: float = 0.25, margin_ms: float = 5.0, **budgets: float) -> None:
        self.quantile = quantile
        self.margin = margin
        self.margin_ms = margin_ms
        self.race = BatchRace()
        self.spells = Spells()
        self.baseline = RunningQuantile(quantile)
        super().__init__(**budgets)

    def reset(self) -> None:
        super().reset()
        self.race.reset()
        self.spells.reset()
        self.baseline.reset()
        self.candidate_requests = 0
        self.candidate_slow = 0
        self.last_limit = 0.0

    def learn(self, latency_us: float) -> None:
        """A live request of the baseline while the candidate has no traffic."""
        if not math.isnan(latency_us):
            self.baseline.observe(latency_us)

    @property
    def log_evidence(self) -> float:
        """log of the lesser of the race's evidence and the spells'."""
        return min(self._against.log_evidence, self.spells.log_evidence)

    @property
    def threshold_us(self) -> float:
        """What the candidate must stay under, microseconds; infinite during the warm-up."""
        return self.baseline.value * (1.0 + self.margin) + self.margin_ms * 1000.0

    def observe(
        self, from_candidate: bool, latency_us: float, share: float, batch_key: int = 0, at_ns: int = 0
    ) -> bool:
        """One live request of either arm; True when it makes the detector fail.

        Args:
            latency_us: duration as the client saw it, microseconds.
            share: the candidate's configured share of the two arms' traffic, in [0, 1].
            at_ns: when it was answered, nanoseconds of the monotonic clock.
        """
        if from_candidate:
            self.candidate_requests += 1
            slow = latency_us > self.threshold_us
            self.candidate_slow += slow
        else:
            slow = latency_us > self.baseline.value
            self.learn(latency_us)
        if slow:  # what is known before this request
            expected, least = self.race.share(share), self.race.least(share)
        self.race.count(from_candidate, batch_key)
        self.spells.count(from_candidate, slow, at_ns)
        if not slow or not self.race.first(batch_key):
            return False
        self.observations += 1
        self.events += from_candidate
        self.last_limit = expected
        value = 1.0 if from_candidate else 0.0
        self._against.update(value, expected)
        self._for.update(value, least)
        return self._judge()

    def numbers(self) -> dict[str, Any]:
        known = math.isfinite(self.baseline.value)
        return {
            "share_limit": round(self.last_limit, 6),
            "baseline_quantile_ms": round(self.baseline.value / 1000, 3) if known else None,
            "log_race_evidence": round(self._against.log_evidence, 4),
            "log_spell_evidence": round(self.spells.log_evidence, 4),
            "threshold_ms": round(self.threshold_us / 1000, 3) if known else None,
            "candidate_requests": self.candidate_requests,
            "candidate_slow": self.candidate_slow,
        }
