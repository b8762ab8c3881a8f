"""What people watch a canary with today, each as a score over time whose threshold is still open.

A comparator turns a column into scores at points in time; it alarms when a score is over its threshold. That is
calibrated on healthy streams (`Threshold.at`), so that all of them, and the guards, have the same chance of a false
alarm over the same horizon; their usual thresholds (p < 0.05, PSI > 0.2, 14.4 times the budget) play no part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import ks_2samp

from loadtests.detection.evidently_process import scores as evidently_scores

Floats = npt.NDArray[np.float64]

#: Windows: of answers for proportions, of seconds for distributions; the long and the short one of a burn rate.
PROPORTION_WINDOWS = (100, 500)
DISTRIBUTION_S = 600.0
HOUR_S = 3600.0
LONG_S, SHORT_S, EVERY_S = 3600.0, 300.0, 60.0
#: Least values in a window.
LEAST = 20
BINS = 10
#: ADWIN's confidence has no score of its own: the same stream is watched at each of these.
WARM = 1000
DELTAS = (0.3, 0.05, 5e-3, 2e-4, 1e-6, 1e-10)


class Column(NamedTuple):
    """Values of a candidate in order of time, and what healthy ones look like."""

    at_s: Floats
    values: Floats
    reference: Floats


class Scores(NamedTuple):
    """Scores and the seconds at which each was known, in order of time."""

    at_s: Floats
    values: Floats

    @property
    def highest(self) -> float:
        return float(self.values.max()) if len(self.values) else -math.inf


Comparator = Callable[[Column], Scores]


class Threshold(NamedTuple):
    """The score that a healthy stream exceeds with at most a given chance."""

    value: float
    alarms: int
    runs: int

    @classmethod
    def at(cls, chance: float, highest: Sequence[float]) -> Threshold:
        """From the highest score of each healthy stream: the least value that at most `chance` of them exceed."""
        ordered = sorted(highest, reverse=True)
        value = ordered[int(chance * len(ordered))]
        return cls(value, sum(score > value for score in ordered), len(ordered))

    def alarm_s(self, scores: Scores, after_s: float) -> float:
        """Seconds of the first alarm; infinite without one, and minus infinite if it came before `after_s`."""
        over = np.flatnonzero(scores.values > self.value)
        if not len(over):
            return math.inf
        first = float(scores.at_s[over[0]])
        return first if first >= after_s else -math.inf


def wilson(window: int) -> Comparator:
    """Windows of so many answers, one after the other: the z at which Wilson's interval leaves the healthy rate."""

    def score(column: Column) -> Scores:
        rate, whole = _rate(column), len(column.values) // window
        counts = column.values[: whole * window].reshape(whole, window).sum(axis=1)
        ends = column.at_s[window - 1 : whole * window : window]
        return Scores(ends, (counts - window * rate) / math.sqrt(window * rate * (1 - rate)))

    return score


def burn_rate(column: Column) -> Scores:
    """Bad events over the healthy rate, the lesser of an hour's and of five minutes'; looked at every minute."""
    rate = _rate(column)
    looks = np.arange(EVERY_S, column.at_s[-1] if len(column.at_s) else 0.0, EVERY_S)
    bad = np.concatenate([[0.0], np.cumsum(column.values)])
    until = np.searchsorted(column.at_s, looks, side="right")

    def burn(seconds: float) -> Floats:
        since = np.searchsorted(column.at_s, looks - seconds, side="right")
        return (bad[until] - bad[since]) / np.maximum(until - since, 1) / rate

    return Scores(looks, np.minimum(burn(LONG_S), burn(SHORT_S)))


def kolmogorov_smirnov(column: Column) -> Scores:
    """Two-sample statistic of each ten minutes against the reference, scaled by the sample sizes."""
    size = len(column.reference)

    def distance(window: Floats) -> float:
        found = ks_2samp(column.reference, window, method="asymp").statistic
        return float(found) * math.sqrt(size * len(window) / (size + len(window)))

    return _windows(column, DISTRIBUTION_S, distance)


def stability_index(column: Column) -> Scores:
    """Population stability index of each ten minutes, over tenths of the reference."""
    edges = np.unique(np.quantile(column.reference, np.linspace(0, 1, BINS + 1)[1:-1]))

    def shares(values: Floats) -> Floats:
        counts = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)
        found: Floats = np.maximum(counts / len(values), 1e-4)
        return found

    expected = shares(column.reference)

    def index(window: Floats) -> float:
        found = shares(window)
        return float(np.sum((found - expected) * np.log(found / expected)))

    return _windows(column, DISTRIBUTION_S, index)


def adwin(column: Column) -> Scores:
    """ADWIN (Bifet & Gavalda, SDM 2007; river's): the score is -log of the strictest confidence that calls a change."""
    from river.drift import ADWIN

    found: list[tuple[float, float]] = []
    values = column.values.tolist()
    healthy = np.random.default_rng(0).choice(column.reference, WARM).tolist()
    for delta in DELTAS:
        detector = ADWIN(delta=delta)
        for value in healthy:  # it sees changes, so that it has to have seen what was there before
            detector.update(value)
        for number, value in enumerate(values):
            detector.update(value)
            if detector.drift_detected:
                found.append((float(column.at_s[number]), -math.log(delta)))
                break
    found.sort()
    return Scores(np.array([at_s for at_s, _ in found]), np.array([score for _, score in found]))


def evidently(column: Column) -> Scores:
    """Evidently's default drift test of the column, hour by hour."""
    starts = np.arange(0.0, column.at_s[-1] if len(column.at_s) else 0.0, HOUR_S)
    edges = np.searchsorted(column.at_s, [*starts, starts[-1] + HOUR_S])
    parts = [(edges[n], edges[n + 1]) for n in range(len(starts)) if edges[n + 1] - edges[n] >= LEAST]
    found = evidently_scores(column.reference, [column.values[low:high] for low, high in parts])
    return Scores(np.array([column.at_s[high - 1] for _, high in parts]), np.array(found))


def _rate(column: Column) -> float:
    """The healthy rate of a column of 0 and 1; never 0, so that it can be divided by."""
    return float(max(column.reference.mean(), 1.0 / (len(column.reference) + 1)))


def _windows(column: Column, seconds: float, score: Callable[[Floats], float]) -> Scores:
    """A score for each whole window of so many seconds that holds enough values."""
    last = column.at_s[-1] if len(column.at_s) else 0.0
    ends = np.arange(seconds, last, seconds)
    edges = np.searchsorted(column.at_s, [0.0, *ends])
    known = [n for n in range(len(ends)) if edges[n + 1] - edges[n] >= LEAST]
    return Scores(ends[known], np.array([score(column.values[edges[n] : edges[n + 1]]) for n in known]))


#: By the kind of what is watched: a column of 0 and 1, or of values.
PROPORTION: dict[str, Comparator] = {f"Wilson, {window}": wilson(window) for window in PROPORTION_WINDOWS}
PROPORTION |= {"ADWIN": adwin, "burn rate": burn_rate}
DISTRIBUTION: dict[str, Comparator] = {
    "Evidently, hourly": evidently,
    "KS, 10 min": kolmogorov_smirnov,
    "PSI, 10 min": stability_index,
}
NAMES = ("Evidently, hourly", "KS, 10 min", "PSI, 10 min", *PROPORTION)
