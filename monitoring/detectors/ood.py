"""Are answers less at home in what the model knows than held-out rows were?"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from monitoring.detectors.base import Detector
from monitoring.detectors.betting import Drift


class Ood(Detector):
    """The share of answers whose energy is over a high quantile of the energies of held-out rows.

    Assumption: inputs come independently of each other, as far as a mean given the past goes: a spell of odd inputs
    from one user is found as a shift. Held-out rows were of the kind that the model was built for.
    Observation: X = 1{energy > threshold} of one answer, in {0, 1}; energy = -logsumexp(logits), which is high where
    no class is supported.
    Formula: E[X | past] <= level + margin, where `level` is the share of held-out rows over the threshold. It never
    passes: that answers look at home is no proof that inputs are.
    Source: Liu et al., "Energy-based out-of-distribution detection" (NeurIPS 2020), for the score; betting.py.

    Args:
        threshold: energy that a share `level` of the held-out rows exceeds.
        level, margin: in (0, 1), and together too.

    >>> guard = Ood(threshold=-2.0, level=0.01, margin=0.02)
    >>> next(n for n in range(1, 400) if guard.observe(-1.0 if n % 10 == 0 else -5.0))
    160
    """

    name: ClassVar[str] = "ood"
    FIELDS: ClassVar[tuple[str, ...]] = (*Detector.FIELDS, "_within")
    NULL: ClassVar[tuple[str, ...]] = (*Detector.NULL, "threshold", "level", "margin")

    def __init__(
        self,
        threshold: float = 0.0,
        level: float = 0.01,
        margin: float = 0.02,
        **budgets: float,
    ) -> None:
        self.threshold = threshold
        self.level = level
        self.margin = margin
        super().__init__(**budgets)

    def watch(self) -> None:
        """Go on for ever: alpha is one over the observations until a false alarm (`betting.Drift`)."""
        self._against = Drift()

    @property
    def limit(self) -> float:
        """Tolerated share of answers over the threshold."""
        return self.level + self.margin

    def reset(self) -> None:
        super().reset()
        self._within = 0  # answers under the threshold that are not in the evidence yet

    def observe(self, score: float) -> bool:
        """One answer; True when it makes the detector fail. A score that is not a number is no observation."""
        if math.isnan(score):
            return False
        self.observations += 1
        if score <= self.threshold:
            self._within += 1  # such an answer only lowers the evidence, so there is nothing to judge
            return False
        self.settle()
        self.events += 1
        self._against.update(1.0, self.limit)
        return self._judge()

    def settle(self) -> None:
        self._against.update(0.0, self.limit, self._within)
        self._within = 0

    def numbers(self) -> dict[str, Any]:
        return {"energy_threshold": round(self.threshold, 4), "limit": round(self.limit, 6)}
