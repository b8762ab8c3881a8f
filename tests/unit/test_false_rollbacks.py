"""The simulated A/A rollouts: their traffic, what the guards make of it, and what is said about the counts."""

from __future__ import annotations

import numpy as np
import pytest

from loadtests.false_rollbacks import SETTINGS, Tally, events, line, rollout, tally
from loadtests.proportions import lower, upper
from loadtests.worlds import FLIPS, HARM, WORLDS, World, traffic
from monitoring.event import is_error

BY_NAME = {world.name: world for world in WORLDS}


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
class TestEveryWorld:
    def test_the_arms_are_equals(self, world: World) -> None:
        rates: dict[bool, list[float]] = {True: [], False: []}
        for seed in range(30):
            drawn = traffic(world, 4000, random(seed))
            for arm, found in rates.items():
                here = drawn.candidate == arm
                found.append(float((drawn.timeout | drawn.lost)[here].mean()))
        expected = world.timeouts + world.lost
        for found in rates.values():
            error = np.std(found, ddof=1) / len(found) ** 0.5
            assert np.mean(found) == pytest.approx(expected, abs=4 * error)

    def test_only_a_candidates_answers_are_scored_and_only_scored_ones_are_labelled(self, world: World) -> None:
        drawn = traffic(world, 4000, random())
        assert drawn.scored.any()
        assert drawn.labelled.any()
        assert not (drawn.scored & ~drawn.candidate).any()
        assert not (drawn.labelled & ~drawn.scored).any()
        assert not (drawn.harmful & ~drawn.flipped).any()

    def test_a_batch_is_of_one_arm_and_is_lost_as_a_whole(self, world: World) -> None:
        drawn = traffic(world, 4000, random())
        for key in np.unique(drawn.batch[drawn.lost]):
            batch = drawn.batch == key
            assert drawn.lost[batch].all()
            assert len(np.unique(drawn.candidate[batch])) == 1


def test_rates_of_differing_are_the_ones_that_the_limits_at_the_truth_speak_of() -> None:
    drawn = traffic(World("long"), 200_000, random())
    assert drawn.flipped.mean() == pytest.approx(FLIPS, rel=0.05)
    assert drawn.harmful.mean() == pytest.approx(HARM, rel=0.05)


def test_users_stay_with_their_arm_and_ramps_only_add() -> None:
    world = World("ramp", weights=(0.1, 0.25, 0.5))
    drawn = traffic(world, 30_000, random())
    for number, weight in enumerate(world.weights):
        assert drawn.candidate[drawn.phase == number].mean() == pytest.approx(weight, abs=0.02)
    sticky = traffic(World("sticky", users=1), 1000, random())
    assert len(np.unique(sticky.candidate)) == 1


def test_a_common_shock_slows_both_arms() -> None:
    calm, shaken = (traffic(World("w", shocks=shocks), 20_000, random()) for shocks in (0, 40))
    for arm in (True, False):
        slow = [float(np.mean(one.latency_us[one.candidate == arm] > 60_000)) for one in (calm, shaken)]
        assert slow[1] > 5 * slow[0]


def test_records_blame_whoever_failed() -> None:
    drawn = traffic(World("w"), 4000, random())
    records = [event for event, *_ in events(drawn, 0, 2)]
    failed = drawn.timeout | drawn.lost
    assert [is_error(event, "baseline") for event in records] == failed.tolist()
    assert {event.status for event in records if event.variant == "candidate"} == {200}  # the baseline answered


def test_a_sound_candidate_passes_and_one_that_fails_more_often_does_not() -> None:
    assert rollout(World("sound"), "default", 3000, random()) == set()
    assert rollout(World("both raise", exceptions=0.2), "default", 3000, random()) == set()
    assert "errors" in rollout(World("raises", own_exceptions=0.2), "default", 3000, random())


def test_the_limits_at_the_truth_leave_no_room() -> None:
    limits = SETTINGS["at the truth"]
    assert limits.errors.ratio == 1
    assert limits.latency.margin == limits.latency.margin_ms == 0
    assert limits.agreement.limit is not None
    assert limits.agreement.limit * limits.agreement.gross_factor == pytest.approx(FLIPS)
    assert limits.harm.budget == HARM


def test_a_tally_counts_rollouts_by_guard_and_in_all() -> None:
    found = tally(World("w"), "default", [{"errors", "harm"}, set(), {"errors"}])
    assert found == Tally("w", "default", 3, {"errors": 2, "latency": 0, "agreement": 0, "harm": 1, "any": 2})


@pytest.mark.parametrize(("count", "refuted"), [(20, []), (60, ["errors"])])
def test_a_budget_is_refuted_only_by_more_than_chance(count: int, refuted: list[str]) -> None:
    assert Tally("w", "default", 10_000, {"errors": count, "any": count}).refuted() == refuted


def test_the_table_shows_limits() -> None:
    found = Tally("w", "default", 10_000, {"errors": 0, "latency": 5, "agreement": 0, "harm": 0, "any": 5})
    assert (
        line(found)
        == "| w | default | 0 (≤ 0.03%) | 5 (0.02% – 0.11%) | 0 (≤ 0.03%) | 0 (≤ 0.03%) | 5 (0.02% – 0.11%) |"
    )


def test_exact_limits_enclose_the_proportion_and_close_in() -> None:
    assert lower(0, 100) == 0
    assert upper(0, 100) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert lower(100, 100) == pytest.approx(0.05 ** (1 / 100))
    assert lower(20, 10_000) < 0.002 < upper(20, 10_000)
    assert upper(20, 10_000) - lower(20, 10_000) < upper(2, 1000) - lower(2, 1000)
