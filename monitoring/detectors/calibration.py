"""Is the candidate as sure of its answers as they are worth?"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from monitoring.detectors.base import Detector
from monitoring.detectors.betting import Averaged


class Expected(NamedTuple):
    """What a probability in one bin was worth when the variant was built, as far as some rows can tell.

    Args:
        shift: mean outcome less mean probability.
        below, above: by how much the truth may be under or over that, beside the margin.
    """

    shift: float
    below: float = 0.0
    above: float = 0.0


class Tally:
    """What was seen in each bin: observations, and the sums of p, of the outcome and of what was expected."""

    def __init__(self, bins: int) -> None:
        self._bins = bins
        self.reset()

    def reset(self) -> None:
        self.rows = [[0.0, 0.0, 0.0, 0.0] for _ in range(self._bins)]

    @property
    def answers(self) -> int:
        return int(sum(row[0] for row in self.rows))

    def add(self, bin_: int, prob: float, outcome: float, expected: float) -> None:
        row = self.rows[bin_]
        row[0] += 1.0
        row[1] += prob
        row[2] += outcome
        row[3] += expected

    def state(self) -> list[list[float]]:
        return [list(row) for row in self.rows]

    def load(self, state: list[list[float]]) -> None:
        if len(state) != self._bins:
            raise ValueError(f"expected {self._bins} bins, got {len(state)}")
        self.rows = [[float(value) for value in row] for row in state]


class Calibration(Detector):
    """Confidence against outcome, bin by bin and in both directions; by labels and by the teacher.

    Assumption: what a variant's probability p is worth does not differ from what it was worth on the rows it was
    measured on when it was built; which answers are labelled or scored does not depend on whether they are right.
    Observation: Y in [0, 1] of one answer: 1{the class it named is the true one}, or, with no label, the teacher's
    probability of that class. c(p) = p + (mean outcome - mean probability of p's bin at build time), clipped to [0, 1].
    Formula: for each bin and sign s, E[s (Y - c(p)) | past] <= margin + what the bin's reference may be off by. That
    must hold for all bins and signs at once: where a reference is off by more, the evidence against a sound variant
    grows for ever. c(p) is known before Y, so Y itself is put to c(p) + margin, and 1 - Y to 1 - c(p) + margin: the
    same nulls as of the rescaled (s (Y - c(p)) + 1) / 2, with a wider choice of bets. The e-values of all bins and
    signs are averaged, labels and teacher apart: evidence by labels makes it fail, evidence by the teacher is a breach.
    It never passes.
    Source: betting.py; averages of e-values: Vovk & Wang, "E-values" (Annals of Statistics 2021); calibration as a
    sequence of bounded means: Arnold, Henzi & Ziegel, "Sequentially valid tests for forecast calibration" (AOAS 2023).

    Args:
        edges: probabilities that part the bins, ascending.
        labels: what each bin was worth by labels; one more than `edges`.
        teacher: what each bin was worth by the teacher; None: only labels count.
        margin: tolerated difference, in (0, 1).

    >>> sure = [Expected(0.0, 0.0)] * 2
    >>> guard = Calibration([0.8], sure, sure, margin=0.02)
    >>> next(n for n in range(1, 500) if guard.observe(0.95, right=n % 4 != 0))
    64
    >>> next(n for n in range(1, 500) if (guard.score(0.95, by_teacher=0.75), guard.breached)[1])
    9
    """

    name: ClassVar[str] = "calibration"
    FIELDS: ClassVar[tuple[str, ...]] = (
        *Detector.FIELDS, "breached", "by_labels", "by_teacher", "seen_by_labels", "seen_by_teacher",
    )  # fmt: skip
    NULL: ClassVar[tuple[str, ...]] = (*Detector.NULL, "edges", "margin", "_labels", "_teacher")

    def __init__(
        self,
        edges: Sequence[float],
        labels: Sequence[Expected],
        teacher: Sequence[Expected] | None = None,
        margin: float = 0.02,
        **budgets: float,
    ) -> None:
        self.edges = list(edges)
        self.margin = margin
        self._labels = labels
        self._teacher = teacher
        bins = len(labels)
        self.by_labels, self.by_teacher = Averaged(2 * bins), Averaged(2 * bins)
        self.seen_by_labels, self.seen_by_teacher = Tally(bins), Tally(bins)
        super().__init__(**budgets)

    @property
    def hypotheses(self) -> int:
        """Bins times directions: so many e-values are averaged."""
        return 2 * len(self._labels)

    def worth(self, prob: float) -> tuple[float, float]:
        """What an answer of that probability was worth by labels, and how far below it the outcomes may be."""
        known = self._labels[bisect_right(self.edges, prob)]
        return min(max(prob + known.shift, 0.0), 1.0), self.margin + known.below

    def reset(self) -> None:
        super().reset()
        for part in (self.by_labels, self.by_teacher, self.seen_by_labels, self.seen_by_teacher):
            part.reset()

    @property
    def log_evidence(self) -> float:
        """log evidence by labels."""
        return self.by_labels.log_evidence

    @property
    def log_breach_evidence(self) -> float:
        """log evidence by the teacher."""
        return self.by_teacher.log_evidence

    def observe(self, prob: float, right: bool) -> bool:
        """An answer whose true class is known; True when it makes the detector fail.

        Args:
            prob: the candidate's probability of the class that it named, in [0, 1].
        """
        if self._put(prob, float(right), self._labels, self.by_labels, self.seen_by_labels):
            self.events += not right
        return self._judge()

    def score(self, prob: float, by_teacher: float) -> None:
        """An answer beside the teacher's probability of the class that the candidate named, in [0, 1]."""
        if self._teacher is None:
            return
        self._put(prob, by_teacher, self._teacher, self.by_teacher, self.seen_by_teacher)
        if not self.breached and self.by_teacher.most >= self.log_threshold <= self.log_breach_evidence:
            self.breached = True

    def _judge(self) -> bool:
        # The evidence is not over the largest product, and nothing here passes.
        return self.by_labels.most >= self.log_threshold and super()._judge()

    def _put(self, prob: float, outcome: float, worth: Sequence[Expected], evidence: Averaged, seen: Tally) -> bool:
        if math.isnan(prob) or math.isnan(outcome):
            return False
        prob, outcome = min(max(prob, 0.0), 1.0), min(max(outcome, 0.0), 1.0)
        bin_ = bisect_right(self.edges, prob)
        shift, below, above = worth[bin_]
        expected = min(max(prob + shift, 0.0), 1.0)
        self.observations += 1
        seen.add(bin_, prob, outcome, expected)
        evidence.update(2 * bin_, outcome, expected + self.margin + above)
        evidence.update(2 * bin_ + 1, 1.0 - outcome, 1.0 - expected + self.margin + below)
        return True

    def worst(self, by_labels: bool) -> dict[str, Any] | None:
        """The bin with the most evidence: `bin` from 0, `observations`, mean `confidence`, `outcome`, `expected`.

        `over`: it was surer than its answers were worth. None before the first observation.
        """
        evidence = self.by_labels if by_labels else self.by_teacher
        seen = self.seen_by_labels if by_labels else self.seen_by_teacher
        used = [bin_ for bin_, row in enumerate(seen.rows) if row[0]]
        if not used:
            return None
        most = max((2 * bin_ + sign for bin_ in used for sign in (0, 1)), key=evidence.log_evidence_of)
        count, *sums = seen.rows[most // 2]
        confidence, outcome, expected = (round(total / count, 4) for total in sums)
        return {
            "bin": most // 2,
            "over": bool(most % 2),
            "observations": int(count),
            "confidence": confidence,
            "outcome": outcome,
            "expected": expected,
        }

    def numbers(self) -> dict[str, Any]:
        labelled, scored = self.seen_by_labels.answers, self.seen_by_teacher.answers
        return {
            "margin": self.margin,
            "labelled": labelled,
            "scored": scored,
            "log_limit_evidence": round(self.log_breach_evidence, 4),
            **{
                f"{source}_{key}": value
                for source, found in (("labels", self.worst(True)), ("teacher", self.worst(False)))
                if found is not None
                for key, value in found.items()
            },
        }
