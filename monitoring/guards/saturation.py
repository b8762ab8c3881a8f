"""`saturation`: activations outside the ranges of an INT8 variant."""

from __future__ import annotations

import math
from typing import Self

from monitoring.config import MonitorModel
from monitoring.detectors.saturation import Saturation
from monitoring.event import Event
from monitoring.guards.base import Guard, Names

#: However often its own ranges were left when it was built, more than this is no INT8 model any more.
_MOST = 0.95


class SaturationGuard(Guard[Saturation]):
    name = "saturation"

    @classmethod
    def build(cls, model: MonitorModel, variant: str) -> Self | None:
        """None for a variant without calibrated ranges, or if nobody audits."""
        known, given = model.variants.get(variant), model.guards.saturation
        if known is None or known.saturation is None or not given.every_s:
            return None
        limit = min(_MOST, max(given.floor, given.factor * known.saturation))
        return cls(Saturation(limit, pass_alpha=model.guards.false_promotion))

    def audited(self, event: Event) -> bool:
        if not math.isnan(event.prob):
            self.detector.observe(event.prob, event.ref_prob)
        return False

    def finding(self, names: Names) -> str:
        detector = self.detector
        if detector.no_data:
            return f"{names.variant} has had no row audited for saturation yet"
        return (
            f"{_percent(detector.share)} of {names.variant}'s activations are outside their calibrated ranges, on "
            f"{detector.observations} audited rows (one tensor up to {_percent(detector.worst)}), "
            f"{'over' if detector.failed else 'held to'} the limit of {_percent(detector.limit)}"
        )


def _percent(share: float) -> str:
    return f"{share * 100:.2f} %"
