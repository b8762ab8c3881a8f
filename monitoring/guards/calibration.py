"""`calibration`: how sure the candidate is, against what that was worth when it was built."""

from __future__ import annotations

import math
from typing import Self

from monitoring.config import MonitorModel, ReliabilityMap
from monitoring.detectors.calibration import Calibration, Expected
from monitoring.event import Event
from monitoring.guards.base import Guard, Names, percent


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
    """What each bin was worth by labels. The error is of the frequency after Agresti and Coull: never zero."""
    found = []
    for rows, confidence, frequency in zip(reference.rows, reference.confidence, reference.frequency, strict=True):
        smoothed = (frequency * rows + 2.0) / (rows + 4.0)
        found.append(Expected(frequency - confidence, math.sqrt(smoothed * (1.0 - smoothed) / (rows + 4.0))))
    return found


def by_teacher(reference: ReliabilityMap) -> list[Expected] | None:
    """What each bin was worth by the teacher's probability; None if no teacher was there."""
    if reference.teacher is None or reference.teacher_sd is None:
        return None
    parts = zip(reference.rows, reference.confidence, reference.teacher, reference.teacher_sd, strict=True)
    return [Expected(mean - confidence, sd / math.sqrt(max(1, rows))) for rows, confidence, mean, sd in parts]
