"""The detection benchmark's streams, what the guards make of them, and the comparators beside them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loadtests.detection.bounds import observations, truth_and_limit
from loadtests.detection.comparators import (
    Column,
    Scores,
    Threshold,
    adwin,
    burn_rate,
    kolmogorov_smirnov,
    stability_index,
    wilson,
)
from loadtests.detection.family import HEALTHY, Recorded, reliability
from loadtests.detection.feed import called, detectors, feed_answers, feed_requests, guards_for
from loadtests.detection.nulls import NULLS, judged, rows
from loadtests.detection.streams import RAMP, STEP, TRANSIENT, Harm, Onset, Setting, answers, requests
from loadtests.worlds import before, traffic

#: Enough is scored and labelled for a test to be quick.
DENSE = Setting(reference=1.0, labels=0.5, label_delay_s=60.0, hours=0.3)
SOON = Onset(after_s=300.0)


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    """Answers as a family of models might give them: right on most rows; `bad` is wrong on half of them."""
    drawn = random(5)
    classes = (drawn.random(400) < 0.3).astype(np.int64)
    second = np.where(classes == 1, 0.9, 0.1)
    healthy = np.where(np.arange(400) % 50 == 0, 1 - second, second)
    bad = np.where(np.arange(400) % 2 == 0, 1 - second, second)

    def both(values: np.ndarray) -> np.ndarray:
        return np.stack([1 - values, values], axis=1)

    named = {HEALTHY: both(healthy), "bad": both(bad)}
    worth = reliability(classes, both(second), both(healthy))
    outside = {HEALTHY: np.full(400, 0.001), "bad": np.full(400, 0.2)}
    return Recorded(classes, np.arange(400) < 40, both(second), named, 0.02, worth, outside, 0.001, {})


@pytest.mark.parametrize(("onset", "expected"), [(STEP, [0, 1, 1]), (RAMP, [0, 0.5, 1]), (TRANSIENT, [0, 1, 0])])
def test_a_harm_begins_at_its_onset_and_grows_as_it_says(onset: Onset, expected: list[float]) -> None:
    at_s = np.array([-1.0, 1800.0 if onset is not TRANSIENT else 600.0, 7200.0])
    assert onset.strength(at_s).tolist() == pytest.approx(expected)


def test_answers_are_the_recorded_ones_until_the_harm_and_flipped_as_often_as_it_says(recorded: Recorded) -> None:
    drawn = answers(recorded, Harm(flips=0.2), SOON, Setting(rate=400, hours=0.2), random())
    before = drawn.at_s < SOON.after_s
    assert drawn.flipped[before].mean() == pytest.approx(0.02, abs=0.005)
    assert drawn.flipped[~before].mean() == pytest.approx(0.98 * 0.2 + 0.02 * 0.8, abs=0.01)
    assert drawn.pair.mean() == pytest.approx(0.1, abs=0.01)
    assert not (drawn.labelled & ~drawn.pair).any()


def test_a_single_slice_is_all_that_is_struck(recorded: Recorded) -> None:
    drawn = answers(recorded, Harm("bad", short_only=True), Onset(after_s=0.0), DENSE, random())
    assert drawn.flipped[drawn.short].mean() > 0.4
    assert drawn.flipped[~drawn.short].mean() < 0.05


def test_lost_records_are_missing_in_gaps(recorded: Recorded) -> None:
    whole, torn = (
        answers(recorded, Harm(), SOON, Setting(rate=400, reference=1.0, hours=0.5, loss=loss), random())
        for loss in (0.0, 0.2)
    )
    assert whole.pair.all()
    assert torn.pair.mean() == pytest.approx(0.8, abs=0.05)
    changes = np.count_nonzero(np.diff(torn.pair.astype(int)))
    assert changes < len(torn.pair) / 100


def test_both_arms_fail_alike_until_the_candidate_is_harmed() -> None:
    drawn = requests(Harm(errors=0.1, slower=4.0, invalid=0.05), SOON, Setting(rate=400, hours=0.3), random())
    struck = drawn.candidate & (drawn.at_s >= SOON.after_s)
    assert drawn.error[struck].mean() == pytest.approx(0.101, abs=0.01)
    assert drawn.error[~struck].mean() < 0.003
    assert drawn.invalid[struck].mean() == pytest.approx(0.05, abs=0.01)
    assert not drawn.invalid[~struck].any()
    assert np.median(drawn.latency_us[struck]) == pytest.approx(4 * np.median(drawn.latency_us[~struck]), rel=0.1)


def test_the_guards_call_a_bad_model_after_its_onset_and_a_healthy_one_never(recorded: Recorded) -> None:
    watched = ("agreement", "harm")
    for harm, found in ((Harm("bad"), True), (Harm(), False)):
        drawn = answers(recorded, harm, SOON, DENSE, random())
        when = feed_answers(guards_for(recorded, 0.01), drawn, 0.25, watched)
        assert {guard: math.isfinite(at_s) for guard, at_s in when.items()} == dict.fromkeys(watched, found)
        assert all(at_s > SOON.after_s for at_s in when.values())


@pytest.mark.parametrize(
    ("harm", "guard"),
    [(Harm(errors=0.3), "errors"), (Harm(slower=10.0), "latency"), (Harm(invalid=0.2), "invalid_output")],
)
def test_the_guard_meant_for_a_harm_calls_it(recorded: Recorded, harm: Harm, guard: str) -> None:
    drawn = requests(harm, SOON, Setting(rate=40, hours=0.2), random())
    earlier = before(512, random(1))
    assert SOON.after_s < feed_requests(guards_for(recorded, 0.01), drawn, 0.25, guard, earlier) < math.inf
    sound = requests(Harm(), SOON, Setting(hours=0.05), random())
    assert math.isinf(feed_requests(guards_for(recorded, 0.01), sound, 0.25, guard, earlier))


def test_alpha_is_what_was_asked_for(recorded: Recorded) -> None:
    alphas = [detector.alpha for detector in detectors(guards_for(recorded, 0.01)).values()]
    assert alphas == pytest.approx([0.01] * len(alphas))


def test_without_tolerance_the_limits_are_the_healthy_rates(recorded: Recorded) -> None:
    strict, usual = (detectors(guards_for(recorded, tolerant=tolerant)) for tolerant in (False, True))
    assert strict["agreement"].limit == pytest.approx(0.02)  # type: ignore[attr-defined]
    assert usual["agreement"].limit == pytest.approx(0.04)  # type: ignore[attr-defined]
    assert (strict["errors"].ratio, usual["errors"].ratio) == (1.0, 1.25)  # type: ignore[attr-defined]


@pytest.mark.parametrize("null", NULLS, ids=lambda null: null.name)
def test_a_sound_candidate_is_left_alone_in_every_world(recorded: Recorded, null: object) -> None:
    assert judged(null, recorded, 1500, random(3)) == set()  # type: ignore[arg-type]


def test_rows_come_in_the_order_of_their_world(recorded: Recorded) -> None:
    spam = {}
    for null in NULLS:
        drawn = traffic(null.world, 4000, random())
        row = rows(null, recorded, drawn, random())
        assert row.min() >= 0
        assert row.max() < len(recorded.classes)
        half = recorded.classes[row].reshape(2, -1).mean(axis=1)
        spam[null.name] = half[1] - half[0]
        if null.rows == "users":
            assert all(len(np.unique(row[drawn.user == user])) <= 20 for user in range(5))
    assert spam["benign covariate shift"] == pytest.approx(0.3, abs=0.05)
    assert abs(spam["i.i.d."]) < 0.05


def column(rate: float, later: float, count: int = 20_000) -> Column:
    """Zeros and ones, four a second; the rate changes halfway."""
    drawn = random(1).random(count) < np.where(np.arange(count) < count // 2, rate, later)
    reference = (np.arange(10_000) < rate * 10_000).astype(float)
    return Column(np.arange(count) / 4, drawn.astype(float), reference)


@pytest.mark.parametrize("comparator", [wilson(100), wilson(500), burn_rate, adwin])
def test_rules_on_proportions_score_a_changed_rate_higher(comparator: object) -> None:
    quiet, loud = (comparator(column(0.05, later)) for later in (0.05, 0.25))  # type: ignore[operator]
    assert loud.highest > quiet.highest
    assert Threshold(quiet.highest, 0, 1).alarm_s(loud, 2500.0) > 2500.0


@pytest.mark.parametrize("comparator", [kolmogorov_smirnov, stability_index])
def test_tests_of_distributions_score_a_moved_one_higher(comparator: object) -> None:
    at_s = np.arange(4000) / 2
    reference, values = random(2).normal(0, 1, 2000), random(3).normal(0, 1, 4000)
    quiet, loud = (
        comparator(Column(at_s, values + shift * (at_s > 1000), reference))  # type: ignore[operator]
        for shift in (0.0, 1.0)
    )
    assert quiet.at_s.tolist() == loud.at_s.tolist() == [600.0, 1200.0, 1800.0]
    assert loud.values[2] > 2 * quiet.values.max()


def test_a_wilson_score_is_where_the_interval_leaves_the_rate() -> None:
    values = np.zeros(100)
    values[:20] = 1
    scores = wilson(100)(Column(np.arange(100.0), values, (np.arange(10_000) < 1000).astype(float)))
    assert scores.values.tolist() == [pytest.approx(10 / 3)]
    assert scores.at_s.tolist() == [99.0]


def test_a_threshold_leaves_no_more_alarms_than_its_chance() -> None:
    threshold = Threshold.at(0.01, [float(n) for n in range(300)])
    assert (threshold.alarms, threshold.runs) == (3, 300)
    assert Threshold.at(0.01, [1.0] * 50).alarms == 0


def test_an_alarm_before_the_onset_is_no_detection() -> None:
    threshold = Threshold(1.0, 0, 1)
    scores = Scores(np.array([10.0, 20.0]), np.array([0.5, 2.0]))
    assert threshold.alarm_s(scores, 15.0) == 20.0
    assert threshold.alarm_s(scores, 25.0) == -math.inf
    assert threshold.alarm_s(Scores(np.empty(0), np.empty(0)), 0.0) == math.inf


@pytest.mark.parametrize("guard", ["agreement", "errors", "calibration"])
def test_a_guard_at_twice_its_limit_is_measured_in_its_own_observations(recorded: Recorded, guard: str) -> None:
    rate, limit, alpha = truth_and_limit(recorded, guard, 2.0)
    assert limit < rate < 2.001 * limit
    at = observations(recorded, guard, 0.9, 200, random())
    assert 2 <= at < 60
    detector = detectors(guards_for(recorded))[guard]
    assert alpha == detector.alpha / getattr(detector, "hypotheses", 1)
    assert observations(recorded, guard, 0.0, 50, random()) == 0


def test_a_layer_that_saturates_is_called_by_its_audits(recorded: Recorded) -> None:
    drawn = answers(recorded, Harm("bad"), SOON, DENSE, random())
    when = feed_answers(guards_for(recorded, 0.01), drawn, 0.25, ("saturation",))["saturation"]
    assert SOON.after_s < when < SOON.after_s + 60
    sound = answers(recorded, Harm(), SOON, DENSE, random())
    assert math.isinf(feed_answers(guards_for(recorded, 0.01), sound, 0.25, ("saturation",))["saturation"])


def test_a_request_for_a_pause_counts_as_a_call(recorded: Recorded) -> None:
    agreement = detectors(guards_for(recorded))["agreement"]
    while not agreement.breached:
        agreement.observe(1)  # type: ignore[attr-defined]
    assert called(agreement)
