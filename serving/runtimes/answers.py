"""How a session's outputs are read: what the client gets, which class an answer is, and how sure it is of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from serving.packing import TOP_KS
from serving.registry.manifest import Postprocess

#: Classes over which two answers are compared; the others count together.
TOP = 5


class Summary(NamedTuple):
    """Row 0 of an answer in four numbers.

    `cls` is the class index (-1: no class), `prob` its probability, `margin` that minus the
    second's, `energy` is -logsumexp(logits) at temperature 1 (Liu et al., NeurIPS 2020), 0 without logits.
    """

    cls: int
    prob: float
    margin: float
    energy: float


class Reading(Protocol):
    """One way to read outputs that have passed the shape check."""

    def fault(self, outputs: Mapping[str, np.ndarray]) -> str | None:
        """What is wrong with them beyond shapes, types and NaN; None if nothing is."""
        ...

    def tensors(self, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the client gets."""
        ...

    def classes(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Class index of each row, int64 [n]; -1 if there are no classes."""
        ...

    def probability(self, outputs: Mapping[str, np.ndarray], cls: int) -> float:
        """Probability of class `cls` in row 0; 0 if there is no such class."""
        ...

    def shares(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Probability of each class in row 0, float64 [C]; empty if there are no classes."""
        ...

    def summary(self, outputs: Mapping[str, np.ndarray]) -> Summary:
        """Row 0 in four numbers."""
        ...


def divergence(teacher: np.ndarray, other: np.ndarray) -> tuple[float, float] | None:
    """(Jensen-Shannon divergence, KL(teacher || other)) in nats of two answers; None unless they have the same classes.

    Over the teacher's likeliest classes and all others together, which is never more than over all (data processing).
    Probabilities under 1e-9 count as 1e-9, so that KL is finite. Source: Lin, "Divergence measures based on the Shannon
    entropy" (IEEE Trans. Inf. Theory 1991).

    Args:
        teacher, other: probability of each class, float64 [C].
    """
    if not len(teacher) or len(teacher) != len(other):
        return None
    leading = np.argsort(teacher)[::-1][:TOP]
    p, q = (np.maximum(np.append(row[leading], 1.0 - row[leading].sum()), 1e-9) for row in (teacher, other))
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    js = float(p @ np.log(p / middle) + q @ np.log(q / middle)) / 2
    return max(0.0, js), max(0.0, float(p @ np.log(p / q)))


def in_common(teacher: np.ndarray, other: np.ndarray) -> dict[int, int]:
    """For each k of TOP_KS that is under the number of classes: how many of the k likeliest are the same in both.

    Args:
        teacher, other: probability of each class, float64 [C].
    """
    if len(teacher) != len(other):
        return {}
    first, second = (np.argsort(-row, kind="stable") for row in (teacher, other))
    return {k: len(set(first[:k].tolist()) & set(second[:k].tolist())) for k in TOP_KS if k < len(teacher)}


class Classification:
    """Logits [n, C] to probabilities and a label."""

    def __init__(self, post: Postprocess) -> None:
        self._logits = post.logits
        self._labels = len(post.labels)
        self._label_bytes = np.array([label.encode() for label in post.labels], dtype=object)
        self._temperature = post.temperature

    def fault(self, outputs: Mapping[str, np.ndarray]) -> str | None:
        classes = outputs[self._logits].shape[-1]
        if classes != self._labels:
            return f"{self._logits} has {classes} classes, the model knows {self._labels}"
        return None

    def tensors(self, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        logits = outputs[self._logits]
        return {"probabilities": self.probabilities(logits), "label": self._label_bytes[logits.argmax(axis=1)]}

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Softmax of logits / temperature, float32 [n, C]; of all finite logits, however large."""
        wide = logits if logits.dtype == np.float64 else logits.astype(np.float32)
        with np.errstate(over="ignore"):  # a difference beyond all floats is minus infinity, whose weight is 0
            scaled: np.ndarray = (wide - wide.max(axis=1, keepdims=True)).astype(np.float32)
            scaled /= np.float32(self._temperature)
        np.exp(scaled, out=scaled)
        scaled /= scaled.sum(axis=1, keepdims=True)
        return scaled

    def classes(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.asarray(outputs[self._logits].argmax(axis=1), dtype=np.int64)

    def probability(self, outputs: Mapping[str, np.ndarray], cls: int) -> float:
        if not 0 <= cls < self._labels:
            return 0.0
        return float(self.probabilities(outputs[self._logits][:1])[0, cls])

    def shares(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.asarray(self.probabilities(outputs[self._logits][:1])[0], dtype=np.float64)

    def summary(self, outputs: Mapping[str, np.ndarray]) -> Summary:
        # Plain Python: for a handful of classes numpy's call overhead would cost five times as much.
        logits: list[float] = outputs[self._logits][0].tolist()
        top = max(logits)
        temperature = self._temperature
        weights = [math.exp((value - top) / temperature) for value in logits]
        total = sum(weights)
        cls = logits.index(top)
        second = max((weight for index, weight in enumerate(weights) if index != cls), default=0.0)
        energy = -(top + math.log(sum(math.exp(value - top) for value in logits)))
        return Summary(cls, 1.0 / total, (1.0 - second) / total, energy)


class Detection:
    """A score [n] or [n, 1], the probability of the second of two classes; everything is passed on."""

    def __init__(self, score: str, threshold: float) -> None:
        self._score = score
        self._threshold = threshold

    def fault(self, outputs: Mapping[str, np.ndarray]) -> str | None:
        score = outputs[self._score]
        low, high = float(score.min()), float(score.max())
        if low < 0 or high > 1:
            return f"{self._score} holds {low if low < 0 else high:g}, which is no probability"
        return None

    def tensors(self, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return outputs

    def classes(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return (outputs[self._score].reshape(-1) >= self._threshold).astype(np.int64)

    def probability(self, outputs: Mapping[str, np.ndarray], cls: int) -> float:
        score = float(outputs[self._score].flat[0])
        return (1.0 - score, score)[cls] if cls in (0, 1) else 0.0

    def shares(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.array([self.probability(outputs, cls) for cls in (0, 1)])

    def summary(self, outputs: Mapping[str, np.ndarray]) -> Summary:
        score = float(outputs[self._score].flat[0])
        cls = int(score >= self._threshold)
        prob = score if cls else 1.0 - score
        return Summary(cls, prob, 2 * prob - 1.0, 0.0)


class Passed:
    """No classes; everything is passed on."""

    def fault(self, outputs: Mapping[str, np.ndarray]) -> str | None:
        return None

    def tensors(self, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return outputs

    def classes(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.full(len(next(iter(outputs.values()))), -1, np.int64)

    def probability(self, outputs: Mapping[str, np.ndarray], cls: int) -> float:
        return 0.0

    def shares(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.empty(0)

    def summary(self, outputs: Mapping[str, np.ndarray]) -> Summary:
        return _NO_SUMMARY


_NO_SUMMARY = Summary(-1, 0.0, 0.0, 0.0)


def reading(post: Postprocess) -> Reading:
    """How the outputs of an artifact are read."""
    if post.task == "classification":
        return Classification(post)
    if post.task == "detection":
        assert isinstance(post.score, str)
        assert isinstance(post.threshold, float)
        return Detection(post.score, post.threshold)
    return Passed()
