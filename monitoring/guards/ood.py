"""`ood`: answers to inputs unlike those that the variant was built for."""

from __future__ import annotations

from typing import Self

from monitoring.config import MonitorModel
from monitoring.detectors.ood import Ood
from monitoring.event import Event
from monitoring.guards.base import Guard, Names, percent, ratio
from serving.contract import Cause, Kind

#: The share of held-out rows that lie over the threshold.
LEVEL = 0.01


class OodGuard(Guard[Ood]):
    name = "ood"

    @classmethod
    def build(cls, model: MonitorModel, variant: str) -> Self | None:
        """None for a variant of which no energies of held-out rows are known."""
        known = model.variants.get(variant)
        if known is None or known.energy_threshold is None:
            return None
        return cls(Ood(known.energy_threshold, LEVEL, model.guards.ood.margin))

    def answered(self, event: Event, invalid: bool) -> bool:
        return event.answered == event.variant and event.cause == Cause.NONE and self._look(event)

    def paired(self, event: Event) -> bool:
        return event.kind == Kind.SHADOW and self._look(event)

    def _look(self, event: Event) -> bool:
        if event.status != 200 or event.cls < 0:
            return False
        self.detector.observe(event.energy)
        return event.energy > self.detector.threshold

    def finding(self, names: Names) -> str:
        detector = self.detector
        if detector.no_data:
            return f"{names.variant} has given no answer with an energy yet"
        return (
            f"{detector.events} of {detector.observations} answers of {names.variant} "
            f"{ratio(detector.events, detector.observations)} have an energy over {detector.threshold:.3g}, as "
            f"{percent(detector.level)} of the held-out rows had, "
            f"{'over' if detector.failed else 'held to'} the limit of {percent(detector.limit)}"
        )
