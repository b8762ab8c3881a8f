"""`latency`: the candidate in the slow tail."""

from __future__ import annotations

import math
from typing import Self

from monitoring.config import MonitorModel
from monitoring.detectors.latency import Latency
from monitoring.event import Event
from monitoring.guards.base import Guard, Names, percent, ratio


class LatencyGuard(Guard[Latency]):
    name = "latency"

    @classmethod
    def build(cls, model: MonitorModel, variant: str) -> Self:
        margins = model.guards.latency
        return cls(
            Latency(margins.quantile, margins.margin, margins.margin_ms, pass_alpha=model.guards.false_promotion)
        )

    def idle(self, event: Event) -> bool:
        self.detector.baseline.observe(event.total_us)  # so that the threshold is known when traffic comes
        return False

    def raced(self, event: Event, error: bool, from_candidate: bool, share: float) -> bool:
        slow_before = self.detector.candidate_slow
        self.detector.observe(from_candidate, event.total_us, share, event.batch_key, event.mono_ns)
        return self.detector.candidate_slow > slow_before

    def finding(self, names: Names) -> str:
        detector, variant = self.detector, names.variant
        if detector.no_data:
            if detector.candidate_requests and names.share >= 1.0:
                return f"{variant} has all the traffic: there is no baseline to compare its latency with"
            if detector.candidate_requests and not math.isfinite(detector.baseline.value):
                return f"{variant}: the baseline's p{detector.quantile * 100:g} is not known yet"
            if detector.candidate_requests:
                return (
                    f"{variant} and the baseline had no slow event in {detector.candidate_requests} requests "
                    f"of {variant}"
                )
            return f"{variant} has answered no live request yet"
        return (
            f"{variant} caused {detector.events} of {detector.observations} slow events "
            f"{ratio(detector.events, detector.observations)} (over {detector.threshold_us / 1000:.1f} ms, "
            f"{detector.baseline.value / 1000:.1f} ms for the baseline) with {percent(names.share)} of the traffic, "
            f"{'over' if detector.failed else 'held to'} the limit of {percent(detector.last_limit)}"
        )
