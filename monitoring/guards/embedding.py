"""`embedding`: inputs unlike the training rows, by what the variant itself makes of them."""

from __future__ import annotations

from typing import Self

from monitoring.config import MonitorModel
from monitoring.detectors.embedding import Embedding
from monitoring.event import Event
from monitoring.guards.base import Guard, Names, percent, ratio
from monitoring.guards.ood import LEVEL


class EmbeddingGuard(Guard[Embedding]):
    name = "embedding"

    @classmethod
    def build(cls, model: MonitorModel, variant: str) -> Self | None:
        """None for a variant whose embeddings were not measured, or if nobody looks at them."""
        known = model.variants.get(variant)
        if known is None or not known.embeddings or not model.guards.ood.every_s:
            return None
        return cls(Embedding(LEVEL, model.guards.ood.margin))

    def audited(self, event: Event) -> bool:
        self.detector.observe(event.energy)
        return False

    def finding(self, names: Names) -> str:
        detector = self.detector
        if detector.no_data:
            return f"{names.variant} has had no row looked at for its embedding yet"
        return (
            f"{detector.events} of {detector.observations} audited rows of {names.variant} "
            f"{ratio(detector.events, detector.observations)} are further from its training rows than "
            f"{percent(detector.level)} of the held-out rows were, "
            f"{'over' if detector.failed else 'held to'} the limit of {percent(detector.limit)}"
        )
