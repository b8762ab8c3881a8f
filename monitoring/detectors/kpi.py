"""Is the business worse off with the candidate's answers?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import msgspec

from monitoring.detectors.base import Detector
from monitoring.detectors.betting import Betting, Mirrored
from monitoring.detectors.units import SeenUnits

#: Spreads a KPI's number over the 64 bits of a unit, so that each KPI has users of its own.
_SPREAD = 0x9E3779B97F4A7C15
_MASK64 = (1 << 64) - 1


class KpiTarget(msgspec.Struct, frozen=True):
    """What a KPI may be. Values are clipped to [low, high]; the candidate's mean may be worse by `margin`."""

    name: str
    low: float = 0.0
    high: float = 1.0
    higher_is_better: bool = True
    margin: float = 0.02

    def merit(self, value: float) -> float:
        """The value on a scale from 0 (worst) to 1 (best)."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return share if self.higher_is_better else 1.0 - share


class Compared:
    """One KPI of two arms, in pairs of what came in since the pair before."""

    def __init__(self, target: KpiTarget) -> None:
        self.target = target
        self._margin = target.margin / (target.high - target.low)
        self._against, self._for = Betting(upper=2.0), Mirrored(upper=2.0)
        self.reset()

    def reset(self) -> None:
        self._against.reset()
        self._for.reset()
        self.counts = [0, 0]  # values of the baseline, of the candidate
        self.sums = [0.0, 0.0]  # of their merits
        self._open_counts = [0, 0]
        self._open_sums = [0.0, 0.0]

    @property
    def log_evidence(self) -> float:
        return self._against.log_evidence

    @property
    def log_pass_evidence(self) -> float:
        return self._for.log_evidence

    def mean(self, arm: int) -> float:
        """Mean value of the baseline (0) or the candidate (1), in the KPI's own unit; NaN without values."""
        if not self.counts[arm]:
            return math.nan
        merit = self.sums[arm] / self.counts[arm]
        share = merit if self.target.higher_is_better else 1.0 - merit
        return self.target.low + share * (self.target.high - self.target.low)

    def update(self, from_candidate: bool, value: float) -> float | None:
        """One value; how much worse the candidate is (of the whole range) if it makes a pair, else None."""
        merit = self.target.merit(value)
        for counts, sums in ((self.counts, self.sums), (self._open_counts, self._open_sums)):
            counts[from_candidate] += 1
            sums[from_candidate] += merit
        if not all(self._open_counts):
            return None
        baseline, candidate = (total / n for total, n in zip(self._open_sums, self._open_counts, strict=True))
        self._open_counts, self._open_sums = [0, 0], [0.0, 0.0]
        worse = baseline - candidate
        self._against.update(1.0 + worse, 1.0 + self._margin)
        self._for.update(1.0 + worse, 1.0 + self._margin)
        return worse

    def over(self, worse: float) -> bool:
        """Whether a difference (of the whole range) is over the margin."""
        return worse > self._margin

    def state(self) -> list[Any]:
        return [
            self._against.state(), self._for.state(), list(self.counts), list(self.sums), list(self._open_counts),
            list(self._open_sums),
        ]  # fmt: skip

    def load(self, state: list[Any]) -> None:
        against, in_favour, counts, sums, open_counts, open_sums = state
        self._against.load(against)
        self._for.load(in_favour)
        self.counts, self._open_counts = [int(n) for n in counts], [int(n) for n in open_counts]
        self.sums, self._open_sums = [float(total) for total in sums], [float(total) for total in open_sums]


class _ByName(dict[str, Compared]):
    """The KPIs of one candidate."""

    def state(self) -> dict[str, Any]:
        return {name: compared.state() for name, compared in self.items()}

    def load(self, state: dict[str, Any]) -> None:
        for name, compared in self.items():
            compared.load(state[name])


class Kpi(Detector):
    """Business numbers that come back as feedback: the candidate's mean against the baseline's, less a margin.

    Assumption: users fall to the arms by a hash and one user's values say nothing about another's; whether and when a
    value comes back does not depend on it, given the arm. Each user counts once a KPI and arming. An arm that merely
    makes feedback rarer is not found.
    Observation: the mean of the baseline's values that came since the last pair, less that of the candidate's, on the
    scale of the declared range, Z in [-1, 1]; a pair is complete when each arm has one value.
    Formula: E[Z | past] <= margin, put to (Z + 1) / 2 by betting; with several KPIs the evidence is the mean of theirs.
    Passes when the mirrored test of every KPI does. Pairing in time keeps a trend that both arms share out of it.
    Source: betting.py; Shekhar & Ramdas, "Nonparametric two-sample testing by betting" (IEEE Trans. Inf. Theory 2023).

    Args:
        targets: the declared KPIs; without any, nothing is observed.

    >>> guard = Kpi([KpiTarget("conversion", margin=0.02)], alpha=0.002)
    >>> def user(n):  # the baseline converts every second user, the candidate every fifth
    ...     guard.observe("conversion", False, float(n % 2 == 0), unit=0)
    ...     return guard.observe("conversion", True, float(n % 5 == 0), unit=0)
    >>> next(n for n in range(1, 1000) if user(n))
    94
    """

    name: ClassVar[str] = "kpi"
    FIELDS: ClassVar[tuple[str, ...]] = (
        "observations", "events", "failed", "failed_at", "passed", "compared", "_units",
    )  # fmt: skip
    NULL: ClassVar[tuple[str, ...]] = (*Detector.NULL, "targets")

    def __init__(self, targets: Iterable[KpiTarget] = (), **budgets: float) -> None:
        self.targets = list(targets)
        self.compared = _ByName((target.name, Compared(target)) for target in self.targets)
        self._salts = {name: (at + 1) * _SPREAD & _MASK64 for at, name in enumerate(self.compared)}
        self._units = SeenUnits()
        super().__init__(**budgets)

    def reset(self) -> None:
        super().reset()
        self._units.reset()
        for compared in self.compared.values():
            compared.reset()

    def observe(self, kpi: str, from_candidate: bool, value: float, unit: int = 0) -> bool:
        """One value of a declared KPI; True when it makes the detector fail. `events`: pairs worse than the margin.

        Args:
            value: in the KPI's own unit; one that is no number counts for nothing.
            unit: keyed hash of the sticky user, 64 bits; 0 if there is none.
        """
        compared = self.compared.get(kpi)
        if compared is None or math.isnan(value) or not self._units.first(unit and unit ^ self._salts[kpi]):
            return False
        worse = compared.update(from_candidate, value)
        if worse is None:
            return False
        self.observations += 1
        self.events += compared.over(worse)
        return self._judge()

    @property
    def log_evidence(self) -> float:
        """log of the mean of the KPIs' evidence."""
        logs = [compared.log_evidence for compared in self.compared.values()]
        if not logs:
            return 0.0
        top = max(logs)
        return top + math.log(sum(math.exp(log - top) for log in logs) / len(logs))

    @property
    def log_pass_evidence(self) -> float:
        """log of the least evidence that a KPI is within its margin."""
        return min((compared.log_pass_evidence for compared in self.compared.values()), default=0.0)

    @property
    def worst(self) -> Compared | None:
        """The KPI that speaks most against the candidate; None before the first pair."""
        paired = [compared for compared in self.compared.values() if all(compared.counts)]
        return max(paired, key=lambda compared: compared.log_evidence, default=None)

    def numbers(self) -> dict[str, Any]:
        return {
            "kpis": {
                name: {
                    "baseline": _shown(compared.mean(0)),
                    "candidate": _shown(compared.mean(1)),
                    "baseline_users": compared.counts[0],
                    "candidate_users": compared.counts[1],
                    "margin": compared.target.margin,
                    "log_evidence": round(compared.log_evidence, 4),
                }
                for name, compared in self.compared.items()
            }
        }


def _shown(mean: float) -> float | None:
    return None if math.isnan(mean) else round(mean, 6)
