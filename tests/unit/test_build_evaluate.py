"""What an evaluation says of answers, however they were chosen."""

from __future__ import annotations

import numpy as np
import pytest

from serving.build import metrics
from serving.build.evaluate import quality

LABELS = ("silence", "speech")


def detection(threshold: float, rows: int = 8_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities [n, 2] that are worth exactly what they say, the classes a threshold names, and the truth."""
    chance = np.random.default_rng(3)
    scores = chance.random(rows)
    return np.stack((1 - scores, scores), axis=1), (scores >= threshold).astype(int), (chance.random(rows) < scores) * 1


class TestQuality:
    @pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
    def test_confidence_is_that_of_the_class_named_wherever_the_threshold_lies(self, threshold: float) -> None:
        probabilities, answers, classes = detection(threshold)
        said = quality(probabilities, answers, classes, None, LABELS)
        assert said["ece_debiased"] < 0.01
        assert said["ece_if_perfect"] < 0.02

    def test_of_the_likeliest_class_it_is_the_largest_probability(self) -> None:
        probabilities, _, classes = detection(0.5, 500)
        answers = probabilities.argmax(axis=1)
        said = quality(probabilities, answers, classes, None, LABELS)
        assert said["ece"] == metrics.ece(probabilities.max(axis=1), answers == classes)
