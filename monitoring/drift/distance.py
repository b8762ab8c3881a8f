"""How far a sample is from the reference, and how far chance alone would take it. Pure.

Numbers: the first Wasserstein distance over the reference's standard deviation (at least 0.001). Words: the
Jensen-Shannon distance in nats. Both are what Evidently calls `wasserstein` and `jensenshannon`.

A threshold is the larger of a least distance that anybody cares about and what a stable stream exceeds, in any of the
columns together, with a chance of `false_alarm`: two samples of the sizes at hand are drawn from the reference over and
over, the same rows for all columns, and the quantile of the largest of the distances, each over its own 95th
percentile, is taken (the max-T method of Westfall & Young, 1993). This supposes independent rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
#: A column's values: float64 [n], or words as objects [n].
Values = npt.NDArray[Any]

LEAST_SPREAD = 0.001
#: From this share of equal values on, a column of numbers is told as `usual` or `other`: its distance would hang on
#: values too rare for the reference to show.
CONSTANT_SHARE = 0.99
USUAL, OTHER = "usual", "other"
#: Values are held within these quantiles of the reference: a few far out would decide the distance, and whether the
#: reference has some of them is chance.
TAILS = (0.02, 0.98)
#: Resamples that a threshold is taken from, and rows of the reference that they are drawn from at most.
RESAMPLES, RESAMPLED_ROWS, _CHUNK = 4000, 2000, 200


def is_words(values: Values) -> bool:
    return values.dtype.kind not in "fiu"


def wasserstein(reference: Values, current: Values) -> float:
    """First Wasserstein distance of two samples of numbers over the reference's standard deviation.

    >>> wasserstein(np.array([0.0, 2.0]), np.array([1.0, 3.0]))
    1.0
    """
    both = np.concatenate([reference, current])
    order = np.argsort(both, kind="stable")
    steps = np.concatenate([np.full(len(reference), 1 / len(reference)), np.full(len(current), -1 / len(current))])
    gaps = np.diff(both[order])
    return float(np.abs(np.cumsum(steps[order])[:-1]) @ gaps / max(float(np.std(reference)), LEAST_SPREAD))


def jensen_shannon(reference: Values, current: Values) -> float:
    """Jensen-Shannon distance of the frequencies of two samples of words, in [0, sqrt(ln 2)].

    >>> round(jensen_shannon(np.array(["a", "b"]), np.array(["a", "a"])), 4)
    0.4645
    """
    words = sorted({*reference.tolist(), *current.tolist()})
    shares = [np.array([np.count_nonzero(side == word) for word in words]) / len(side) for side in (reference, current)]
    return float(_jensen_shannon(*(share[None] for share in shares))[0])


def _jensen_shannon(p: Floats, q: Floats) -> Floats:
    """Distance of each row of `p` to the same of `q`."""
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = sum(np.where(side > 0, side * np.log(side / middle), 0.0).sum(axis=1) for side in (p, q))
    distance: Floats = np.sqrt(np.maximum(np.asarray(parts), 0.0) / 2)
    return distance


def simplified(reference: Values, current: Values) -> tuple[Values, Values]:
    """Both without what is too rare for the reference to tell of.

    Numbers that hardly ever vary in the reference become words; others are held within its `TAILS`. Words stay.
    """
    if is_words(reference) or not len(reference):
        return reference, current
    values, counts = np.unique(reference, return_counts=True)
    usual = values[counts.argmax()]
    if counts.max() < CONSTANT_SHARE * len(reference):
        low, high = np.quantile(reference, TAILS)
        return np.clip(reference, low, high), np.clip(current, low, high)
    before, after = (np.where(side == usual, USUAL, OTHER).astype(object) for side in (reference, current))
    return before, after


def thresholds(
    reference: Mapping[str, Values], rows: int, *, false_alarm: float, least: float, resamples: int = RESAMPLES
) -> dict[str, float]:
    """The distance of each column from which on it counts as drifted.

    Args:
        reference: columns of one length, simplified.
        rows: of the sample that is compared with it.
        false_alarm: chance that a stable stream exceeds any of them; at least 2 / resamples for a steady answer.
        least: no threshold is under this.
        resamples: drawn, always the same ones.
    """
    if not reference:
        return {}
    rng = np.random.default_rng(0)
    length = len(next(iter(reference.values())))
    kept = rng.permutation(length)[:RESAMPLED_ROWS]
    columns = [values[kept] for values in reference.values()]
    distances = np.concatenate(
        [_resampled(columns, length, rows, rng, min(_CHUNK, resamples - at)) for at in range(0, resamples, _CHUNK)]
    )
    scales = np.maximum(np.quantile(distances, 0.95, axis=0), 1e-9)
    factor = float(np.quantile((distances / scales).max(axis=1), 1 - false_alarm, method="higher"))
    return {name: max(least, factor * float(scale)) for name, scale in zip(reference, scales, strict=True)}


def _resampled(columns: Sequence[Values], length: int, rows: int, rng: np.random.Generator, count: int) -> Floats:
    """Distances [count, columns] between pairs of samples of `length` and `rows` rows."""
    n = len(columns[0])
    even = np.full(n, 1 / n)
    before = rng.multinomial(length, even, size=count) / length
    after = rng.multinomial(rows, even, size=count) / rows
    found = []
    for values in columns:
        if is_words(values):
            words, index = np.unique(values.astype(str), return_inverse=True)
            member = np.zeros((n, len(words)))
            member[np.arange(n), index] = 1.0
            found.append(_jensen_shannon(before @ member, after @ member))
        else:
            order = np.argsort(values, kind="stable")
            gaps = np.diff(values[order].astype(np.float64))
            ahead = np.abs(np.cumsum((before - after)[:, order], axis=1))[:, :-1]
            found.append(ahead @ gaps / max(float(np.std(values)), LEAST_SPREAD))
    return np.stack(found, axis=1)
