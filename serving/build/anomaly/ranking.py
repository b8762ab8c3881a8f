"""How well a score ranks anomalies above normal rows, with intervals: pure functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Ranking(NamedTuple):
    """Average precision and area under the ROC curve, one value for each set of row weights: float64 [draws]."""

    average_precision: np.ndarray
    roc_auc: np.ndarray


#: Sets of weights that are ranked at once, so that the sums stay in the processor's cache.
_AT_ONCE = 16


def rank(scores: np.ndarray, classes: np.ndarray, weights: np.ndarray) -> Ranking:
    """Rank rows by score, the highest first; rows of equal score stand at one threshold.

    Average precision is sum over thresholds k of (R_k - R_{k-1}) P_k, without interpolation.

    Args:
        scores: [n].
        classes: [n], 1 for an anomaly.
        weights: [draws, n], how often each row counts.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    anomaly = classes[order] == 1
    parts = [_rank(weights[at : at + _AT_ONCE, order], anomaly, ends) for at in range(0, len(weights), _AT_ONCE)]
    return Ranking(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _rank(taken: np.ndarray, anomaly: np.ndarray, ends: np.ndarray) -> Ranking:
    hits = np.cumsum(taken * anomaly, axis=1, dtype=np.int64)[:, ends]
    seen = np.cumsum(taken, axis=1, dtype=np.int64)[:, ends]
    gained = np.diff(hits, axis=1, prepend=0)
    precision = np.divide(hits, seen, out=np.zeros(hits.shape), where=seen > 0)
    misses = seen - hits
    # Each anomaly wins against the normal rows behind its threshold, and half against those at it.
    behind = misses[:, -1:] - misses + np.diff(misses, axis=1, prepend=0) / 2
    positives, negatives = hits[:, -1], misses[:, -1]
    return Ranking(
        (gained * precision).sum(axis=1) / positives, (gained * behind).sum(axis=1) / (positives * negatives)
    )


def resamples(classes: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Weights of a stratified bootstrap (Efron & Tibshirani, 1993), int16 [draws, n]: each class keeps its size."""
    chance = np.random.default_rng(seed)
    weights = np.zeros((draws, len(classes)), np.int16)
    for label in np.unique(classes):
        rows = np.flatnonzero(classes == label)
        share = np.full(len(rows), 1 / len(rows))
        weights[:, rows] = chance.multinomial(len(rows), share, size=draws)
    return weights


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of bootstrap values."""
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


class Ranked(NamedTuple):
    """A score's ranking of all rows, and of each resample."""

    whole: Ranking
    drawn: Ranking

    def summary(self) -> dict[str, object]:
        """Average precision and ROC AUC of all rows, each with its bootstrap interval."""
        return {
            "average_precision": float(self.whole.average_precision[0]),
            "average_precision_ci": interval(self.drawn.average_precision),
            "roc_auc": float(self.whole.roc_auc[0]),
            "roc_auc_ci": interval(self.drawn.roc_auc),
        }


def ranked(scores: np.ndarray, classes: np.ndarray, weights: np.ndarray) -> Ranked:
    """Rank all rows, and the resamples that `weights` [draws, n] describe."""
    return Ranked(rank(scores, classes, np.ones((1, len(classes)), np.int16)), rank(scores, classes, weights))


def mean_difference(ours: Sequence[Ranked], theirs: Sequence[Ranked], seed: int) -> dict[str, object]:
    """Mean average precision of some trainings minus that of others, with its interval.

    The interval is of what another test split and other seeds would give: the resamples of the rows, each moved as far
    as Student's t says that the mean over so few seeds is off. Resampling the seeds instead would take five of the same
    method for different in one case of six, and two in one of two.

    Args:
        ours: the runs of one seed after another, all of the same resamples.
        theirs: those of the same seeds, or the one run that all of them are held against.
        seed: of the order in which resamples are moved.

    Returns:
        `difference` and `ci`; None with one seed, which says nothing of others.
    """
    from scipy.stats import t

    pairs = list(zip(ours, theirs if len(theirs) > 1 else [*theirs] * len(ours), strict=True))
    whole, drawn = (
        np.array([one.average_precision - other.average_precision for one, other in found])
        for found in ([(a.whole, b.whole) for a, b in pairs], [(a.drawn, b.drawn) for a, b in pairs])
    )
    difference = float(whole.mean())
    if len(pairs) == 1:
        return {"difference": difference, "ci": None}
    draws = drawn.shape[1]
    off = t.ppf((np.arange(draws) + 0.5) / draws, len(pairs) - 1) * whole.std(ddof=1) / np.sqrt(len(pairs))
    moved = drawn.mean(axis=0) + np.random.default_rng(seed).permutation(off)
    return {"difference": difference, "ci": interval(moved)}
