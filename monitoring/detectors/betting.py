"""The one statistical primitive: evidence by betting, valid however often it is looked at.

Observation X_t in [0, b]; null hypothesis E[X_t | past] <= m_t, where m_t is known before X_t.
A gambler who stakes the fraction f of what he has on "X_t is over m_t" multiplies it by
L_t = 1 + lambda (X_t - m_t) with lambda = f / m_t, f in [0, 1): never negative and, under the
null, never expected to grow. The evidence is the weighted mean over a grid of K stakes of the products,
E_n = sum_k w_k prod_t L_t^(k), kept in log space. Under the null P(sup_n E_n >= 1/alpha) <= alpha
(Ville's inequality), so a test may stop whenever it likes.

The mirrored null, E[X_t | past] >= m_t, bets with 1 - lambda (X_t - m_t), lambda = g / (b - m_t).

`Drift` is the Shiryaev-Roberts e-detector, M_t = L_t (M_{t-1} + 1): it asks "did it start?"
over and over, and runs A observations on average before a false alarm at M >= A.

Sources: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting"
(JRSS B 2024), for the bets and the mixture; Shin, Ramdas & Rinaldo, "E-detectors" (NEJSDS 2024).

>>> bet = Betting()
>>> next(n for n in range(1, 100) if (bet.update(1.0, limit=0.05), bet.log_evidence >= 6.2)[1])
3
>>> bet.log_evidence < 9
True
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: Fractions staked. For X in {0, 1} the best one is (p - m) / (1 - m), p the true rate: from a rate
#: just over the limit to nearly every observation. Under 1, so that nobody ever goes bankrupt.
STAKES: Floats = np.array([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 0.95])
#: What is put on each: most where a rate of 1.5 to 4 times a limit of a few percent has its best stake.
WEIGHTS: Floats = np.array([1, 2, 5, 10, 14, 14, 13, 12, 10, 8, 6, 5]) / 100
#: Of the mirrored bet, whose best stake (m - p) / m may be anything: each the same.
EQUAL: Floats = np.full(len(STAKES), 1 / len(STAKES))
_TINY = 1e-9
_LEAST = -745.0  # log of (nearly) nothing, yet finite
_NOTHING: Floats = np.zeros(len(STAKES))


def log_gain(values: npt.ArrayLike, limits: npt.ArrayLike, upper: float = 1.0) -> Floats:
    """log L for each value and stake: shape (..., K). Values are clipped to [0, upper]; a limit
    that leaves nothing to bet on (>= upper) gains 0."""
    x = np.clip(np.asarray(values, dtype=np.float64), 0.0, upper)[..., None]
    m = np.asarray(limits, dtype=np.float64)[..., None]
    gain = np.log1p(STAKES * (x / np.maximum(m, _TINY) - 1.0))
    return np.where(m < upper, gain, 0.0)


def log_gain_mirrored(values: npt.ArrayLike, limits: npt.ArrayLike, upper: float = 1.0) -> Floats:
    """log of the mirrored L (null: the mean is at least the limit) for each value and stake."""
    x = np.clip(np.asarray(values, dtype=np.float64), 0.0, upper)[..., None]
    m = np.asarray(limits, dtype=np.float64)[..., None]
    gain = np.log1p(-STAKES * (x - m) / np.maximum(upper - m, _TINY))
    return np.where((m > 0) & (m < upper), gain, 0.0)


def log_gain_of_one(value: float, limit: float) -> Floats:
    """`log_gain` of one observation in [0, 1], to the bit: a tenth of the time where each has a limit of its own."""
    if limit >= 1.0:
        return _NOTHING
    value = min(max(value, 0.0), 1.0)
    gain: Floats = np.log1p(STAKES * (value / max(limit, _TINY) - 1.0))
    return gain


@lru_cache(maxsize=4096)
def _gain(value: float, limit: float, upper: float) -> Floats:
    """`log_gain` of one observation; the same few come over and over."""
    return log_gain(value, limit, upper)


@lru_cache(maxsize=4096)
def _gain_mirrored(value: float, limit: float, upper: float) -> Floats:
    return log_gain_mirrored(value, limit, upper)


def log_mixture(logs: Floats, weights: Floats = WEIGHTS) -> Any:
    """log of the weighted mean of exp over the last axis (the stakes), without overflow."""
    top = np.max(logs, axis=-1, keepdims=True)
    return np.squeeze(top, -1) + np.log(np.exp(logs - top) @ weights)


def log_evidence_path(values: npt.ArrayLike, limits: npt.ArrayLike, upper: float = 1.0) -> Floats:
    """The log evidence after each of the values, along the last axis; runs may be stacked in front.

    >>> log_evidence_path([[1, 0, 1], [0, 0, 0]], 0.5).round(3).tolist()
    [[0.195, -0.125, 0.014], [-0.243, -0.376, -0.474]]
    """
    array = np.asarray(values, dtype=np.float64)
    gains = log_gain(array, np.broadcast_to(np.asarray(limits, dtype=np.float64), array.shape), upper)
    path: Floats = log_mixture(np.cumsum(gains, axis=-2))
    return path


class _Evidence:
    """A mixture over the stakes; `logs` holds one log product each."""

    weights = WEIGHTS

    def __init__(self, upper: float = 1.0) -> None:
        self.upper = upper
        self._logs = self._start()

    def _start(self) -> Floats:
        return np.zeros(len(STAKES))

    @property
    def log_evidence(self) -> float:
        """log E_n; 0 before the first observation."""
        top = self.most
        return top + math.log(float(np.exp(self._logs - top) @ self.weights))

    @property
    def most(self) -> float:
        """The largest log product: `log_evidence` is never over it, and takes longer."""
        return float(np.maximum.reduce(self._logs))

    def reset(self) -> None:
        self._logs = self._start()

    def state(self) -> list[float]:
        """The log products, for a later `load`."""
        return [float(value) for value in self._logs]

    def load(self, state: list[float]) -> None:
        logs = np.array(state, dtype=np.float64)
        if logs.shape != self._logs.shape or not np.isfinite(logs).all():
            raise ValueError(f"expected {len(self._logs)} finite log products, got {state!r:.80}")
        self._logs = logs


class Betting(_Evidence):
    """Evidence against "the mean is at most the limit"."""

    def update(self, value: float, limit: float, count: int = 1) -> None:
        """`count` equal observations. A value that is not a number is no observation."""
        if count > 0 and not (math.isnan(value) or math.isnan(limit)):
            self._logs = self._logs + count * _gain(value, limit, self.upper)


class Mirrored(_Evidence):
    """Evidence against "the mean is at least the limit": what a pass needs."""

    weights = EQUAL

    def update(self, value: float, limit: float, count: int = 1) -> None:
        """`count` equal observations. A value that is not a number is no observation."""
        if count > 0 and not (math.isnan(value) or math.isnan(limit)):
            self._logs = self._logs + count * _gain_mirrored(value, limit, self.upper)


class Averaged(_Evidence):
    """Evidence against any of several nulls "the mean is at most the limit": the mean of their e-values.

    Each observation is put to the hypotheses that it is about; an average of e-processes is one itself.

    >>> several = Averaged(20)
    >>> next(n for n in range(1, 100) if (several.update(3, 1.0, limit=0.05), several.log_evidence >= 6.2)[1])
    4
    """

    def __init__(self, hypotheses: int) -> None:
        self._hypotheses = hypotheses
        self.weights = np.tile(WEIGHTS / hypotheses, hypotheses)
        super().__init__()

    def _start(self) -> Floats:
        return np.zeros(self._hypotheses * len(STAKES))

    def update(self, hypothesis: int, value: float, limit: float) -> None:
        """One observation in [0, 1] for one hypothesis. A value that is not a number is no observation."""
        if not (math.isnan(value) or math.isnan(limit)):
            self._logs[self._span(hypothesis)] += log_gain_of_one(value, limit)

    def log_evidence_of(self, hypothesis: int) -> float:
        """log of the e-value of one hypothesis alone."""
        return float(log_mixture(self._logs[self._span(hypothesis)]))

    def log_evidence_of_each(self) -> Floats:
        """`log_evidence_of` every hypothesis, shape (hypotheses,)."""
        found: Floats = log_mixture(self._logs.reshape(self._hypotheses, len(STAKES)))
        return found

    @staticmethod
    def _span(hypothesis: int) -> slice:
        return slice(hypothesis * len(STAKES), (hypothesis + 1) * len(STAKES))


class Drift(_Evidence):
    """The Shiryaev-Roberts e-detector of "the mean came to be over the limit": M_n = L_n (M_(n-1) + 1).

    Unlike a test it does not hold a long healthy past against what is new, and it may go on for ever: until a false
    alarm at M >= A it makes A observations on average, at the least (Shin, Ramdas & Rinaldo, "E-detectors", 2022).

    >>> drift, alarm = Drift(), None
    >>> for n in range(1, 2000):
    ...     drift.update(1.0 if n > 1000 and n % 2 else 0.0, limit=0.05)
    ...     if drift.log_evidence >= math.log(1e5):
    ...         alarm = n
    ...         break
    >>> alarm
    1015
    """

    def _start(self) -> Floats:
        return np.full(len(STAKES), _LEAST)

    def update(self, value: float, limit: float, count: int = 1) -> None:
        """`count` observations of the same value. A value that is not a number is no observation."""
        if math.isnan(value) or math.isnan(limit) or not count:
            return
        gains = _gain(value, limit, self.upper)
        if count == 1:
            self._logs = np.maximum(np.logaddexp(self._logs, 0.0) + gains, _LEAST)
            return
        # g M + g, so many times: g^n M + g (1 - g^n) / (1 - g), and n where g is 1.
        factor, grown = np.exp(gains), count * gains
        flat = np.abs(gains) < _TINY
        sums = np.where(flat, count, factor * np.expm1(grown) / np.where(flat, 1.0, np.expm1(gains)))
        self._logs = np.maximum(np.logaddexp(self._logs + grown, np.log(sums)), _LEAST)
