"""Does the candidate get wrong what the teacher gets right?"""

from __future__ import annotations

from typing import Any, ClassVar

from monitoring.detectors.base import Detector


class Harm(Detector):
    """Harmful flips among the pairs whose true class is known.

    Assumption: which pairs are labelled does not depend on how the candidate answered.
    Observation: X = 1{teacher right, candidate wrong} of one labelled pair, in {0, 1}.
    Formula: E[X | past] <= budget; passes by the mirrored test.
    Source: betting.py; Podkopaev & Ramdas (ICLR 2022). The negative flip rate is Yan et al.,
    "Positive-congruent training" (CVPR 2021).

    Args:
        budget: tolerated share of harmful flips, in (0, 1).

    >>> guard = Harm(budget=0.03)
    >>> next(n for n in range(1, 400) if guard.observe(teacher_right=True, candidate_right=n % 5 != 0))
    35
    """

    name: ClassVar[str] = "harm"
    NULL: ClassVar[tuple[str, ...]] = (*Detector.NULL, "budget")

    def __init__(self, budget: float = 0.03, **budgets: float) -> None:
        self.budget = budget
        super().__init__(**budgets)

    def observe(self, teacher_right: bool, candidate_right: bool) -> bool:
        """One labelled pair; True when it makes the detector fail."""
        harmful = teacher_right and not candidate_right
        self.observations += 1
        self.events += harmful
        self._against.update(1.0 if harmful else 0.0, self.budget)
        self._for.update(1.0 if harmful else 0.0, self.budget)
        return self._judge()

    def numbers(self) -> dict[str, Any]:
        return {"budget": self.budget}
