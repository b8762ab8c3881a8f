"""Is the candidate in the slow tail more often than its share of the traffic explains?"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from monitoring.detectors.base import BatchRace, Detector

#: Baseline observations between two freezes of the threshold, and before the first one.
BLOCK = 256
WARM_UP = 512
#: Share of the past that a block keeps: the threshold follows the load within some 10,000 requests.
KEEP = 0.98
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
        self._seen = 0
        self.value = math.inf  # microseconds; no value is over it during the warm-up

    def observe(self, value_us: float) -> None:
        """One duration in microseconds."""
        bin_ = min(_BINS, int(math.log(value_us) / _GROWTH)) if value_us > 1 else 0
        self._counts[bin_] = self._counts.get(bin_, 0.0) + 1.0
        self._seen += 1
        if self._seen >= WARM_UP and self._seen % BLOCK == 0:
            self._freeze()

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
        return {"counts": sorted(self._counts.items()), "seen": self._seen, "value": min(self.value, 1e300)}

    def load(self, state: dict[str, Any]) -> None:
        self._counts = {int(bin_): float(count) for bin_, count in state["counts"]}
        self._seen = int(state["seen"])
        self.value = float(state["value"]) if state["value"] < 1e300 else math.inf


class Latency(Detector):
    """A race of tail events between the candidate and the baseline.

    Assumption: units fall to the arms by a hash, so slowness common to both strikes the candidate
    with the share w of its traffic; a slow batch is one event (see `BatchRace`).
    Observation: at each tail event X = 1{it came from the candidate}, in {0, 1}. The baseline has one
    over its own running quantile q, the candidate over q (1 + margin) + margin_ms; q is frozen from
    the past for 256 baseline requests at a time.
    Formula: not being slower by more than the margin means E[X | past] <= w. Passes by the mirrored
    test. When w is 1 there is nobody to race against and nothing is concluded.
    Source: Lindon & Malek (NeurIPS 2022) for the race; Howard & Ramdas, "Sequential estimation of
    quantiles" (Bernoulli 2022), for comparing tails at a quantile; betting.py for the evidence.

    Args:
        quantile: level of q, in (0.5, 1).
        margin: tolerated relative excess, >= 0.
        margin_ms: tolerated absolute excess in milliseconds, >= 0.

    >>> guard = Latency(quantile=0.99, margin=0.25, margin_ms=5.0)
    >>> for n in range(1024):
    ...     _ = guard.observe(from_candidate=False, latency_us=1000 + n % 100, share=0.05)
    >>> next(n for n in range(1, 100) if guard.observe(from_candidate=True, latency_us=50_000, share=0.05))
    3
    """

    name: ClassVar[str] = "latency"
    FIELDS: ClassVar[tuple[str, ...]] = (
        *Detector.FIELDS, "race", "baseline", "candidate_requests", "candidate_slow", "last_limit",
    )  # fmt: skip

    def __init__(self, quantile: float = 0.99, margin: float = 0.25, margin_ms: float = 5.0, **budgets: float) -> None:
        self.quantile = quantile
        self.margin = margin
        self.margin_ms = margin_ms
        self.race = BatchRace()
        self.baseline = RunningQuantile(quantile)
        super().__init__(**budgets)

    def reset(self) -> None:
        super().reset()
        self.race.reset()
        self.baseline.reset()
        self.candidate_requests = 0
        self.candidate_slow = 0
        self.last_limit = 0.0

    @property
    def threshold_us(self) -> float:
        """What the candidate must stay under, microseconds; infinite during the warm-up."""
        return self.baseline.value * (1.0 + self.margin) + self.margin_ms * 1000.0

    def observe(self, from_candidate: bool, latency_us: float, share: float, batch_key: int = 0) -> bool:
        """One live request of either arm; True when it makes the detector fail.

        Args:
            latency_us: duration as the client saw it, microseconds.
            share: the candidate's configured share of the two arms' traffic, in [0, 1].
        """
        expected = self.race.share(share)
        self.race.count(from_candidate, batch_key)
        if from_candidate:
            self.candidate_requests += 1
            slow = latency_us > self.threshold_us
            self.candidate_slow += slow
        else:
            slow = latency_us > self.baseline.value
            if not math.isnan(latency_us):
                self.baseline.observe(latency_us)
        if not slow or not self.race.first(batch_key):
            return False
        self.observations += 1
        self.events += from_candidate
        self.last_limit = expected
        value = 1.0 if from_candidate else 0.0
        self._against.update(value, expected)
        self._for.update(value, expected)
        return self._judge()

    def numbers(self) -> dict[str, Any]:
        known = math.isfinite(self.baseline.value)
        return {
            "share_limit": round(self.last_limit, 6),
            "baseline_quantile_ms": round(self.baseline.value / 1000, 3) if known else None,
            "threshold_ms": round(self.threshold_us / 1000, 3) if known else None,
            "candidate_requests": self.candidate_requests,
            "candidate_slow": self.candidate_slow,
        }
