"""What a rollout is said to take, against the bounds of theory and against the detectors themselves."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from rollout_kit import POLICY

from monitoring.detectors.agreement import Agreement
from monitoring.detectors.errors import Errors
from serving.core.rollout_plan import MANY, Assumed, plan
from serving.core.rollout_policy import NAMED, Policy, parse_policy

DEMO = Assumed(
    rate=80, reference=1.0, agreement=0.02, disagreement=0.0, errors=0.001, alpha=0.002, pass_alpha=0.05
)  # fmt: skip


def other(**changes: float) -> Assumed:
    return msgspec.structs.replace(DEMO, **changes)


def test_only_the_shadow_and_the_bakes_take_time_and_at_their_own_rate() -> None:
    steps = plan(NAMED["fast"], DEMO)
    assert [(step.step, step.rate) for step in steps] == [(0, 80.0), (2, 0.8), (4, 8.0), (6, 40.0)]
    assert [step.warnings for step in steps] == [[], [], [], []]
    assert steps[0].passes.keys() == {"agreement"}  # no client gets a shadow's answer: no errors to count
    assert steps[1].passes.keys() == {"errors", "agreement"}


def test_a_pass_takes_what_the_detectors_take() -> None:
    """Without a single error or flip, the guards themselves pass after as many answers, give or take 2 %."""
    step = plan(NAMED["fast"], DEMO)[-1]
    errors, agreement = Errors(budget=0.001, pass_alpha=0.05), Agreement(0.02, 0.06, pass_alpha=0.05)
    answers = 0
    while not errors.passed:
        answers += 50
        for _ in range(50):
            errors.observe(True, False, share=0.5)
        errors.settle()
    assert step.passes["errors"].observations == pytest.approx(answers, rel=0.02)
    pairs = next(n for n in range(1, 2000) if agreement.observe(0) or agreement.passed)
    assert step.passes["agreement"].observations == pytest.approx(pairs, rel=0.02)


def test_a_detection_takes_what_the_detector_takes_on_average() -> None:
    step = plan(NAMED["fast"], DEMO)[-1]
    rng, found = np.random.default_rng(7), []
    for _ in range(40):
        guard = Agreement(0.02, 0.5, alpha=DEMO.alpha)
        draws = iter((rng.random(20_000) < 0.04).tolist())
        found.append(next(n for n, flip in enumerate(draws, 1) if guard.observe(int(flip)) or guard.breached))
    assert step.detects["2x"].observations == pytest.approx(float(np.mean(found)), rel=0.25)


@pytest.mark.parametrize("harm", ["1.5x", "2x", "4x"])
def test_no_number_is_better_than_any_test_can_do_and_none_much_worse(harm: str) -> None:
    need = plan(NAMED["fast"], DEMO)[-1].detects[harm]
    assert need.bound < need.observations < 1.5 * need.bound
    rate = {"1.5x": 0.03, "2x": 0.04, "4x": 0.08}[harm]
    divergence = rate * math.log(rate / 0.02) + (1 - rate) * math.log((1 - rate) / 0.98)
    assert need.bound == math.ceil(math.log(500) / divergence)
    assert need.seconds == pytest.approx(need.observations / 40)
    assert need.suspect == pytest.approx(need.observations * rate)


def test_what_earlier_steps_have_gathered_is_counted() -> None:
    shadow, one, ten, fifty = plan(NAMED["fast"], DEMO)
    assert shadow.passes["agreement"].seconds == pytest.approx(shadow.passes["agreement"].observations / 80)
    assert fifty.passes["agreement"].seconds == 0.0
    seen = one.seconds * 0.8 + ten.seconds * 8  # type: ignore[operator]
    assert fifty.seconds == pytest.approx((fifty.passes["errors"].observations - seen) / 40)


def test_a_smaller_reference_share_makes_agreement_slower_and_costs_answers() -> None:
    full, sampled = (plan(NAMED["fast"], other(reference=share))[-1].detects["2x"] for share in (1.0, 0.1))
    assert full.seconds is not None
    assert sampled.seconds == pytest.approx(10 * full.seconds)
    assert sampled.suspect == pytest.approx(10 * full.suspect)


def test_a_step_that_cannot_be_done_in_time_is_warned_of() -> None:
    slow = plan(POLICY["short"], other(rate=2))
    assert slow[2].warnings == ["step 6 is not done within 10m at 1 answers/s: errors needs 5305 answers"]
    assert slow[1].warnings == []
    starved = plan(POLICY["short"], other(rate=0.01))
    assert starved[1].warnings == ["step 3 is not done within 10m at 0.0001 answers/s: it waits for 5 requests"]


def test_without_traffic_nothing_is_ever_done() -> None:
    for step in plan(POLICY["short"], other(rate=0)):
        assert step.seconds is None
        assert step.warnings == [f"step {step.step + 1} gets no requests at the present traffic"]
        assert all(need.seconds is None for need in (*step.passes.values(), *step.detects.values()))


def test_a_candidate_that_is_over_its_limit_already_never_passes() -> None:
    step = plan(NAMED["shadow-only"], other(disagreement=0.03))[0]
    assert step.passes["agreement"].seconds is None
    assert step.warnings == [
        "step 1 is not done within 2d at 16 answers/s: agreement never passes at the expected 3 %, its limit is 2 %"
    ]


def by_time(**shadow: object) -> Policy:
    steps = [{"set_weight": 10}, {"bake": {"until": "time", "min_duration": "1h", "max_duration": "2h"}}]
    return parse_policy({"steps": [{"shadow": {"percent": 100, "until": "time", **shadow}}] * bool(shadow) + steps})


def test_a_gate_by_time_waits_for_the_data_of_each_required_guard() -> None:
    (step,) = plan(by_time(), other(reference=0))
    assert step.seconds is None
    assert step.warnings == ["step 2 is not done within 2h at 8 answers/s: agreement gets no data"]
    (step,) = plan(by_time(), DEMO)
    assert (step.seconds, step.warnings) == (3600.0, [])


def test_pairs_of_the_shadow_are_data_and_may_be_enough_for_the_pass() -> None:
    for duration, seconds, warnings in (
        ("1m", 0.0, []),
        ("1s", None, ["the promotion will wait: agreement needs 263 answers and gets no more"]),
    ):
        step = plan(by_time(min_duration=duration), other(reference=0))[-1]
        assert (step.seconds, step.passes["agreement"].seconds, step.warnings) == (3600.0, seconds, warnings)


def test_a_promotion_that_would_wait_for_ever_is_warned_of() -> None:
    shadow, step = plan(by_time(min_duration="1m"), other(disagreement=0.05))
    assert (step.seconds, step.passes["agreement"].observations) == (3600.0, MANY)
    why = "the promotion will wait: agreement never passes at the expected 5 %, its limit is 2 %"
    assert (shadow.warnings, step.warnings) == ([], [why])


def test_a_policy_that_needs_no_such_guard_is_not_held_up() -> None:
    policy = parse_policy({"steps": [{"set_weight": 50}, {"bake": {"min_requests": 400}}], "required": ["harm"]})
    (step,) = plan(policy, DEMO)
    assert (step.passes, step.seconds) == ({}, 10.0)
