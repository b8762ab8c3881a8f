"""From records to what the guards are told: one path for the running monitor and for a replay. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from monitoring.config import MonitorModel
from monitoring.guard import Event, ModelGuards
from monitoring.join import Joiner
from serving.contract import Kind

Records = npt.NDArray[np.void]

_COLUMNS = (
    "kind", "series", "answered", "flags", "cause", "status", "epoch", "total_us", "batch_key", "request_key",
    "rows", "flips", "wall_ns", "mono_ns", "inclusion", "cls", "ref_cls",
)  # fmt: skip


def events(records: Records, variants: Sequence[str]) -> Iterator[tuple[int, Event, int, int]]:
    """Records of `contract.RECORD_DTYPE`, in order: (series id, event, class, the teacher's class).

    Args:
        variants: the variant of each series id; one that is not there is named "".
    """
    known = len(variants)
    columns = [records[column].tolist() for column in _COLUMNS]
    for (kind, series, answered, flags, cause, status, epoch, total_us, batch_key, request_key, rows, flips, wall_ns,
         mono_ns, inclusion, cls, ref_cls) in zip(*columns, strict=True):  # fmt: skip
        event = Event(
            kind, variants[series] if series < known else "", variants[answered] if answered < known else "", flags,
            cause, status, epoch, total_us, batch_key, request_key, rows, flips, wall_ns, mono_ns, inclusion,
        )  # fmt: skip
        yield series, event, cls, ref_cls


class Evidence:
    """The guards of one model, and the labels that are joined for them."""

    def __init__(self, name: str, config: MonitorModel) -> None:
        self.guards = ModelGuards(name, config)
        self.joiner = Joiner()

    def take(self, event: Event, cls: int, ref_cls: int) -> None:
        """One record of this model, in order of arrival."""
        if event.kind == Kind.REQUEST:
            self.guards.observe(event)
            if event.status == 200:
                self.joiner.request(event.request_key, event.answered, event.wall_ns)
        elif event.kind == Kind.LABEL:
            for pair in self.joiner.label(event.request_key, cls, event.wall_ns):
                self.guards.labelled(pair.variant, pair.teacher_right, pair.candidate_right, event)
        elif event.kind in (Kind.REFERENCE, Kind.SHADOW):
            self.guards.observe(event)
            self._pair(event, cls, ref_cls)

    def _pair(self, event: Event, cls: int, ref_cls: int) -> None:
        if event.answered != self.guards.teacher or event.status != 200:
            return
        pair = self.joiner.pair(event.request_key, event.variant, cls, ref_cls, event.wall_ns)
        if pair is not None:
            self.guards.labelled(pair.variant, pair.teacher_right, pair.candidate_right, event)
