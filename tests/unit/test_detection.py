"""Requests to detect and suspect answers: simulations over the guard's evidence, and the z-test beside it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loadtests.detection.pairs import BLOCK, bound, crossings, detection
from loadtests.exposure import ZTest, calibrated, limits, suspects
from monitoring.detectors.agreement import Agreement


@pytest.mark.parametrize(("rate", "limit"), [(0.04, 0.02), (0.38, 0.1)])
def test_a_crossing_is_where_the_guard_itself_calls_it(rate: float, limit: float) -> None:
    seen = crossings(rate, limit, 0.002, 1, 6000, np.random.default_rng(5))
    random, guard, at = np.random.default_rng(5), Agreement(limit, 0.9, alpha=0.002), 0
    while not guard.breached:
        bad = (random.random((1, BLOCK)) < rate)[0]
        for flip in bad:
            at += 1
            guard.observe(int(flip))
            if guard.breached:
                break
    assert (seen.at.tolist(), seen.events.tolist()) == ([at], [guard.events])


def test_a_run_that_never_gets_there_has_no_crossing() -> None:
    seen = crossings(0.0, 0.02, 0.002, 3, 300, np.random.default_rng(0))
    assert seen.found == 0
    assert seen.at.tolist() == seen.events.tolist() == [0, 0, 0]


def test_the_bound_is_walds() -> None:
    kl = 0.04 * math.log(2) + 0.96 * math.log(0.96 / 0.98)
    assert bound(0.04, 0.02, 0.002) == pytest.approx(math.log(500) / kl)
    assert bound(0.08, 0.02, 0.002) < bound(0.04, 0.02, 0.002) < bound(0.03, 0.02, 0.002)


def test_at_the_limit_it_is_wrong_within_its_budget_and_beyond_it_is_found() -> None:
    random = np.random.default_rng(2)
    assert crossings(0.02, 0.02, 0.05, 400, 2000, random).found / 400 < 0.05
    row = detection(0.02, 4.0, 0.002, 100, random)
    assert row["not_found"] == 0
    assert row["median"] <= row["mean"] < 2 * row["bound"]


def test_the_z_test_takes_no_more_than_the_budget_and_nearly_all_of_it() -> None:
    test = calibrated(50, 0.1, 10_000, 0.002)
    assert test is not None
    assert test.false_rollback(0.1, 10_000) <= 0.002 < ZTest(50, test.least - 1).false_rollback(0.1, 10_000)
    random = np.random.default_rng(3)
    loose = ZTest(50, 14)
    simulated = loose.crossings(0.1, 4000, 1000, random).found / 4000
    assert simulated == pytest.approx(loose.false_rollback(0.1, 1000), abs=0.015)
    assert ZTest(100, 20).z(0.1) == pytest.approx(10 / 3)


def test_a_window_too_short_for_the_budget_has_no_z_test() -> None:
    assert calibrated(2, 0.1, 10_000, 0.002) is None


def test_a_z_test_sees_nothing_before_a_window_is_full() -> None:
    seen = ZTest(50, 1).crossings(1.0, 5, 1000, np.random.default_rng(0))
    assert seen.at.tolist() == seen.events.tolist() == [50] * 5


def test_suspect_answers_are_the_scored_ones_and_those_between_them() -> None:
    random = np.random.default_rng(0)
    seen = crossings(0.4, 0.1, 0.002, 2000, 2000, random)
    assert suspects(seen, 0.4, 1.0, random).tolist() == seen.events.tolist()
    given = suspects(seen, 0.4, 0.05, random)
    assert given.mean() == pytest.approx(seen.events.mean() + 0.4 * 19 * seen.at.mean(), rel=0.05)


def test_limits_are_those_of_the_configuration() -> None:
    assert limits(0.01) == (pytest.approx(0.03), pytest.approx(0.09))


def test_the_best_stake_needs_less_than_the_mixture_and_no_less_than_the_bound() -> None:
    row = detection(0.02, 2.0, 0.002, 400, np.random.default_rng(4))
    assert row["bound"] < row["best_stake"] < row["mean"]
