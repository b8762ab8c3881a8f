"""Which event a situation calls for, and what is said while a rollout waits: one rule a test."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from rollout_kit import NOW, POLICY, SECOND, facts, frozen, passing, rollout

from serving.core.rollout import Event, Hold, Move, Rollout, State
from serving.core.rollout_decide import Decision, Facts, Guard, by_hand, decide, raise_lacks, unmet
from serving.core.rollout_policy import Gate, Policy, Retry, Step

LATER = NOW + 60 * SECOND


def shadow(**changes: Any) -> Rollout:
    return rollout(state=State.SHADOW, **changes)


def bake(at: int = 5, **changes: Any) -> Rollout:
    """At a bake: step 2 is `until: time`, step 5 `until: pass`."""
    return rollout(**({"state": State.RAMPING, "at": at} | changes))


def said(given: Rollout, now_ns: int = LATER, **known: Any) -> Decision:
    return decide(given, facts(**known), now_ns)


def with_word(name: str, word: str, action: str = "none") -> dict[str, Guard]:
    return passing() | {name: Guard(name, word, action, f"{name} says {word}", {"events": 3})}


def held(decision: Decision) -> Hold:
    assert decision.event is not None
    assert decision.event.move is Move.HOLD
    assert decision.event.hold is not None
    return decision.event.hold


def moved(decision: Decision) -> Move | None:
    return decision.event.move if decision.event is not None else None


# ---------------------------------------------------------------- gates


@pytest.mark.parametrize("word", ["no_data", "degraded", "inconclusive"])
@pytest.mark.parametrize("guard", ["errors", "latency", "agreement"])
def test_a_gate_until_pass_stays_shut_without_every_pass(guard: str, word: str) -> None:
    decision = said(bake(), guards=with_word(guard, word))
    assert decision == Decision(None, f"waits for: {guard}, {word} ({guard} says {word})")


def test_a_gate_until_time_takes_inconclusive_and_no_missing_data() -> None:
    assert moved(said(bake(2), guards=with_word("errors", "inconclusive"))) is Move.ADVANCE
    assert moved(said(bake(2), guards=with_word("errors", "no_data"))) is None
    without = {name: guard for name, guard in passing().items() if name != "latency"}
    assert said(bake(2), guards=without).why == "waits for: latency (no verdict yet)"


def test_a_gate_waits_for_its_time_and_its_requests() -> None:
    decision = said(bake(step_seen=995), now_ns=NOW + 4 * SECOND)
    assert decision.why == "waits for: 5 of 10 requests; 4 s of 10s"
    assert moved(said(bake(step_seen=990))) is Move.ADVANCE


def test_a_monitor_that_lost_its_state_counts_from_nothing() -> None:
    assert said(bake(step_seen=5000), live=4).why == "waits for: 4 of 10 requests"
    assert moved(said(bake(step_seen=5000), live=10)) is Move.ADVANCE


def test_a_shadow_is_judged_by_what_pairs_can_tell() -> None:
    only_pairs = {"agreement": Guard("agreement", "pass")}
    assert moved(said(shadow(), guards=only_pairs, live=0)) is Move.RAMP
    assert moved(said(shadow(), guards={}, live=0)) is None
    assert said(shadow(), pairs=3).why == "waits for: 3 of 10 requests"


def test_a_policy_without_live_traffic_finishes_after_its_shadow() -> None:
    assert moved(said(shadow(policy=POLICY["shadow-only"]))) is Move.FINISH


def test_a_gate_that_is_late() -> None:
    late = NOW + 601 * SECOND
    assert held(said(bake(), now_ns=late, guards=with_word("errors", "no_data"))) is Hold.NO_DATA
    assert held(said(bake(), now_ns=late, live=3)) is Hold.NO_DATA
    unsure = with_word("errors", "inconclusive")
    assert held(said(bake(), now_ns=late, guards=unsure)) is Hold.INCONCLUSIVE
    strict = _with_gate(POLICY["short"], on_inconclusive="rollback")
    decision = said(bake(policy=strict), now_ns=late, guards=unsure)
    assert moved(decision) is Move.FAIL
    assert (decision.evidence["limit"], decision.evidence["requests"]) == ("on_inconclusive", 1000)
    assert decision.evidence["guards"]["errors"] == {
        "guard": "errors", "verdict": "inconclusive", "sentence": "errors says inconclusive",
        "statistic": {"events": 3},
    }  # fmt: skip
    assert decision.why == "not done within 10m: errors, inconclusive (errors says inconclusive)"


def test_a_late_gate_that_was_without_data_is_rolled_back_once_there_is_data_and_no_pass() -> None:
    late, unsure = NOW + 601 * SECOND, with_word("errors", "inconclusive")
    strict = _with_gate(POLICY["short"], on_inconclusive="rollback")
    starved = bake(policy=strict, state=State.PAUSED, held=State.RAMPING, hold=Hold.NO_DATA)
    assert moved(said(starved, now_ns=late, guards=with_word("errors", "degraded"))) is None
    decision = said(starved, now_ns=late, guards=unsure)
    assert (moved(decision), decision.evidence["limit"]) == (Move.FAIL, "on_inconclusive")
    assert moved(said(starved, now_ns=late)) is Move.RESUME
    lenient = msgspec.structs.replace(starved, policy=POLICY["short"])
    assert moved(said(lenient, now_ns=late, guards=unsure)) is None
    crowded = msgspec.structs.replace(starved, hold=Hold.NO_ROOM)  # it was in time, and others kept it waiting
    assert moved(said(crowded, now_ns=late, guards=unsure)) is None


def _with_gate(policy: Policy, **changes: Any) -> Policy:
    step = policy.steps[5]
    assert isinstance(step.bake, Gate)
    changed = Step(bake=msgspec.structs.replace(step.bake, **changes))
    return msgspec.structs.replace(policy, steps=(*policy.steps[:5], changed))


def test_a_weight_is_left_only_when_every_gateway_has_it() -> None:
    given = rollout(state=State.RAMPING, at=1)
    assert said(given, confirmed=False) == Decision(None, "waits for every gateway to confirm 1 %")
    assert moved(said(given)) is Move.ADVANCE


@pytest.mark.parametrize(
    ("state", "at", "what", "move"),
    [
        (State.RAMPING, 4, "50 %", Move.ADVANCE),
        (State.RAMPING, 6, "50 %", Move.PROMOTE),
        (State.PROMOTING, 6, "the promotion", Move.PROMOTED),
    ],
)
def test_what_is_counted_from_a_change_of_traffic_on_waits_for_the_monitor_to_have_seen_it(
    state: State, at: int, what: str, move: Move
) -> None:
    given = rollout(state=state, at=at, step_seen=995)
    for silent_s in (0.5, 60.0, None):  # its heartbeat is late; and before the first one after a restart
        first = Facts(silent_s=silent_s, listened_s=1.0, workers=1, confirmed=True)
        event = decide(given, first, LATER).event
        assert event is None or event.move is Move.HOLD
    decision = decide(given, Facts(silent_s=0.5, workers=1, confirmed=True), LATER)
    assert decision == Decision(None, f"waits for the monitor to have seen {what}")
    event = said(given, live=1007).event
    assert event is not None
    assert (event.move, event.seen) == (move, 1007)


@pytest.mark.parametrize("held", [State.RAMPING, State.SHADOW, State.MONITORING])
def test_a_human_who_goes_on_without_a_fresh_count_does_not_make_the_whole_attempt_one_step(held: State) -> None:
    waiting = rollout(state=State.PAUSED, held=held, hold=Hold.MANUAL, step_seen=995)
    unheard = Facts(silent_s=None, workers=1, confirmed=True)
    for move in (Move.RESUME, Move.APPROVE, Move.PROMOTE):
        assert by_hand(move, waiting, unheard, "go on").seen == 995
        assert by_hand(move, waiting, facts(live=1007, pairs=1007), "go on").seen == 1007


# ---------------------------------------------------------------- promotion and after


def test_a_promotion_needs_a_pass_of_every_required_guard_and_carries_the_numbers() -> None:
    done = rollout(state=State.RAMPING, at=6)
    decision = said(done)
    assert moved(decision) is Move.PROMOTE
    assert set(decision.evidence["passes"]) == {"errors", "latency", "agreement"}
    assert held(said(done, guards=with_word("errors", "inconclusive"))) is Hold.INCONCLUSIVE
    assert held(said(done, guards=with_word("errors", "degraded"))) is Hold.NO_DATA
    assert unmet(done, facts(guards={})) == [
        "errors (no verdict yet)", "latency (no verdict yet)", "agreement (no verdict yet)",
    ]  # fmt: skip


def test_a_guard_that_a_human_has_set_aside_is_not_waited_for() -> None:
    done = rollout(state=State.RAMPING, at=6, waived=("errors",))
    assert moved(said(done, guards=with_word("errors", "no_data"))) is Move.PROMOTE


def test_the_monitoring_takes_its_time_and_needs_requests() -> None:
    watched = rollout(state=State.MONITORING, at=6, step_seen=995)
    assert said(watched, now_ns=NOW + 5 * SECOND).why == "waits for: 5 of 10 requests; 5 s of 30s"
    assert moved(said(rollout(state=State.MONITORING, at=6))) is Move.SUCCEED
    assert moved(said(rollout(state=State.MONITORING, at=6), guards={})) is None


# ---------------------------------------------------------------- brakes


@pytest.mark.parametrize("state", [State.WARMUP, State.SHADOW, State.RAMPING, State.PROMOTING, State.MONITORING])
@pytest.mark.parametrize("action", ["rollback", "kill"])
def test_a_failed_guard_goes_back_from_anywhere_even_in_a_freeze(state: State, action: str) -> None:
    given = frozen(rollout(state=state, at=6 if state is State.MONITORING else 0))
    decision = said(given, guards=with_word("harm", "fail", action))
    assert moved(decision) is Move.FAIL
    assert decision.evidence == {
        "guard": "harm", "verdict": "fail", "sentence": "harm says fail", "statistic": {"events": 3},
    }  # fmt: skip


def test_a_paused_rollout_still_goes_back() -> None:
    paused = rollout(state=State.PAUSED, held=State.RAMPING, hold=Hold.MANUAL, at=2)
    assert moved(said(paused, guards=with_word("harm", "fail", "rollback"))) is Move.FAIL


def test_a_verdict_about_an_earlier_attempt_does_not_stop_one_that_has_not_begun() -> None:
    assert moved(said(rollout(), guards=with_word("harm", "fail", "rollback"))) is Move.START


def test_suspect_answers_of_an_earlier_attempt_do_not_end_one_that_has_not_begun() -> None:
    assert moved(said(rollout(), suspect=101)) is Move.START
    assert moved(said(rollout(attempt=2), suspect=101)) is Move.START
    assert moved(said(rollout(state=State.WARMUP), suspect=101)) is Move.FAIL  # its START has set them to 0


def test_a_rollout_that_is_paused_before_its_start_is_not_ended_by_an_earlier_attempt() -> None:
    waiting = rollout(state=State.PAUSED, held=State.PENDING, hold=Hold.MANUAL, why="lunch")
    stale = with_word("harm", "fail", "rollback")
    assert said(waiting, suspect=101, guards=stale) == Decision(None, "waits for a human: lunch")


def test_an_alert_changes_nothing() -> None:
    assert (
        moved(said(bake(), guards=passing() | {"latency_slo": Guard("latency_slo", "fail", "alert")})) is Move.ADVANCE
    )


def test_limits_go_back() -> None:
    assert said(bake(), suspect=101).evidence["limit"] == "max_suspect_responses"
    assert moved(said(bake(), suspect=100)) is Move.ADVANCE
    old = rollout(state=State.PAUSED, held=State.RAMPING, hold=Hold.APPROVAL, at=3)
    decision = said(old, now_ns=NOW + 2 * 86_400 * SECOND + 1)
    assert (moved(decision), decision.why) == (Move.FAIL, "not done within limits.max_duration, 2d")


@pytest.mark.parametrize("silent_s", [10.1, None])
def test_a_lost_monitor_pauses_and_is_waited_for(silent_s: float | None) -> None:
    assert held(said(bake(), silent_s=silent_s)) is Hold.MONITOR_LOST
    lost = rollout(state=State.PAUSED, held=State.RAMPING, hold=Hold.MONITOR_LOST, at=5)
    assert moved(said(lost, silent_s=silent_s)) is None
    assert moved(said(lost, guards={})) is None
    assert moved(said(lost)) is Move.RESUME


def test_a_control_plane_that_has_just_started_waits_for_the_monitor_before_it_calls_it_lost() -> None:
    unheard = "the monitor, which has not been heard since the control plane started"
    for given in (bake(), rollout(state=State.SHADOW), rollout(state=State.MONITORING)):
        early = said(given, guards={}, silent_s=None, listened_s=10.0)
        assert early == Decision(None, f"waits for {unheard}")
        late = said(given, guards={}, silent_s=None, listened_s=10.1)
        assert (held(late), late.why) == (Hold.MONITOR_LOST, unheard.replace(", which", ""))
    # Meanwhile nothing is resumed either, and humans are held as by a lost monitor.
    first = facts(guards={}, silent_s=None, listened_s=1.0)
    ailed = rollout(state=State.PAUSED, held=State.RAMPING, hold=Hold.BASELINE, at=5)
    assert decide(ailed, first, LATER) == Decision(None, "waits for the monitor")
    assert [brake.hold for brake in raise_lacks(ailed, first)] == [Hold.MONITOR_LOST]
    assert not by_hand(Move.RESUME, ailed, first, "go on").free


def test_a_guard_that_pauses_waits_for_a_human_and_is_not_raised_again_once_set_aside() -> None:
    breached = with_word("agreement", "fail", "pause")
    assert held(said(bake(), guards=breached)) is Hold.GUARD
    paused = rollout(state=State.PAUSED, held=State.RAMPING, hold=Hold.GUARD, at=5, why="agreement says fail")
    assert said(paused, guards=breached) == Decision(None, "waits for a human: agreement says fail")
    assert moved(said(bake(waived=("agreement",)), guards=breached)) is Move.ADVANCE


def test_what_the_machine_decides_by_guards_carries_their_numbers() -> None:
    numbers = {"log_evidence": 7.2, "log_threshold": 6.4, "observations": 900, "example_request_keys": ["0a", "0b"]}
    breached = passing() | {"agreement": Guard("agreement", "fail", "pause", "over its limit", numbers)}
    assert said(bake(), guards=breached).evidence == {
        "guard": "agreement", "verdict": "fail", "sentence": "over its limit", "statistic": numbers,
    }  # fmt: skip
    passed = passing() | {"agreement": Guard("agreement", "pass", "none", "within it", numbers)}
    waiting = rollout(state=State.PAUSED, held=State.RAMPING, hold=Hold.NO_DATA, at=5)
    watched = rollout(state=State.MONITORING, at=6)
    for given, guards in (
        (shadow(step_seen=10), ["agreement"]),
        *((one, ["errors", "latency", "agreement"]) for one in (bake(step_seen=10), waiting, watched)),
    ):
        evidence = said(given, guards=passed).evidence
        assert (list(evidence["guards"]), evidence["requests"]) == (guards, 1000 - given.step_seen)
        assert evidence["guards"]["agreement"]["statistic"] == numbers
    limit = said(bake(), suspect=101, guards=passed).evidence
    assert (limit["threshold"], limit["guards"]["agreement"]["statistic"]) == (100, numbers)


def test_evidence_is_bounded_whatever_the_monitor_says() -> None:
    deep: Any = "x"
    for _ in range(50):
        deep = [deep]
    statistic: dict[str, Any] = {
        "example_request_keys": [f"{key:016x}" for key in range(10_000)], "deep": deep, "log_evidence": 7.25,
        **{f"slice {number}": {"text": "y" * 10_000} for number in range(1000)},
    }  # fmt: skip
    for verdict, action in (("fail", "pause"), ("fail", "rollback"), ("pass", "none")):
        guards = passing() | {"errors": Guard("errors", verdict, action, "z" * 10_000, statistic)}
        evidence = said(bake(), guards=guards).evidence
        assert len(msgspec.json.encode(evidence)) < 32_768
        kept = evidence if verdict == "fail" else evidence["guards"]["errors"]
        assert kept["statistic"]["log_evidence"] == 7.25
        assert kept["statistic"]["example_request_keys"][:2] == ["0" * 16, "0" * 15 + "1"]


def test_a_candidate_gets_no_more_traffic_than_the_baseline_could_take_back() -> None:
    decision = said(rollout(state=State.SHADOW, at=0), headroom=0.8)
    assert held(decision) is Hold.NO_HEADROOM
    assert "can do 0.80 times the present traffic" in decision.why
    assert held(said(rollout(state=State.RAMPING, at=6), headroom=0.8)) is Hold.NO_HEADROOM  # the promotion
    paused = rollout(state=State.PAUSED, held=State.SHADOW, hold=Hold.NO_HEADROOM)
    assert moved(said(paused, headroom=0.99)) is None
    assert moved(said(paused, headroom=1.0)) is Move.RESUME
    for unknown in (None, 1.0):
        assert moved(said(rollout(state=State.SHADOW, at=0), headroom=unknown)) is Move.RAMP


def test_the_first_traffic_of_a_policy_without_a_shadow_needs_headroom_too() -> None:
    ready = rollout(state=State.WARMUP, at=0)
    policy = msgspec.structs.replace(ready.policy, steps=tuple(s for s in ready.policy.steps if s.shadow is None))
    ready = msgspec.structs.replace(ready, policy=policy)
    decision = said(ready, headroom=0.8)
    assert moved(decision) is None
    assert "can do 0.80 times the present traffic" in decision.why
    assert moved(said(ready, headroom=1.0)) is Move.RAMP


def test_a_promotion_that_would_take_traffic_from_the_candidate_waits_for_room() -> None:
    done = rollout(state=State.RAMPING, at=6)
    decision = said(done, room=4999)
    assert held(decision) is Hold.NO_ROOM
    assert (
        decision.why == "a promotion needs the 50 % that it has and the other candidates and the holdback leave 49.99 %"
    )
    waiting = rollout(state=State.PAUSED, held=State.RAMPING, hold=Hold.NO_ROOM, at=6)
    assert said(waiting, room=4999) == Decision(None, decision.why)
    assert moved(said(waiting, room=5000)) is Move.RESUME
    assert moved(said(done, room=5000)) is Move.PROMOTE


def test_a_step_that_gives_no_more_asks_for_no_headroom() -> None:
    assert moved(said(bake(2), headroom=0.1)) is Move.ADVANCE


def test_a_policy_may_ask_for_any_headroom_or_none() -> None:
    shadowed = rollout(state=State.SHADOW, at=0)
    for least, headroom, move in ((0.0, 0.01, Move.RAMP), (2.0, 1.9, Move.HOLD), (2.0, 2.0, Move.RAMP)):
        limits = msgspec.structs.replace(shadowed.policy.limits, min_headroom=least)
        policy = msgspec.structs.replace(shadowed.policy, limits=limits)
        assert moved(said(msgspec.structs.replace(shadowed, policy=policy), headroom=headroom)) is move


def test_with_an_ailing_baseline_nothing_advances_and_nothing_flaps() -> None:
    ailing = "the baseline teacher has no worker"
    assert held(said(bake(), ailing=ailing)) is Hold.BASELINE
    paused = rollout(state=State.PAUSED, held=State.RAMPING, hold=Hold.BASELINE, at=5, baseline="teacher")
    assert said(paused, ailing=ailing) == Decision(None, ailing)
    assert moved(said(paused)) is Move.RESUME
    assert moved(said(rollout(state=State.MONITORING, at=6), ailing=ailing)) is not Move.HOLD


def test_a_guard_in_dry_run_neither_brakes_nor_is_waited_for() -> None:
    watching = passing() | {"latency": Guard("latency", "fail", "none", "latency says fail", dry_run=True)}
    assert moved(said(bake(), guards=watching)) is Move.ADVANCE
    assert unmet(bake(), facts(guards=watching)) == []
    alone = {name: Guard(name, "inconclusive", dry_run=True) for name in passing()}
    assert len(unmet(bake(), facts(guards=alone))) == 3  # a promotion needs evidence of somebody


# ---------------------------------------------------------------- waiting


def test_what_a_pause_waits_for() -> None:
    by_hand = rollout(state=State.PAUSED, held=State.RAMPING, hold=Hold.MANUAL, at=5, why="lunch")
    assert said(by_hand) == Decision(None, "waits for a human: lunch")
    asked = said(rollout(state=State.RAMPING, at=3))
    assert (held(asked), asked.why) == (Hold.APPROVAL, "waits for the approval of an operator")
    starved = rollout(state=State.PAUSED, held=State.RAMPING, hold=Hold.NO_DATA, at=5)
    assert moved(said(starved, now_ns=NOW + 9999 * SECOND, guards=with_word("errors", "no_data"))) is None
    assert moved(said(starved, now_ns=NOW + 9999 * SECOND)) is Move.RESUME


def test_a_freeze_turns_an_advance_into_a_pause_that_ends_with_it() -> None:
    decision = said(frozen(bake()))
    assert held(decision) is Hold.FREEZE
    assert "a freeze window is open for" in decision.why
    waiting = rollout(state=State.PAUSED, held=State.RAMPING, hold=Hold.FREEZE, at=5)
    assert moved(said(frozen(waiting))) is None
    assert moved(said(waiting)) is Move.RESUME
    assert moved(said(frozen(rollout()))) is None  # pending stays pending


def test_a_candidate_is_warmed_up_before_it_gets_anything() -> None:
    given = rollout(state=State.WARMUP)
    for workers in (0, None):
        assert said(given, workers=workers) == Decision(None, "waits for a worker of int8")
    assert said(given, silent_s=60.0) == Decision(None, "waits for the monitor")
    assert moved(said(given)) is Move.SHADOW


def test_pending_waits_for_its_time_and_for_a_model_that_is_not_killed() -> None:
    assert said(rollout(not_before_ns=LATER + 5 * SECOND, attempt=2)).why == "attempt 2 starts in 5 s"
    assert said(rollout(), killed=True) == Decision(None, "the model is killed")
    assert said(rollout(), hindered="it is not approved") == Decision(None, "it is not approved")


def test_a_rollback_is_done_when_every_gateway_has_it_and_tried_again_only_if_the_policy_says_so() -> None:
    assert moved(said(rollout(state=State.ROLLING_BACK), confirmed=False)) is None
    assert moved(said(rollout(state=State.ROLLING_BACK))) is Move.DONE
    assert moved(said(rollout(state=State.ROLLED_BACK, failed=True))) is Move.RETRY
    assert moved(said(rollout(state=State.ROLLED_BACK, failed=False))) is None  # a human ended it
    assert moved(said(rollout(state=State.ROLLED_BACK, failed=True, attempt=2))) is None
    once = msgspec.structs.replace(POLICY["short"], retry=Retry())
    assert moved(said(rollout(state=State.ROLLED_BACK, failed=True, policy=once))) is None


def test_an_automatic_retry_waits_for_what_it_would_be_refused_for() -> None:
    over = rollout(state=State.ROLLED_BACK, failed=True)
    assert said(over, hindered="int8 has 5 % of the live traffic") == Decision(None, "int8 has 5 % of the live traffic")


def test_what_is_counted_from_a_step_on() -> None:
    assert said(rollout(state=State.WARMUP), pairs=40).event == Event(
        Move.SHADOW, "int8 has 1 worker: 100 % of the requests are copied", seen=40
    )
    ramp = said(shadow(), pairs=70, live=7).event
    assert ramp is not None
    assert ramp.seen == 7  # of traffic by hand in the shadow: what the step gives is counted from here on
