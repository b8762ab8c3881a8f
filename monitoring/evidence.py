"""From records to what the guards are told: one path for the running monitor and for a replay. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from monitoring.audits import Audits
from monitoring.config import MonitorModel
from monitoring.event import Event, is_divided
from monitoring.guard import ModelGuards
from monitoring.join import DELAYS_S, Answer, Joiner, LabelledPair
from monitoring.reliability import ModelReliability
from monitoring.returns import Asked, Returns
from serving.contract import Flag, Kind
from serving.packing import unpack_noise

Records = npt.NDArray[np.void]

_COLUMNS = (
    "kind", "series", "answered", "flags", "cause", "status", "epoch", "total_us", "batch_key", "request_key",
    "rows", "flips", "wall_ns", "mono_ns", "inclusion", "cls", "ref_cls", "prob", "ref_prob", "slices", "extra",
    "reason", "unit_key", "overlap", "energy",
)  # fmt: skip


def events(records: Records, variants: Sequence[str]) -> Iterator[tuple[int, Event]]:
    """Records of `contract.RECORD_DTYPE`, in order: (series id, event).

    Args:
        variants: the variant of each series id; one that is not there is named "".
    """
    known = len(variants)
    columns = [records[column].tolist() for column in _COLUMNS]
    for kind, series, answered, *rest in zip(*columns, strict=True):
        event = Event(
            kind, variants[series] if series < known else "", variants[answered] if answered < known else "", *rest
        )
        yield series, event


class Evidence:
    """The guards of one model, the labels that are joined for them, and how calibrated its variants are."""

    def __init__(self, name: str, config: MonitorModel) -> None:
        self.guards = ModelGuards(name, config)
        self.joiner = Joiner()
        self.returns = Returns() if config.kpis else None
        self.reliability = ModelReliability(config)
        self.saturation, self.noise = Audits(), Audits()  # shares in [0, 1], decibels

    def take(self, event: Event) -> None:
        """One record of this model, in order of arrival."""
        if event.kind == Kind.REQUEST:
            self.guards.observe(event)
            if event.status == 200:
                self._answer(event)
            if self.returns is not None and is_divided(event):
                asked = Asked(event.variant, event.unit_key, event.epoch)
                for found in self.returns.request(event.request_key, asked, event.wall_ns):
                    self.guards.returned(event, found)
        elif event.kind == Kind.LABEL:
            truth = self.joiner.label(event.request_key, event.cls, event.wall_ns)
            for pair in truth.pairs:
                self._labelled(pair, event)
            self._resolved(truth.answer, event)
        elif event.kind == Kind.KPI and self.returns is not None:
            value = self.returns.kpi(event.request_key, event.extra, event.prob, event.wall_ns)
            if value is not None:
                self.guards.returned(event, value)
        elif event.kind in (Kind.REFERENCE, Kind.SHADOW):
            self.guards.observe(event)
            self._pair(event)
        elif event.kind == Kind.AUDIT:
            self.guards.observe(event)
            self.saturation.add(event.variant, event.prob)
            self.noise.add(event.variant, unpack_noise(event.extra)[0])

    def calibration(self) -> dict[str, Any]:
        """`reports`: `monitoring.reliability.Report`s; `coverage`: how many answers were labelled, and how late."""
        counts = self.joiner.counts
        coverage = [
            {
                "variant": variant,
                "answers": answers,
                "labels": counts.joined.get(variant, 0),
                "delays": [
                    {"within_s": bound, "labels": sum(counts.delays.get(variant, ())[: at + 1])}
                    for at, bound in enumerate(DELAYS_S)
                ],
            }
            for variant, answers in sorted(counts.answers.items())
        ]
        return {"reports": self.reliability.reports(), "coverage": coverage}

    def _answer(self, event: Event) -> None:
        # Answers to testers are in no statistic, but their labels are joined all the same.
        cls = event.cls if event.flags & Flag.LIVE else -1
        answer = self.joiner.request(event.request_key, event.answered, event.wall_ns, cls, event.prob, event.epoch)
        self._resolved(answer, event)

    def _pair(self, event: Event) -> None:
        if event.answered != self.guards.teacher or event.variant == event.answered or event.status != 200:
            return
        if event.cls >= 0:
            self.reliability.score(event.variant, event.cls, event.prob, event.ref_prob)
        shadow = event.kind == Kind.SHADOW
        pair = self.joiner.pair(
            event.request_key, event.variant, event.cls, event.ref_cls, event.wall_ns, event.prob, shadow, event.epoch
        )
        if pair is not None:
            self._labelled(pair, event)

    def _labelled(self, pair: LabelledPair, event: Event) -> None:
        self.guards.labelled(pair.variant, pair.teacher_right, pair.candidate_right, event, pair.epoch, pair.shadow)
        if pair.shadow:  # an answer that was given is told by itself
            self.guards.resolved(pair.variant, pair.prob, pair.candidate_right, event, pair.epoch, shadow=True)

    def _resolved(self, answer: Answer | None, event: Event) -> None:
        if answer is not None:
            right = answer.cls == answer.label
            self.guards.resolved(answer.variant, answer.prob, right, event, answer.epoch)
            self.reliability.label(answer.variant, answer.cls, answer.prob, right)
