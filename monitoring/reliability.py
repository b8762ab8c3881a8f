"""How calibrated each variant is, for people to look at: reliability diagram, ECE, Brier score, temperature. Pure.

Two judges: labels (1 where the class that was named is the true one) and the teacher (its probability of that class).
The bins are those frozen in the manifest when the variant was built, else ten of equal width. What is shown rests on
the latest 25,000 to 50,000 answers of a judge. Nothing here makes a guard fail: see `monitoring.detectors.calibration`.

Sources: Murphy, "A new vector partition of the probability score" (1973), and Stephenson, Coelho & Jolliffe (2008) for
what bins leave over; Roelofs et al., "Mitigating bias in calibration error estimation" (AISTATS 2022) for the bias of
ECE; Broecker & Smith, "Increasing the reliability of reliability diagrams" (2007); Guo et al. (ICML 2017) for the
temperature.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from monitoring.config import MonitorModel, ReliabilityMap
from monitoring.intervals import wilson

Floats = npt.NDArray[np.float64]

#: At so many answers all sums are halved, so that what is shown is of the latest ones.
KEPT = 50_000
#: Classes that are told apart; the others are counted together, as the last one.
CLASSES = 20
#: Bins of log-odds, between these ends, from which the temperature is found.
ODDS_BINS, ODDS_ENDS = 64, (-8.0, 14.0)
#: Fewer answers than this suggest no temperature.
ENOUGH = 200
_TEMPERATURES: Floats = np.exp(np.linspace(math.log(0.2), math.log(5.0), 801))
_DRAWS = 400
_TEN = tuple(round(0.1 * at, 1) for at in range(1, 10))


class Bin(msgspec.Struct, frozen=True):
    """One point of a reliability diagram; `low` and `high` are the probabilities between which it lies.

    `outcome` is the share that was right (by labels) or the teacher's mean probability, with its 95 % interval;
    `expected` is what the same confidence was worth when the variant was built, None if that is not known.
    """

    low: float
    high: float
    answers: int
    confidence: float
    outcome: float
    outcome_low: float
    outcome_high: float
    expected: float | None


class OfClass(msgspec.Struct, frozen=True):
    """Answers that named one class."""

    label: str
    answers: int
    confidence: float
    outcome: float
    ece_debiased: float


class Brier(msgspec.Struct, frozen=True):
    """Mean squared difference of the named class's probability and 1{right}.

    It is reliability - resolution + uncertainty + rest; `rest` is what differences within the bins add. For two classes
    this is the usual Brier score over 2.
    """

    score: float
    reliability: float
    resolution: float
    uncertainty: float
    rest: float


class Temperature(msgspec.Struct, frozen=True):
    """By what logits might better be divided: likeliest value, its 95 % interval, what is in force now.

    Exact for two classes; for more, the named class is put against all others together.
    """

    suggested: float
    low: float
    high: float
    current: float


class Report(msgspec.Struct, frozen=True):
    """How calibrated one variant is by one judge.

    Args:
        reference: labels | teacher.
        ece: mean absolute difference of confidence and outcome over the bins.
        ece_if_perfect: what a perfectly calibrated variant would show with so many answers.
        ece_debiased: `ece` less that, at least 0, with a 95 % interval (parametric bootstrap).
        brier: by labels only.
        temperature: by labels only, and only if the present one is outside the interval.
    """

    variant: str
    reference: str
    answers: int
    ece: float
    ece_if_perfect: float
    ece_debiased: float
    ece_low: float
    ece_high: float
    bins: list[Bin]
    classes: list[OfClass]
    brier: Brier | None = None
    temperature: Temperature | None = None


class Diagram:
    """Sums of one variant's answers by one judge.

    Args:
        edges: probabilities that part the bins, ascending.
        classes: classes that the model has.
    """

    def __init__(self, edges: Sequence[float], classes: int) -> None:
        self._edges = list(edges)
        # By class and bin: answers, and the sums of p, y, (p - y)^2 and p (1 - p).
        self._sums = [[[0.0] * 5 for _ in range(len(edges) + 1)] for _ in range(min(max(classes, 1), CLASSES))]
        self._odds = [[0.0] * 3 for _ in range(ODDS_BINS)]  # answers, and the sums of log-odds and y
        self._kept = 0.0

    def add(self, cls: int, prob: float, outcome: float) -> None:
        """One answer: the class it named, that class's probability, and 1{right} or the teacher's probability."""
        if math.isnan(prob) or math.isnan(outcome) or cls < 0:
            return
        prob, outcome = min(max(prob, 0.0), 1.0), min(max(outcome, 0.0), 1.0)
        row = self._sums[min(cls, len(self._sums) - 1)][bisect_right(self._edges, prob)]
        row[0] += 1.0
        row[1] += prob
        row[2] += outcome
        row[3] += (prob - outcome) ** 2
        row[4] += prob * (1.0 - prob)
        inside = min(max(prob, 1e-6), 1.0 - 1e-6)
        odds = math.log(inside / (1.0 - inside))
        low, high = ODDS_ENDS
        at = self._odds[min(ODDS_BINS - 1, max(0, int((odds - low) / (high - low) * ODDS_BINS)))]
        at[0] += 1.0
        at[1] += odds
        at[2] += outcome
        self._kept += 1.0
        if self._kept >= KEPT:
            self._halve()

    def _halve(self) -> None:
        for row in (*(row for rows in self._sums for row in rows), *self._odds):
            row[:] = [value / 2 for value in row]
        self._kept /= 2

    def report(
        self, variant: str, by_labels: bool, labels: Sequence[str], worth: Sequence[float] | None, current: float
    ) -> Report | None:
        """What it adds up to; None without answers.

        Args:
            labels: class names.
            worth: mean outcome less mean confidence of each bin at build time, if that is known.
            current: temperature in force.
        """
        sums = np.array(self._sums)
        whole = sums.sum(axis=0)
        if not whole[:, 0].any():
            return None
        ece, perfect, low, high = _ece(whole, by_labels)
        return Report(
            variant=variant,
            reference="labels" if by_labels else "teacher",
            answers=int(whole[:, 0].sum()),
            ece=round(ece, 5),
            ece_if_perfect=round(perfect, 5),
            ece_debiased=round(max(0.0, ece - perfect), 5),
            ece_low=round(low, 5),
            ece_high=round(high, 5),
            bins=self._bins(whole, by_labels, worth),
            classes=_by_class(sums, labels, by_labels),
            brier=_brier(whole) if by_labels else None,
            temperature=_temperature(np.array(self._odds), current) if by_labels else None,
        )

    def _bins(self, sums: Floats, by_labels: bool, worth: Sequence[float] | None) -> list[Bin]:
        ends = [0.0, *self._edges, 1.0]
        found = []
        for at, (count, prob, outcome, square, _) in enumerate(sums.tolist()):
            if not count:
                continue
            mean, confidence = outcome / count, prob / count
            if by_labels:
                low, high = wilson(outcome, count)
            else:
                spread = 1.959964 * math.sqrt(max(0.0, square / count - (confidence - mean) ** 2) / count)
                low, high = max(0.0, mean - spread), min(1.0, mean + spread)
            expected = None if worth is None else round(min(1.0, max(0.0, confidence + worth[at])), 5)
            found.append(
                Bin(
                    round(ends[at], 5), round(ends[at + 1], 5), int(count), round(confidence, 5),
                    round(mean, 5), round(low, 5), round(high, 5), expected,
                )
            )  # fmt: skip
        return found

    def state(self) -> dict[str, Any]:
        return {"edges": self._edges, "sums": self._sums, "odds": self._odds, "kept": self._kept}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue, unless the bins are others now: then what was counted fits no longer."""
        if [float(edge) for edge in state["edges"]] != self._edges or len(state["sums"]) != len(self._sums):
            return
        self._sums = [[[float(value) for value in row] for row in rows] for rows in state["sums"]]
        self._odds = [[float(value) for value in row] for row in state["odds"]]
        self._kept = float(state["kept"])


class ModelReliability:
    """The diagrams of every variant of a model, by labels and by the teacher."""

    def __init__(self, config: MonitorModel) -> None:
        self._config = config
        self._diagrams: dict[tuple[str, str], Diagram] = {}

    def label(self, variant: str, cls: int, prob: float, right: bool) -> None:
        """An answer of a variant whose true class is known."""
        self._diagram(variant, "labels").add(cls, prob, float(right))

    def score(self, variant: str, cls: int, prob: float, by_teacher: float) -> None:
        """An answer of a variant beside the teacher's probability of the class that it named."""
        self._diagram(variant, "teacher").add(cls, prob, by_teacher)

    def reports(self) -> list[Report]:
        """One for each variant and judge with answers."""
        found = []
        for (variant, reference), diagram in sorted(self._diagrams.items()):
            known = self._config.variants.get(variant)
            map_ = known.reliability if known is not None else None
            report = diagram.report(
                variant,
                reference == "labels",
                self._config.labels,
                _worth(map_, reference == "labels"),
                known.temperature if known is not None else 1.0,
            )
            if report is not None:
                found.append(report)
        return found

    def state(self) -> list[tuple[str, str, dict[str, Any]]]:
        return [
            (variant, reference, {**diagram.state(), "versions": self._versions(variant, reference)})
            for (variant, reference), diagram in self._diagrams.items()
        ]

    def load(self, state: Sequence[Sequence[Any]]) -> None:
        """Continue, except with what other artifacts answered or judged, or what does not say which ones did."""
        self._diagrams.clear()
        for variant, reference, stored in state:
            if stored.get("versions") == self._versions(variant, reference):
                self._diagram(variant, reference).load(stored)

    def _versions(self, variant: str, reference: str) -> list[int]:
        """Which artifacts a diagram is of: the variant's, and the teacher's if that is the judge; 0: not configured."""
        names = (variant, self._config.teacher) if reference == "teacher" else (variant,)
        known = (self._config.variants.get(name) for name in names)
        return [found.version if found is not None else 0 for found in known]

    def _diagram(self, variant: str, reference: str) -> Diagram:
        diagram = self._diagrams.get((variant, reference))
        if diagram is None:
            known = self._config.variants.get(variant)
            edges = known.reliability.edges if known is not None and known.reliability is not None else _TEN
            diagram = self._diagrams[variant, reference] = Diagram(edges, len(self._config.labels))
        return diagram


def _worth(reference: ReliabilityMap | None, by_labels: bool) -> list[float] | None:
    if reference is None:
        return None
    outcome = reference.frequency if by_labels else reference.teacher
    if outcome is None:
        return None
    return [mean - confidence for mean, confidence in zip(outcome, reference.confidence, strict=True)]


def _ece(sums: Floats, by_labels: bool) -> tuple[float, float, float, float]:
    """Expected calibration error, what chance alone would show of it, and an interval of the difference."""
    used = sums[sums[:, 0] > 0]
    count, prob, outcome, square, variance = used.T
    share = count / count.sum()
    gap = (prob - outcome) / count
    ece = float(share @ np.abs(gap))
    around = np.maximum(square / count - gap**2, 0.0)  # variance of p - y within each bin
    # The mean of |N(0, s^2)| is s sqrt(2 / pi); labels are 0 or 1 with chance p, the teacher's probabilities are not.
    perfect = float(share @ np.sqrt(2.0 / math.pi * (variance / count if by_labels else around) / count))
    spread = np.sqrt(around / count)
    draws = np.abs(np.random.default_rng(0).normal(gap, spread, (_DRAWS, len(gap)))) @ share
    low, high = np.percentile(draws - draws.mean(), (2.5, 97.5))
    return ece, perfect, max(0.0, ece - perfect + float(low)), max(0.0, ece - perfect + float(high))


def _brier(sums: Floats) -> Brier:
    used = sums[sums[:, 0] > 0]
    count, prob, outcome, square, _ = used.T
    share, mean = count / count.sum(), outcome / count
    base = float(share @ mean)
    score = float(square.sum() / count.sum())
    reliability = float(share @ (prob / count - mean) ** 2)
    resolution = float(share @ (mean - base) ** 2)
    uncertainty = base * (1.0 - base)
    rest = score - (reliability - resolution + uncertainty)
    return Brier(*(round(value, 6) for value in (score, reliability, resolution, uncertainty, rest)))


def _by_class(sums: Floats, labels: Sequence[str], by_labels: bool) -> list[OfClass]:
    found = []
    for at, of_class in enumerate(sums):
        count, prob, outcome = (float(total) for total in of_class[:, :3].sum(axis=0))
        if not count:
            continue
        several = at == CLASSES - 1 and len(labels) > CLASSES
        label = "others" if several else labels[at] if at < len(labels) else str(at)
        ece, perfect, *_ = _ece(of_class, by_labels)
        found.append(
            OfClass(
                label, int(count), round(prob / count, 5), round(outcome / count, 5), round(max(0.0, ece - perfect), 5)
            )
        )
    return found


def _temperature(odds: Floats, current: float) -> Temperature | None:
    """The likeliest temperature, unless the present one is as likely at 95 %."""
    used = odds[odds[:, 0] > 0]
    count, total, right = used.T
    if count.sum() < ENOUGH:
        return None
    scaled = (total / count) / _TEMPERATURES[:, None]
    loss = (count * np.logaddexp(0.0, scaled) - right * scaled).sum(axis=1)
    likely = _TEMPERATURES[loss <= loss.min() + 1.92]  # half of the 95 % point of chi-squared with one degree
    low, high = float(likely.min()), float(likely.max())
    if low <= 1.0 <= high:
        return None
    best = float(_TEMPERATURES[loss.argmin()])
    return Temperature(round(current * best, 3), round(current * low, 3), round(current * high, 3), current)
