"""`interference`: a candidate that makes the baseline slow."""

from __future__ import annotations

from typing import Self

from monitoring.config import MonitorModel
from monitoring.detectors.interference import BLOCK_REQUESTS, SLOW_SHARE, Interference
from monitoring.event import Event
from monitoring.guards.base import Guard, Names, percent, ratio


class InterferenceGuard(Guard[Interference]):
    name = "interference"

    @classmethod
    def build(cls, model: MonitorModel, variant: str) -> Self:
        given, passing = model.guards.interference, model.guards.false_promotion
        return cls(Interference(given.margin, given.margin_ms, given.spells, pass_alpha=passing))

    def quiet(self, event: Event) -> bool:
        self.detector.learn(event.total_us, event.wall_ns)
        return False

    def raced(self, event: Event, error: bool, from_candidate: bool, share: float) -> bool:
        if not from_candidate:
            self.detector.observe(event.total_us, event.mono_ns)
        return False

    def finding(self, names: Names) -> str:
        detector = self.detector
        if not detector.reference_us:
            return (
                f"how slow the baseline is without {names.variant} is not known: that takes {BLOCK_REQUESTS} live "
                "requests while no candidate has traffic"
            )
        threshold = f"{detector.threshold_us / 1000:.1f} ms"
        if detector.no_data:
            return f"the baseline, held to {threshold}, has not been watched for a second with {names.variant} yet"
        return (
            f"with {names.variant} over {SLOW_SHARE * 100:g} % of the baseline's requests took longer than {threshold} "
            f"(p99 {detector.reference_us / 1000:.1f} ms before) in {detector.events} of {detector.observations} "
            f"spells {ratio(detector.events, detector.observations)}, "
            f"{'over' if detector.failed else 'held to'} the limit of {percent(detector.spells)}"
        )
