"""`invalid_output`: answers that no client may see."""

from __future__ import annotations

from typing import Self

from monitoring.config import MonitorModel
from monitoring.detectors.invalid_output import InvalidOutput
from monitoring.event import Event
from monitoring.guards.base import Guard, Names
from serving.contract import Cause, Flag


class InvalidOutputGuard(Guard[InvalidOutput]):
    name = "invalid_output"

    @classmethod
    def build(cls, model: MonitorModel, variant: str) -> Self:
        settings = model.guards
        return cls(InvalidOutput(limit=settings.invalid_output.limit, pass_alpha=settings.false_promotion))

    def answered(self, event: Event, invalid: bool) -> bool:
        valid_before = bool(event.flags & Flag.BASELINE_VALID)
        if invalid or event.cause == Cause.NONE:
            self.detector.observe(invalid, valid_before, event.batch_key)
        return invalid and (valid_before or event.status < 500)

    def finding(self, names: Names) -> str:
        detector = self.detector
        if detector.no_data:
            return f"{names.variant} has answered no live request yet"
        return f"{names.variant} gave {detector.events} invalid outputs in {detector.observations} live answers"

    def conclusion(self, word: str) -> str:
        limit = self.detector.limit
        return f", the limit is {limit}" if word == "fail" else f", under the limit of {limit}"
