"""`errors`: requests that the candidate failed."""

from __future__ import annotations

from typing import Self

from monitoring.config import MonitorModel
from monitoring.detectors.errors import ALONE_LIMIT, ALONE_SHARE, Errors
from monitoring.event import WAITED, Event
from monitoring.guards.base import Guard, Names, percent, ratio


class ErrorsGuard(Guard[Errors]):
    name = "errors"

    @classmethod
    def build(cls, model: MonitorModel, variant: str) -> Self:
        settings = model.guards
        budget = min((1 - slo.objective for slo in model.slo if slo.name == "availability"), default=0.01)
        return cls(Errors(ratio=settings.errors.ratio, budget=budget, pass_alpha=settings.false_promotion))

    def raced(self, event: Event, error: bool, from_candidate: bool, share: float) -> bool:
        waited = event.cause in WAITED
        self.detector.observe(from_candidate, error, share, event.batch_key, waited=waited, at_ns=event.mono_ns)
        return error and from_candidate

    def finding(self, names: Names) -> str:
        detector, variant = self.detector, names.variant
        if detector.no_data:
            return f"{variant} has answered no live request yet"
        over = "over" if detector.failed else "held to"
        if names.share > ALONE_SHARE:
            failed, requests = detector.candidate_errors, detector.candidate_requests
            return (
                f"{variant} failed {failed} of {requests} requests {ratio(failed, requests)}, "
                f"{over} its own limit of {percent(ALONE_LIMIT)} (no other arm has traffic to compare with)"
            )
        if not detector.observations:
            return f"{variant} and the baseline had no error in {detector.candidate_requests} requests of {variant}"
        return (
            f"{variant} caused {detector.events} of {detector.observations} error events "
            f"{ratio(detector.events, detector.observations)} with {percent(names.share)} of the traffic, "
            f"{over} the limit of {percent(detector.last_limit)}"
        )
