"""`srm`: users that do not fall to the arms as configured."""

from __future__ import annotations

from typing import Self

from monitoring.config import MonitorModel
from monitoring.detectors.srm import PASS_RATIO, Srm
from monitoring.event import Event
from monitoring.guards.base import Guard, Names, percent


class SrmGuard(Guard[Srm]):
    name = "srm"

    @classmethod
    def build(cls, model: MonitorModel, variant: str) -> Self:
        return cls(Srm(pass_alpha=model.guards.false_promotion))

    def divided(self, event: Event, from_candidate: bool | None, share: float) -> bool:
        begun_ns = event.wall_ns - event.total_us * 1000
        self.detector.arrive(from_candidate, event.unit_key or event.request_key, share, begun_ns, event.wall_ns)
        return False

    def diverted(self) -> bool:
        self.detector.stop()
        return False

    def killed(self) -> bool:
        self.detector.interrupt()
        return False

    def finding(self, names: Names) -> str:
        detector = self.detector
        if detector.no_data:
            return f"{names.variant} and the baseline have had no user yet since its first request"
        found, expected = detector.events / detector.observations, detector.expected / detector.observations
        held = "not the configured" if detector.failed else "held to the configured"
        within = f", within a factor of {PASS_RATIO:g}" if detector.passed and not detector.failed else ""
        return (
            f"{names.variant} has {detector.events} of {detector.observations} users ({percent(found)}), "
            f"{held} {percent(expected)}{within}"
        )
