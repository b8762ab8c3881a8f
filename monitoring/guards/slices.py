"""`slices`: declared parts of the traffic, each by itself."""

from __future__ import annotations

from typing import Self

from monitoring.config import MonitorModel
from monitoring.detectors.slices import AGREEMENT, WORDS, Slices
from monitoring.event import Event
from monitoring.guards.agreement import agreement_limit
from monitoring.guards.base import Guard, Names, percent, ratio


class SlicesGuard(Guard[Slices]):
    name = "slices"

    @classmethod
    def build(cls, model: MonitorModel, variant: str) -> Self | None:
        """None for a model that declares no slice."""
        if not model.slices:
            return None
        settings = model.guards
        limit = min(0.9, settings.slices.factor * agreement_limit(model, variant))
        return cls(Slices(model.slices, limit, settings.errors.ratio))

    def raced(self, event: Event, error: bool, from_candidate: bool, share: float) -> bool:
        self.detector.request(event.slices, from_candidate, error, share, event.batch_key)
        return error and from_candidate and event.slices > 0

    def paired(self, event: Event) -> bool:
        self.detector.pair(event.slices, event.flips, event.rows)
        return event.flips > 0 and event.slices > 0

    def finding(self, names: Names) -> str:
        detector = self.detector
        if detector.no_data:
            return f"{names.variant} has no pair and no error in a declared slice yet"
        if not detector.failed:
            return (
                f"{names.variant}: none of {len(detector.names)} slices is found to be worse than the limit of "
                f"{percent(detector.limit)} disagreement or to have more than its share of errors"
            )
        found = "; ".join(self._told(one, names) for one in detector.named)
        return f"{names.variant}: {found}, among {len(detector.names)} slices"

    def _told(self, named: str, names: Names) -> str:
        detector = self.detector
        slice_, _, what = named.rpartition(": ")
        rows, flips, events, own = detector.seen[detector.names.index(slice_)]
        if what == WORDS[AGREEMENT]:
            return (
                f"in {slice_} it disagrees with {names.teacher} on {flips} of {rows} scored answers "
                f"{ratio(flips, rows)}, over the limit of {percent(detector.limit)}"
            )
        return (
            f"in {slice_} it caused {own} of {events} error events {ratio(own, events)} "
            f"with {percent(names.share)} of the traffic"
        )
