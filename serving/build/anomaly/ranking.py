"""How well a score ranks anomalies above normal rows, with intervals: pure functions of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Ranking(NamedTuple):
    """Average precision and area under the ROC curve, one value for each set of row weights: float64 [draws]."""

    average_precision: np.ndarray
    roc_auc: np.ndarray


def rank(scores: np.ndarray, classes: np.ndarray, weights: np.ndarray) -> Ranking:
    """Rank rows by score, the highest first; rows of equal score stand at one threshold.

    Average precision is sum over thresholds k of (R_k - R_{k-1}) P_k, without interpolation.

    Args:
        scores: [n].
        classes: [n], 1 for an anomaly.
        weights: [draws, n], how often each row counts.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    taken = weights[:, order].astype(np.float64)
    hits = np.cumsum(taken * (classes[order] == 1), axis=1)[:, ends]
    seen = np.cumsum(taken, axis=1)[:, ends]
    gained = np.diff(hits, axis=1, prepend=0.0)
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    misses = seen - hits
    # Each anomaly wins against the normal rows behind its threshold, and half against those at it.
    behind = misses[:, -1:] - misses + np.diff(misses, axis=1, prepend=0.0) / 2
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


def summary(scores: np.ndarray, classes: np.ndarray, weights: np.ndarray) -> dict[str, object]:
    """Average precision and ROC AUC of all rows, each with its bootstrap interval."""
    whole = rank(scores, classes, np.ones((1, len(classes)), np.int16))
    drawn = rank(scores, classes, weights)
    return {
        "average_precision": float(whole.average_precision[0]),
        "average_precision_ci": interval(drawn.average_precision),
        "roc_auc": float(whole.roc_auc[0]),
        "roc_auc_ci": interval(drawn.roc_auc),
    }


def mean_difference(
    ours: list[np.ndarray], theirs: list[np.ndarray], classes: np.ndarray, weights: np.ndarray
) -> Mapping[str, object]:
    """Mean average precision of some scores minus that of others, on the same resamples of the rows."""

    def mean(many: list[np.ndarray], counts: np.ndarray) -> np.ndarray:
        return np.asarray(np.mean([rank(scores, classes, counts).average_precision for scores in many], axis=0))

    once = np.ones((1, len(classes)), np.int16)
    low, high = interval(mean(ours, weights) - mean(theirs, weights))
    return {"difference": float(mean(ours, once)[0] - mean(theirs, once)[0]), "ci": (low, high)}
