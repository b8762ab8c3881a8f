"""From what was measured to what is taken: pure functions."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from serving.build.evidence.slices import LEAST_ROWS

T = TypeVar("T")
_SEED = 0

#: Largest change of a logit by its batch neighbours, in standard deviations of the logits, that batched serving bears.
NEIGHBOUR_LIMIT = 0.01


class Trial(NamedTuple):
    """One candidate as measured on the validation split.

    `divergence` is the mean KL to the model it stands in for, in nats; times are of one row, in milliseconds;
    `refused` says why it may not be taken, empty if it may.
    """

    name: str
    rows: int
    accuracy: float
    divergence: float
    p50_ms: float
    p99_ms: float
    bytes: int
    refused: str = ""


class Choice(NamedTuple):
    """The name of the candidate that is taken, and why it."""

    name: str
    why: str


def bounded(candidates: Iterable[T], limit: int) -> list[T]:
    """At most `limit` of them in their order: the first, and a random sample of the rest, always the same.

    Random search finds good settings with fewer trials than a coarser grid (Bergstra & Bengio, JMLR 2012).
    """
    every = list(candidates)
    if len(every) <= limit:
        return every
    kept = sorted(random.Random(_SEED).sample(range(1, len(every)), limit - 1))
    return [every[0], *(every[index] for index in kept)]


def refusal(measured: Mapping[str, Any], requirements: Mapping[str, Any]) -> str:
    """Why a candidate may not be taken, from its measurements and the recipe's requirements; empty if it may.

    `memory_mb_ceiling` and `policy` are left to the gate: a trial has no process of its own and not all the evidence.
    """
    if measured.get("failed"):
        return str(measured["failed"])
    if measured["neighbour_change"] > NEIGHBOUR_LIMIT:
        return (
            f"its answers depend on their batch neighbours (by {measured['neighbour_change']:.2f} standard deviations "
            f"of a logit, over {NEIGHBOUR_LIMIT}), so batched serving is refused"
        )
    if measured["accuracy"] < requirements["accuracy_floor"]:
        return f"accuracy {measured['accuracy']:.4f} is under accuracy_floor {requirements['accuracy_floor']}"
    if measured["disagreement"] > requirements["disagreement_ceiling"]:
        return (
            f"disagreement {measured['disagreement']:.4f} is over "
            f"disagreement_ceiling {requirements['disagreement_ceiling']}"
        )
    lowest, floor = measured["slice"], requirements.get("slice_floor")
    if floor is not None and lowest is None:
        return f"slice was not measured: no slice has {LEAST_ROWS} rows, and slice_floor {floor} asks for it"
    if floor is not None and lowest["accuracy"] < floor:
        return f"accuracy {lowest['accuracy']:.4f} on slice {lowest['name']} is under slice_floor {floor}"
    if (limit := requirements.get("p99_ms_ceiling")) is not None and measured["latency_ms"]["batch_1"]["p99"] > limit:
        return f"p99 of {measured['latency_ms']['batch_1']['p99']:.2f} ms is over p99_ms_ceiling {limit:g}"
    return ""


def choose(trials: Sequence[Trial], prefer: str) -> Choice | None:
    """The candidate to take; None if all are refused. See `SearchRecipe` for the rule.

    Ties go to the earlier one. Whatever the preference, only `speed` looks at measured times.
    """
    fit = [trial for trial in trials if not trial.refused]
    if not fit:
        return None
    if prefer == "fidelity":
        best = min(fit, key=lambda trial: trial.divergence)
        return Choice(best.name, f"nearest to the model it stands in for (mean KL {best.divergence:.5f} nats)")
    top = max(fit, key=lambda trial: trial.accuracy)
    error = math.sqrt(max(top.accuracy * (1 - top.accuracy), 1e-12) / top.rows)
    near = [trial for trial in fit if trial.accuracy >= top.accuracy - error]
    among = f"of the {len(near)} within one standard error ({error:.4f}) of the best accuracy {top.accuracy:.4f}"
    if prefer == "size":
        best = min(near, key=lambda trial: trial.bytes)
        return Choice(best.name, f"the smallest {among}")
    best = min(near, key=lambda trial: trial.p50_ms)
    return Choice(best.name, f"the fastest {among}")


def front(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """Which points no other beats (Pareto): as small in every coordinate and smaller in one. Small is good."""

    def beaten(point: tuple[float, ...]) -> bool:
        return any(
            other != point and all(theirs <= ours for theirs, ours in zip(other, point, strict=True))
            for other in points
        )

    return [not beaten(point) for point in points]
