"""How far a candidate's answers are from the teacher's, for people to look at. Pure.

Beside the share of equal top classes: of row 0 the share of the k likeliest classes that are the teacher's k likeliest,
for models with more than k classes, and the Jensen-Shannon divergence and KL(teacher || candidate), which the gateway
works out over the teacher's likeliest classes and the rest together. Each has a confidence sequence, weighted
by the chance with which its request was chosen to be scored. What is shown belongs to the candidate's present arming.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from monitoring.event import Event
from monitoring.intervals import MeanSequence
from serving.packing import TOP_KS, unpack_divergence, unpack_overlap

#: KL has no upper bound: what is over this many nats counts as this many.
KL_MOST = 10.0
#: What is estimated, and the value that a full observation stands for.
SCALES = {"agreement": 1.0, **{f"top_{k}": 1.0 for k in TOP_KS}, "js": math.log(2.0), "kl": KL_MOST}


class Depth:
    """The sequences of one candidate."""

    def __init__(self) -> None:
        self._sequences = {name: MeanSequence() for name in SCALES}

    def reset(self) -> None:
        for sequence in self._sequences.values():
            sequence.reset()

    def add(self, event: Event) -> None:
        """One pair."""
        if event.rows <= 0:
            return
        self._sequences["agreement"].add(1.0 - event.flips / event.rows, event.inclusion)
        for k, common in unpack_overlap(event.overlap).items():
            self._sequences[f"top_{k}"].add(common / k, event.inclusion)
        divergence = unpack_divergence(event.extra)
        if divergence is not None:
            for name, value in zip(("js", "kl"), divergence, strict=True):
                self._sequences[name].add(value / SCALES[name], event.inclusion)

    def found(self, name: str) -> tuple[float, float, float] | None:
        """(mean, lower, upper) of one of SCALES, in its own unit; None without observations."""
        sequence, scale = self._sequences[name], SCALES[name]
        if not sequence.count:
            return None
        low, high = sequence.interval()
        return sequence.mean * scale, low * scale, high * scale

    def top_k(self) -> dict[str, float]:
        """The share of the k likeliest classes that are the teacher's, with its interval, as a verdict shows it."""
        shown: dict[str, float] = {}
        for k in TOP_KS:
            found = self.found(f"top_{k}")
            if found is not None:
                ends = zip(("", "_lower", "_upper"), found, strict=True)
                shown |= {f"top_{k}{end}": round(value, 5) for end, value in ends}
        return shown

    def state(self) -> dict[str, Any]:
        return {name: sequence.state() for name, sequence in self._sequences.items()}

    def load(self, state: Mapping[str, Sequence[float]]) -> None:
        for name, sequence in self._sequences.items():
            if name in state:  # else the monitor that stored this did not estimate it
                sequence.load(state[name])
