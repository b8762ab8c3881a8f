"""The numbers of an evaluation: pure functions of arrays."""

from __future__ import annotations

import math

import numpy as np


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson, JASA 1927), 95 % by default."""
    if trials == 0:
        return 0.0, 1.0
    p = successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def clopper_pearson_upper(events: int, trials: int, alpha: float = 0.05) -> float:
    """Exact one-sided upper bound of a proportion (Clopper & Pearson, Biometrika 1934)."""
    from scipy.stats import beta

    if events >= trials:
        return 1.0
    return float(beta.ppf(1 - alpha, events + 1, trials - events))


def sign_test(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value that two models err equally often on the rows where just one errs (McNemar)."""
    n, k = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0
    tail: float = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    return min(1.0, 2 * tail)


def _equal_mass(confidence: np.ndarray, correct: np.ndarray, bins: int) -> list[tuple[float, float, int]]:
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return [(float(confidence[part].mean()), float(correct[part].mean()), len(part)) for part in parts]


def reliability_map(
    confidence: np.ndarray, correct: np.ndarray, teacher: np.ndarray | None = None, bins: int = 10
) -> dict[str, list[float] | list[int] | None]:
    """What confidence was worth: bins of equal mass, as `monitoring.config.ReliabilityMap` names their parts.

    Args:
        confidence: probability of the named class, [n].
        correct: whether that class was the true one, bool [n].
        teacher: the teacher's probability of that class, [n]; None without a teacher.
    """
    edges: list[float] = []
    for level in np.quantile(confidence, np.arange(1, bins) / bins):
        edge = round(float(level), 6)  # as it is stored, so that rows are parted here as they will be there
        below = confidence < edge
        if below.any() and not below.all() and not (edges and not (confidence[below] >= edges[-1]).any()):
            edges.append(edge)
    of_row = np.searchsorted(edges, confidence, side="right")
    parts = [np.flatnonzero(of_row == at) for at in range(len(edges) + 1)]
    lean = None if teacher is None else teacher - confidence
    return {
        "edges": edges,
        "rows": [len(part) for part in parts],
        "confidence": [round(float(confidence[part].mean()), 6) for part in parts],
        "frequency": [round(float(correct[part].mean()), 6) for part in parts],
        "teacher": None if teacher is None else [round(float(teacher[part].mean()), 6) for part in parts],
        "teacher_sd": None if lean is None else [round(float(lean[part].std()), 6) for part in parts],
    }


def ece(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Plug-in expected calibration error over bins of equal mass. Biased upwards: see `null_ece`."""
    n = len(confidence)
    return sum(size / n * abs(sure - right) for sure, right, size in _equal_mass(confidence, correct, bins))


def null_ece(confidence: np.ndarray, bins: int = 15, draws: int = 200, seed: int = 0) -> float:
    """Mean plug-in ECE if these confidences were perfectly calibrated: the bias of `ece` (Roelofs et al., 2022)."""
    chance = np.random.default_rng(seed)
    return float(np.mean([ece(confidence, chance.random(len(confidence)) < confidence, bins) for _ in range(draws)]))


def brier(probabilities: np.ndarray, classes: np.ndarray) -> float:
    """Mean squared distance of the probabilities [n, C] to the one-hot truth, over 2 (0 best, 1 worst)."""
    truth = np.eye(probabilities.shape[1])[classes]
    return float(((probabilities - truth) ** 2).sum(axis=1).mean() / 2)


def negative_log_likelihood(logits: np.ndarray, classes: np.ndarray, temperature: float = 1.0) -> float:
    """Mean -log p(class) in nats at a temperature."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    log_p = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return float(-log_p[np.arange(len(classes)), classes].mean())


def fit_temperature(logits: np.ndarray, classes: np.ndarray, low: float = 0.2, high: float = 10.0) -> float:
    """The temperature in [low, high] with the least negative log-likelihood (Guo et al., ICML 2017).

    Golden-section search on its logarithm; the objective is unimodal there. Four decimals.
    """
    ratio = (math.sqrt(5) - 1) / 2
    a, b = math.log(low), math.log(high)
    for _ in range(48):
        c, d = b - ratio * (b - a), a + ratio * (b - a)
        left = negative_log_likelihood(logits, classes, math.exp(c))
        if left < negative_log_likelihood(logits, classes, math.exp(d)):
            b = d
        else:
            a = c
    return round(math.exp((a + b) / 2), 4)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities float64 [n, C] of logits [n, C] at a temperature."""
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def mean_kl(teacher: np.ndarray, student: np.ndarray) -> float:
    """Mean KL(teacher ‖ student) in nats of logits [n, C] at temperature 1."""
    p, q = softmax(teacher), softmax(student)
    return float((p * (np.log(p + 1e-300) - np.log(q + 1e-300))).sum(axis=1).mean())
