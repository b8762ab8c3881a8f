"""Answers that no client may see: NaN, Inf, a wrong shape, an unknown class."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from monitoring.detectors.base import BatchRace, Detector

#: A pass says that at most this share of the answers is invalid.
PASS_LIMIT = 0.001


class InvalidOutput(Detector):
    """A hard count: the candidate fails at its `limit`-th invalid answer.

    Assumption: a sound model never answers so where the baseline answers the same input validly;
    the count needs no statistics. Inputs on which the baseline fails too count against nobody, and
    a batch counts once: its answers may be wrong for one and the same reason.
    Observation: one live request of the candidate, X = 1{invalid and the baseline valid}.
    Formula: fails when sum X >= limit; shown as log count against log limit. Passes by the mirrored
    test of E[X] >= 0.001. Source: betting.py for the pass; the count is a rule, not a test.

    Args:
        limit: the count at which it fails, >= 1.

    >>> guard = InvalidOutput(limit=3)
    >>> outcomes = [True, False, True, True]
    >>> next(n for n, invalid in enumerate(outcomes, start=1) if guard.observe(invalid, baseline_valid=True))
    4
    """

    name: ClassVar[str] = "invalid_output"
    FIELDS: ClassVar[tuple[str, ...]] = (*Detector.FIELDS, "_clean", "batches")
    NULL: ClassVar[tuple[str, ...]] = (*Detector.NULL, "limit")

    def __init__(self, limit: int = 3, **budgets: float) -> None:
        self.limit = limit
        self.batches = BatchRace()
        super().__init__(**budgets)

    def reset(self) -> None:
        super().reset()
        self.batches.reset()
        self._clean = 0

    def observe(self, invalid: bool, baseline_valid: bool, batch_key: int = 0) -> bool:
        """One live answer of the candidate; True when it makes the detector fail."""
        if invalid and not baseline_valid:
            return False
        self.observations += 1
        if not invalid:
            self._clean += 1
            return False
        self._settle()
        self._for.update(1.0, PASS_LIMIT)
        if not self.batches.first(batch_key):
            return False
        self.events += 1
        return self._judge()

    def settle(self) -> None:
        """Work the clean answers so far into the evidence for a pass."""
        self._settle()
        self._judge()

    def _settle(self) -> None:
        self._for.update(0.0, PASS_LIMIT, self._clean)
        self._clean = 0

    @property
    def log_evidence(self) -> float:
        """log of the count (0 for none and one)."""
        return math.log(max(1, self.events))

    @property
    def log_threshold(self) -> float:
        """log of the limit; a limit of one is kept above the zero that no event has."""
        return math.log(self.limit) if self.limit > 1 else 0.5

    def _judge(self) -> bool:
        if self.log_pass_evidence >= -math.log(self.pass_alpha):
            self.passed = True
        if self.failed or self.events < self.limit:
            return False
        self.failed = True
        return True

    def numbers(self) -> dict[str, Any]:
        return {"limit": self.limit}
