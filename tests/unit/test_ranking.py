"""Average precision and ROC AUC agree with scikit-learn's, and their intervals cover what they should."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from serving.build.anomaly.ranking import Ranked, interval, mean_difference, rank, ranked, resamples


@pytest.mark.parametrize("digits", [6, 1, 0])
def test_ranking_agrees_with_scikit_learn_with_and_without_ties(digits: int) -> None:
    chance = np.random.default_rng(3)
    classes = (chance.random(400) < 0.2).astype(np.int64)
    scores = np.round(chance.normal(classes, 1.0), digits)
    found = rank(scores, classes, np.ones((1, 400), np.int16))
    assert found.average_precision[0] == pytest.approx(average_precision_score(classes, scores))
    assert found.roc_auc[0] == pytest.approx(roc_auc_score(classes, scores))


def test_a_weight_counts_a_row_as_often() -> None:
    chance = np.random.default_rng(4)
    classes = np.array([0, 1, 0, 1, 1, 0])
    scores = chance.normal(classes, 1.0)
    weights = np.array([[2, 1, 0, 3, 1, 1]], np.int16)
    many = rank(scores, classes, weights)
    rows = np.repeat(np.arange(6), weights[0])
    once = rank(scores[rows], classes[rows], np.ones((1, len(rows)), np.int16))
    assert many.average_precision == pytest.approx(once.average_precision)
    assert many.roc_auc == pytest.approx(once.roc_auc)


def test_resamples_keep_the_size_of_each_class() -> None:
    classes = np.array([0] * 90 + [1] * 10)
    weights = resamples(classes, 50, seed=1)
    assert weights.shape == (50, 100)
    assert (weights[:, :90].sum(axis=1) == 90).all()
    assert (weights[:, 90:].sum(axis=1) == 10).all()
    assert np.array_equal(weights, resamples(classes, 50, seed=1))
    assert not np.array_equal(weights, resamples(classes, 50, seed=2))


def test_the_interval_holds_the_value_and_a_perfect_ranking_has_none() -> None:
    chance = np.random.default_rng(5)
    classes = (chance.random(600) < 0.3).astype(np.int64)
    weights = resamples(classes, 400, seed=1)
    low, high = ranked(chance.normal(classes, 1.0), classes, weights).summary()["average_precision_ci"]  # type: ignore[misc]
    assert 0.3 < low < high < 1
    perfect = ranked(classes.astype(float), classes, weights).summary()
    assert perfect["average_precision"] == 1
    assert perfect["average_precision_ci"] == (1.0, 1.0)


def runs(*gaps: float, rows: int = 600) -> list[Ranked]:
    """One training a gap, the larger the better, on the same rows."""
    chance = np.random.default_rng(6)
    classes = (chance.random(rows) < 0.3).astype(np.int64)
    weights, noise = resamples(classes, 400, seed=1), chance.normal(0, 1, rows)
    return [ranked(classes * gap + noise, classes, weights) for gap in gaps]


def test_the_difference_of_equal_scores_is_nothing_and_of_better_ones_clear() -> None:
    good, bad = runs(3, 0.5)
    assert mean_difference([good, good], [good, good], 1) == {"difference": 0.0, "ci": (0.0, 0.0)}
    assert mean_difference([good, good], [bad], 1)["ci"][0] > 0.1  # type: ignore[index]


def test_seeds_that_differ_among_themselves_as_much_as_the_methods_tell_nothing() -> None:
    ours, theirs = runs(2.0, 2.6, 2.1), runs(1.9, 2.0, 2.05)
    rows = np.mean(
        [a.drawn.average_precision - b.drawn.average_precision for a, b in zip(ours, theirs, strict=True)], 0
    )
    assert interval(rows)[0] > 0  # other rows would show the same
    low, high = mean_difference(ours, theirs, 1)["ci"]  # type: ignore[misc]
    assert low < 0 < high
    assert mean_difference(ours, theirs, 1) == mean_difference(ours, theirs, 1)


def test_one_seed_says_nothing_of_others() -> None:
    good, bad = runs(3, 0.5)
    found = mean_difference([good], [bad], 1)
    assert found["difference"] == pytest.approx(good.whole.average_precision[0] - bad.whole.average_precision[0])
    assert found["ci"] is None


def test_the_interval_is_that_of_the_middle_95_percent() -> None:
    assert interval(np.arange(1001)) == (25.0, 975.0)
