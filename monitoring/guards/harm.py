"""`harm`: what the teacher gets right and the candidate wrong."""

from __future__ import annotations

from typing import Self

from monitoring.config import MonitorModel
from monitoring.detectors.harm import Harm
from monitoring.event import Event
from monitoring.guards.base import Guard, Names, percent, ratio


class HarmGuard(Guard[Harm]):
    name = "harm"

    @classmethod
    def build(cls, model: MonitorModel, variant: str) -> Self:
        return cls(Harm(budget=model.guards.harm.budget, pass_alpha=model.guards.false_promotion))

    def labelled(self, event: Event, teacher_right: bool, candidate_right: bool) -> bool:
        self.detector.observe(teacher_right, candidate_right)
        return teacher_right and not candidate_right

    def finding(self, names: Names) -> str:
        detector = self.detector
        if detector.no_data:
            return f"{names.variant} has no labelled pair yet"
        return (
            f"{names.variant} got wrong what {names.teacher} got right in {detector.events} of "
            f"{detector.observations} labelled pairs {ratio(detector.events, detector.observations)}, "
            f"{'over' if detector.failed else 'held to'} the budget of {percent(detector.budget)}"
        )
