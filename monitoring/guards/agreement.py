"""`agreement`: answers unlike the teacher's."""

from __future__ import annotations

from typing import Self

from monitoring.config import GuardSettings, MonitorModel
from monitoring.detectors.agreement import Agreement
from monitoring.event import Event
from monitoring.guards.base import Guard, Names, percent, ratio


class AgreementGuard(Guard[Agreement]):
    name = "agreement"

    @classmethod
    def build(cls, model: MonitorModel, variant: str) -> Self:
        limit = agreement_limit(model, variant)
        return cls(Agreement(limit, gross_limit(limit, model.guards), pass_alpha=model.guards.false_promotion))

    def paired(self, event: Event) -> bool:
        self.detector.observe(event.flips, event.rows)
        return event.flips > 0

    def finding(self, names: Names) -> str:
        detector = self.detector
        if detector.no_data:
            return f"{names.variant} has no answer scored by {names.teacher} yet"
        kind, limit = ("gross limit", detector.gross) if detector.failed else ("limit", detector.limit)
        return (
            f"{names.variant} disagrees with {names.teacher} on {detector.events} of {detector.rows} scored answers "
            f"{ratio(detector.events, detector.rows)}, "
            f"{'over' if detector.failed or detector.breached else 'held to'} the {kind} of {percent(limit)}"
            f"{f', as {names.teacher} disagrees with itself as often' if detector.raised else ''}"
        )


def agreement_limit(model: MonitorModel, variant: str) -> float:
    """The share of flips a variant may show: the configured one, or its own on the test set and a margin."""
    settings = model.guards.agreement
    if settings.limit is not None:
        return settings.limit
    known = model.variants.get(variant)
    reference = known.reference_disagreement if known is not None else None
    return min(0.5, max(1e-4, (reference or 0.0) + settings.margin))


def gross_limit(limit: float, settings: GuardSettings) -> float:
    """The share of flips at which a variant is rolled back; halfway to 1 where the factor overshoots."""
    gross = limit * settings.agreement.gross_factor
    return gross if gross < 0.95 else limit + (1.0 - limit) / 2
