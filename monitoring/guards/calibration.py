"""`calibration`: how sure the candidate is, against what that was worth when it was built."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Self

import numpy as np

from monitoring.config import MonitorModel, ReliabilityMap
from monitoring.detectors.calibration import Calibration, Expected
from monitoring.event import Event
from monitoring.guards.base import Guard, Names, percent

#: Chance that what a sound variant was worth, measured on few rows, is off by more than is allowed for in some bin
#: and direction: under the chance of a false alarm that the guard has by default.
REFERENCE_CHANCE = 0.001
_GRID = 20_000


class CalibrationGuard(Guard[Calibration]):
    name = "calibration"

    @classmethod
    def build(cls, model: MonitorModel, variant: str) -> Self | None:
        """None for a variant whose manifest does not say how calibrated it was."""
        known = model.variants.get(variant)
        if known is None or known.reliability is None:
            return None
        reference, margin = known.reliability, model.guards.calibration.margin
        return cls(Calibration(reference.edges, by_labels(reference), by_teacher(reference), margin=margin))

    def paired(self, event: Event) -> bool:
        if event.cls >= 0:
            self.detector.score(event.prob, event.ref_prob)
        return False

    def resolved(self, event: Event, prob: float, right: bool) -> bool:
        self.detector.observe(prob, right)
        return not right

    def finding(self, names: Names) -> str:
        detector, variant = self.detector, names.variant
        if detector.no_data:
            return f"{variant} has no answer with a probability that was labelled or scored by {names.teacher} yet"
        labels = detector.failed or (not detector.breached and detector.log_evidence > detector.log_breach_evidence)
        worst = detector.worst(by_labels=labels) or detector.worst(by_labels=not labels)
        assert worst is not None
        labels = labels if detector.worst(by_labels=labels) is not None else not labels
        outcome, number = percent(worst["outcome"]), worst["observations"]
        found = (
            f"{variant} was right in {outcome} of {number} labelled answers"
            if labels
            else f"{names.teacher} gave {outcome} on average to {number} scored answers"
        )
        over = "over" if detector.failed or detector.breached else "held to"
        return (
            f"{found} of which {variant} was {percent(worst['confidence'])} sure, where {percent(worst['expected'])} "
            f"is what that was worth (bin {worst['bin'] + 1} of {len(detector.edges) + 1}), "
            f"{over} the margin of {percent(detector.margin)}"
        )


def by_labels(reference: ReliabilityMap) -> list[Expected]:
    """What each bin was worth by labels.

    A frequency over few rows is skewed most where it is near 1, so the bounds are Jeffreys' and not of a normal
    distribution: quantiles of Beta(right + 1/2, wrong + 1/2).
    """
    chance, found = _of_each(reference), []
    for rows, confidence, frequency in zip(reference.rows, reference.confidence, reference.frequency, strict=True):
        least, most = _bounds(round(frequency * rows), rows, chance)
        found.append(Expected(frequency - confidence, max(0.0, frequency - least), max(0.0, most - frequency)))
    return found


def by_teacher(reference: ReliabilityMap) -> list[Expected] | None:
    """What each bin was worth by the teacher's probability; None if no teacher was there."""
    if reference.teacher is None or reference.teacher_sd is None:
        return None
    errors = NormalDist().inv_cdf(1.0 - _of_each(reference))
    found = []
    parts = zip(reference.rows, reference.confidence, reference.teacher, reference.teacher_sd, strict=True)
    for rows, confidence, mean, sd in parts:
        off = errors * sd / math.sqrt(max(1, rows))
        found.append(Expected(mean - confidence, off, off))
    return found


def _bounds(right: int, rows: int, chance: float) -> tuple[float, float]:
    """Jeffreys' bounds of a share, each of which it is beyond with that chance.

    With x = sin(angle)^2 the Beta density is sin^(2 right) cos^(2 wrong), which has no pole and is summed up here:
    SciPy would take 26 MB for it.
    """
    angles = (np.arange(_GRID) + 0.5) * (math.pi / 2 / _GRID)
    logs = 2 * right * np.log(np.sin(angles)) + 2 * (rows - right) * np.log(np.cos(angles))
    sums = np.cumsum(np.exp(logs - logs.max()))
    least, most = np.sin(np.interp((chance, 1.0 - chance), sums / sums[-1], angles)) ** 2
    return float(least), float(most)


def _of_each(reference: ReliabilityMap) -> float:
    """The chance of each bin and direction."""
    return REFERENCE_CHANCE / (2 * len(reference.rows))
