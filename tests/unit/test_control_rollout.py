"""Rollouts within the control plane: what each event makes of tables, latches and trail; what other commands mean."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from control_kit import ME, NOW, entry, seeded, spec, table
from rollout_kit import POLICY

from serving.contract import Latch
from serving.control.rollouts import KEPT
from serving.control.state import step
from serving.core.commands import (
    ALL,
    ApplyModels,
    By,
    ControlState,
    ImportWord,
    Kill,
    MoveRollout,
    Outcome,
    Rearm,
    Rollback,
    SetTraffic,
    StartRollout,
    WordWrite,
)
from serving.core.rollout import Event, Hold, Move, Rollout, State
from serving.core.rollout_policy import Hook, Policy, Step, parse_policy
from serving.core.routing import weights
from serving.errors import ErrorKind, RequestError

DONE = Event(Move.DONE)
GUARD = By("rollout", "agreement is gone", {"guard": "agreement", "statistic": {"log_evidence": 7.2}})
STEPS = (Move.START, Move.SHADOW, Move.RAMP, Move.ADVANCE)
UP_TO_PROMOTION = (*STEPS, Move.HOLD, Move.APPROVE, Move.ADVANCE, Move.ADVANCE, Move.PROMOTE)


def start(variant: str = "distilled", **more: Any) -> StartRollout:
    return StartRollout("moderation", variant, POLICY["short"], "file", ME, **more)


def fresh() -> ControlState:
    """A model without any candidate."""
    return seeded({"moderation": spec(weights={}, shadow={})})


def run(state: ControlState, *commands: Any) -> Outcome:
    """Commands, or moves of the only rollout, in a row; the outcome of the last."""
    outcome = Outcome(state)
    for command in commands:
        if isinstance(command, Move):
            hold = Hold.APPROVAL if command is Move.HOLD else None
            id_ = next(iter(outcome.state.rollouts))
            command = MoveRollout(
                id_, Event(command, f"because of {command}", hold), By("rollout", "moves"), "salt-new"
            )
        outcome = step(outcome.state, command, NOW)
    return outcome


def only(state: ControlState) -> Rollout:
    (rollout,) = state.rollouts.values()
    return rollout


def refused(state: ControlState, command: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        step(state, command, NOW)
    return caught.value


# ---------------------------------------------------------------- starting


def test_a_started_rollout_changes_no_traffic_and_is_in_the_trail() -> None:
    outcome = run(fresh(), start())
    assert only(outcome.state).state is State.PENDING
    assert outcome.state.tables == fresh().tables
    (row,) = outcome.audit
    assert (row.action, row.variant, row.actor) == ("rollout-create", "distilled", "ann")
    assert (row.after["rollout"], row.after["policy"]["holdback"]) == ("distilled-1", 5.0)
    assert outcome.state.snapshot().rollouts == {"moderation/distilled": "pending"}


def test_the_trail_does_not_tell_where_webhooks_are_only_whose() -> None:
    hook = Hook("https://ann:pw@hooks.example.org/T0/s3cret?k=s3cret", "/etc/key")
    policy = msgspec.structs.replace(POLICY["short"], notify=(hook,))
    outcome = run(fresh(), msgspec.structs.replace(start(), policy=policy))
    (row,) = outcome.audit
    assert list(row.after["policy"]["notify"]) == [{"url": "https://hooks.example.org", "secret_file": "/etc/key"}]
    assert only(outcome.state).policy.notify == (hook,)  # which is where it is posted


def test_what_may_not_be_started() -> None:
    under_way = run(fresh(), start()).state
    killed = run(fresh(), Kill("moderation", ME)).state
    cases = (
        (fresh(), start("nope"), ErrorKind.NOT_FOUND, "unknown variant 'nope'"),
        (fresh(), start("teacher"), ErrorKind.BAD_REQUEST, "teacher is the baseline already"),
        (seeded(), start("int8"), ErrorKind.CONFLICT, "int8 has 5 % of the live traffic"),
        (under_way, start(), ErrorKind.CONFLICT, "rollout distilled-1 of distilled is pending: end it first"),
        (killed, start(), ErrorKind.CONFLICT, "moderation is killed"),
    )
    for state, command, kind, words in cases:
        error = refused(state, command)
        assert error.kind is kind
        assert words in error.message


def test_two_candidates_may_be_rolled_out_at_once_and_one_that_is_over_makes_room() -> None:
    state = run(fresh(), start(), start("int8")).state
    assert {rollout.id for rollout in state.rollouts.values()} == {"distilled-1", "int8-2"}
    ended = run(state, Rollback("moderation", ME, "int8")).state
    done = MoveRollout("int8-2", Event(Move.DONE), ME, "s")
    assert run(ended, done, start("int8")).state.rollouts["int8-3"].live


def test_only_the_latest_of_those_that_are_over_are_kept() -> None:
    state = fresh()
    for number in range(1, KEPT + 4):
        state = run(state, start(), Rollback("moderation", ME, "distilled")).state
        state = run(state, MoveRollout(f"distilled-{number}", Event(Move.DONE), ME, "s")).state
    assert len(state.rollouts) == KEPT
    assert f"distilled-{KEPT + 3}" in state.rollouts


def test_a_rollout_that_has_just_ended_is_kept_however_many_began_after_it() -> None:
    state, now = run(fresh(), start("int8")).state, NOW
    for number in range(2, KEPT + 3):
        ended = (start(), Rollback("moderation", ME, "distilled"), MoveRollout(f"distilled-{number}", DONE, ME, "s"))
        for command in ended:
            state, now = step(state, command, now).state, now + 1
    for command in (Rollback("moderation", GUARD, "int8"), MoveRollout("int8-1", DONE, ME, "s")):
        state, now = step(state, command, now).state, now + 1
    assert state.rollouts["int8-1"].state is State.ROLLED_BACK
    assert len(state.rollouts) == KEPT


def test_the_latest_rollout_of_a_variant_is_the_one_that_was_tried_again() -> None:
    state = fresh()
    for number in (1, 2):
        state = run(state, start(), Rollback("moderation", ME, "distilled")).state
        state = run(state, MoveRollout(f"distilled-{number}", Event(Move.DONE), ME, "s")).state
    assert [rollout.id for rollout in state.latest_rollouts()] == ["distilled-2"]
    tried = step(run(state, start("int8")).state, _move(Move.RETRY), NOW + 1).state
    assert [rollout.id for rollout in tried.latest_rollouts()] == ["distilled-1", "int8-3"]
    assert tried.snapshot().rollouts == {"moderation/distilled": "pending", "moderation/int8": "pending"}
    over = run(tried, Rollback("moderation", ME, "distilled"), _move(Move.DONE)).state
    assert [rollout.id for rollout in over.latest_rollouts()] == ["distilled-1", "int8-3"]


# ---------------------------------------------------------------- moving


def test_each_attempt_has_evidence_and_users_of_its_own() -> None:
    begun = run(fresh(), start(), Move.START)
    assert begun.state.vetoes["moderation/distilled"] == Latch(1, 1)  # a new arming, though no veto was in force
    assert begun.effects == (WordWrite("moderation", "distilled", 1, on=False),)
    ramped = run(begun.state, Move.SHADOW, Move.RAMP)
    assert (weights(table(ramped.state))["distilled"], table(ramped.state).shadow) == (100, {})
    assert table(ramped.state).salt == "salt-new"
    assert ramped.audit[-1].before["shadow"] == 100.0
    assert (ramped.audit[-1].after["weight"], ramped.audit[-1].after["state"]) == (1.0, "ramping")


def test_a_rollout_knows_the_rev_of_its_latest_change_of_traffic() -> None:
    state = run(fresh(), start(), Move.START, Move.SHADOW, Move.RAMP).state
    assert only(state).rev == state.rev
    baked = run(state, Move.ADVANCE).state  # a bake changes nothing
    assert only(baked).rev == state.rev < baked.rev


def test_a_promotion_leaves_the_holdback_and_success_makes_the_baseline() -> None:
    promoted = run(fresh(), start(), *UP_TO_PROMOTION).state
    assert weights(table(promoted)) == {"teacher": 500, "int8": 0, "distilled": 9500}
    assert table(promoted).baseline == "teacher"  # where kill, veto and fallback lead until it has succeeded
    done = run(promoted, Move.PROMOTED, Move.SUCCEED).state
    assert table(done).baseline == "distilled"
    assert weights(table(done)) == {"teacher": 0, "int8": 0, "distilled": 10_000}
    assert only(done).state is State.SUCCEEDED
    assert table(done).teacher == "teacher"


def test_a_promotion_leaves_other_candidates_what_they_have() -> None:
    other = SetTraffic(model="moderation", by=ME, salt="s", weights={"int8": 10})
    promoted = run(fresh(), other, start(), *UP_TO_PROMOTION).state
    assert weights(table(promoted)) == {"teacher": 500, "int8": 1000, "distilled": 8500}
    before = table(promoted).candidates["int8"]
    done = run(promoted, Move.PROMOTED, Move.SUCCEED).state
    assert table(done).candidates == {"int8": before}


def rolling(**rollouts: tuple[float, float]) -> ControlState:
    """Rollouts of variants that have got their only weight; each (percent, holdback), numbered in order."""
    state = fresh()
    for number, (variant, (percent, holdback)) in enumerate(rollouts.items(), start=1):
        policy = Policy(steps=(Step(set_weight=percent),), holdback=holdback)
        state = step(state, StartRollout("moderation", variant, policy, "file", ME), NOW).state
        for move in (Move.START, Move.RAMP):
            state = step(state, MoveRollout(f"{variant}-{number}", Event(move), ME, "s"), NOW).state
    return state


def test_two_candidates_leave_the_holdback_to_the_baseline() -> None:
    with pytest.raises(RequestError, match="it needs 50 % and the other candidates and the holdback leave 45 %"):
        rolling(int8=(50, 5), distilled=(50, 5))
    with pytest.raises(RequestError, match="the holdback leave 30 %"):
        rolling(int8=(50, 20), distilled=(50, 5))  # the other's is larger
    both = rolling(int8=(50, 0), distilled=(50, 0))
    assert weights(table(both))["teacher"] == 0
    beside = rolling(int8=(50, 20), distilled=(3, 5))
    promoted = step(beside, _numbered(Move.PROMOTE), NOW).state
    assert weights(table(promoted)) == {"teacher": 2000, "int8": 5000, "distilled": 3000}


def test_no_candidate_takes_the_holdback_of_one_that_is_promoted() -> None:
    alone = rolling(int8=(50, 5))
    promoted = run(alone, Move.PROMOTE, Move.PROMOTED).state
    other = StartRollout("moderation", "distilled", Policy(steps=(Step(set_weight=3),)), "file", ME)
    begun = run(promoted, other, _numbered(Move.START)).state
    assert (
        "needs 3 % and the other candidates and the holdback leave 0 %" in refused(begun, _numbered(Move.RAMP)).message
    )
    done = run(begun, Move.SUCCEED, _numbered(Move.RAMP)).state
    assert weights(table(done)) == {"teacher": 0, "int8": 9700, "distilled": 300}


def test_a_promotion_takes_nothing_from_its_candidate() -> None:
    by_hand = SetTraffic(model="moderation", by=ME, salt="s", weights={"int8": 96})
    crowded = run(rolling(distilled=(3, 5)), by_hand).state
    error = refused(crowded, _move(Move.PROMOTE))
    assert (error.kind, "it needs 3 % and the other" in error.message) == (ErrorKind.CONFLICT, True)
    none_left = SetTraffic(model="moderation", by=ME, salt="s", weights={"int8": 100, "distilled": 0})
    assert "it needs 0.01 %" in refused(run(crowded, none_left).state, _move(Move.PROMOTE)).message


def test_a_resumed_monitoring_gives_the_holdback_back_that_was_taken_by_hand() -> None:
    promoted = run(rolling(distilled=(50, 5)), Move.PROMOTE, Move.PROMOTED, Move.PAUSE).state
    taken = run(promoted, SetTraffic(model="moderation", by=ME, salt="s", weights={"int8": 4})).state
    assert weights(table(taken))["teacher"] == 100
    assert weights(table(run(taken, Move.RESUME).state)) == {"teacher": 500, "int8": 400, "distilled": 9100}


def test_a_rollback_from_the_monitoring_restores_the_old_baseline() -> None:
    watched = run(fresh(), start(), *UP_TO_PROMOTION, Move.PROMOTED).state
    outcome = run(watched, Rollback("moderation", GUARD, "distilled"))
    assert weights(table(outcome.state)) == {"teacher": 10_000, "int8": 0, "distilled": 0}
    assert only(outcome.state).state is State.ROLLING_BACK
    assert [(row.action, row.evidence.get("guard")) for row in outcome.audit] == [
        ("rollback", "agreement"),
        ("rollout-fail", "agreement"),
    ]
    assert run(outcome.state, Move.DONE).state.rollouts["distilled-1"].failed


# ---------------------------------------------------------------- what other commands mean


def ramping() -> ControlState:
    return run(fresh(), start(), *STEPS).state


def test_traffic_set_by_hand_pauses_a_rollout_which_sets_it_right_when_it_is_resumed() -> None:
    by_hand = SetTraffic(model="moderation", by=ME, salt="s", weights={"distilled": 30})
    outcome = run(ramping(), by_hand)
    rollout = only(outcome.state)
    assert (rollout.state, rollout.hold, rollout.held) == (State.PAUSED, Hold.MANUAL, State.RAMPING)
    assert rollout.why == "traffic was set by hand: because"
    assert [row.action for row in outcome.audit] == ["traffic", "rollout-pause"]
    resumed = run(outcome.state, Move.RESUME).state
    assert weights(table(resumed))["distilled"] == 100


@pytest.mark.parametrize("hold", [Hold.NO_HEADROOM, Hold.MONITOR_LOST, Hold.FREEZE])
def test_what_is_set_by_hand_during_a_pause_is_not_undone_when_that_would_end_by_itself(hold: Hold) -> None:
    paused = run(ramping(), MoveRollout("distilled-1", Event(Move.HOLD, "held", hold=hold), ME, "")).state
    lowered = run(paused, SetTraffic(model="moderation", by=ME, salt="s", weights={"distilled": 0})).state
    assert (only(lowered).hold, only(lowered).held) == (Hold.MANUAL, State.RAMPING)


def test_an_approval_restores_what_was_set_by_hand_while_it_was_waited_for() -> None:
    policy = parse_policy({"steps": [{"set_weight": 50}, {"approve": {}}]})
    begun = run(fresh(), msgspec.structs.replace(start(), policy=policy), Move.START, Move.RAMP, Move.ADVANCE)
    for percent in (0, 80):
        by_hand = SetTraffic(model="moderation", by=ME, salt="s", weights={"distilled": percent})
        waiting = run(begun.state, Move.HOLD, by_hand).state
        assert (only(waiting).hold, weights(table(waiting))["distilled"]) == (Hold.APPROVAL, percent * 100)
        assert weights(table(run(waiting, Move.APPROVE).state))["distilled"] == 5000


def test_traffic_of_another_variant_or_the_reference_alone_pauses_nothing() -> None:
    for change in ({"weights": {"int8": 3}}, {"reference_percent": 50.0}, {"weights": {"distilled": 1}}):
        command = SetTraffic(model="moderation", by=ME, salt="s", **change)  # type: ignore[arg-type]
        assert only(run(ramping(), command).state).state is State.RAMPING


@pytest.mark.parametrize("moves", [(), (Move.START,), STEPS])
@pytest.mark.parametrize(
    ("by", "failed"), [(GUARD, True), (By("ann", "enough"), False), (By("rollout", "late", {"limit": "x"}), True)]
)
def test_a_rollback_ends_a_rollout_and_only_a_machines_may_be_tried_again_by_itself(
    moves: tuple[Move, ...], by: By, failed: bool
) -> None:
    state = run(fresh(), start(), *moves, Rollback("moderation", by)).state
    assert (only(state).state, only(state).failed) == (State.ROLLING_BACK, failed)
    assert only(state).why == by.reason


def test_a_rollback_of_everybody_ends_the_rollouts_of_its_model_and_leaves_those_that_are_over() -> None:
    models = {name: spec(weights={}, shadow={}) for name in ("moderation", "other")}
    other = StartRollout("other", "int8", POLICY["short"], "file", ME)
    over = (start("int8"), Rollback("moderation", ME, "int8"), MoveRollout("int8-1", Event(Move.DONE), ME, "s"))
    outcome = run(seeded(models), *over, other, start(), Rollback("moderation", ME))
    assert {name: str(given.state) for name, given in outcome.state.rollouts.items()} == {
        "int8-1": "rolled_back", "int8-2": "pending", "distilled-3": "rolling_back",
    }  # fmt: skip
    assert [(row.action, row.variant) for row in outcome.audit] == [
        ("rollback", "distilled"), ("rollout-abort", "distilled"),
    ]  # fmt: skip


@pytest.mark.parametrize("moves", [(), (Move.START,), STEPS])
@pytest.mark.parametrize("whose", ["moderation", ALL])
def test_a_kill_ends_a_rollout_also_before_it_has_traffic(moves: tuple[Move, ...], whose: str) -> None:
    assert only(run(fresh(), start(), *moves, Kill(whose, ME)).state).state is State.KILLED


def test_a_rollback_found_in_the_control_word_ends_a_rollout() -> None:
    word = ImportWord(vetoes={"moderation/distilled": Latch(9, 1)})
    outcome = run(ramping(), word)
    assert (only(outcome.state).state, only(outcome.state).failed) == (State.ROLLING_BACK, False)
    assert [row.action for row in outcome.audit] == ["rollback", "rollout-abort"]


@pytest.mark.parametrize("done", [False, True])
def test_a_guard_that_says_later_that_the_word_was_its_own_lets_it_be_tried_again_by_itself(done: bool) -> None:
    found = run(ramping(), ImportWord(vetoes={"moderation/distilled": Latch(9, 1)})).state
    if done:  # the driver says why once more
        found = run(found, MoveRollout("distilled-1", Event(Move.DONE, only(found).why), ME, "")).state
    told = run(found, Rollback("moderation", GUARD, "distilled"))
    assert (only(told.state).failed, only(told.state).why) == (True, GUARD.reason)
    assert [(row.action, row.actor) for row in told.audit] == [("rollback", GUARD.actor)]
    by_hand = run(found, Rollback("moderation", ME, "distilled")).state
    assert not only(by_hand).failed
    assert not only(run(by_hand, Rollback("moderation", GUARD, "distilled")).state).failed  # a human's by now


def test_a_rollback_of_what_is_vetoed_already_ends_a_rollout_that_is_about_to_start() -> None:
    vetoed = run(fresh(), Rollback("moderation", ME, "distilled")).state
    state = run(vetoed, start(), Rollback("moderation", ME, "distilled")).state
    assert only(state).state is State.ROLLING_BACK
    assert "start is not possible" in refused(state, MoveRollout("distilled-1", Event(Move.START), ME, "s")).message


@pytest.mark.parametrize("whose", ["moderation", ALL])
def test_a_kill_latches_the_rollout_until_the_rearm_which_takes_the_candidate_out_at_once(whose: str) -> None:
    killed = run(ramping(), Kill(whose, GUARD)).state
    assert only(killed).state is State.KILLED
    for move in (Move.ADVANCE, Move.RESUME, Move.RETRY, Move.DONE):
        assert "is not possible while it is killed" in refused(killed, _move(move)).message
    assert weights(table(killed))["distilled"] == 100  # a kill leaves the table alone
    outcome = run(killed, Rearm(whose, ME, 1))
    assert only(outcome.state).state is State.ROLLING_BACK
    assert weights(table(outcome.state))["distilled"] == 0  # in the same snapshot
    assert outcome.state.vetoes["moderation/distilled"].on
    assert [row.action for row in outcome.audit] == ["rearm", "rollback", "rollout-rearm"]
    assert only(outcome.state).why == "killed (agreement is gone) and re-armed: because"


def rolled_back() -> ControlState:
    return run(ramping(), Rollback("moderation", ME, "distilled"), _move(Move.DONE)).state


def test_a_retry_is_refused_for_what_a_start_is_refused_for() -> None:
    given = SetTraffic(model="moderation", by=ME, salt="s", weights={"distilled": 5})
    promoted = ApplyModels({"moderation": spec(baseline="distilled", weights={}, shadow={})}, ME)
    gone = ApplyModels({"moderation": spec(variants={"teacher": entry("teacher", 1)}, weights={}, shadow={})}, ME)
    cases: tuple[tuple[Any, str], ...] = (
        (given, "distilled has 5 % of the live traffic"),
        (promoted, "distilled is the baseline by now"),
        (gone, "distilled is no longer in the configuration"),
        (start(), "rollout distilled-2 of distilled is pending: end it first"),
        (Kill("moderation", ME), "moderation is killed"),
    )
    for between, words in cases:
        error = refused(run(rolled_back(), between).state, _move(Move.RETRY))
        assert error.kind is ErrorKind.CONFLICT
        assert f"rollout distilled-1: it cannot be tried again now: {words}" in error.message
    assert run(rolled_back(), _move(Move.RETRY)).state.rollouts["distilled-1"].state is State.PENDING


def _move(move: Move) -> MoveRollout:
    return MoveRollout("distilled-1", Event(move), ME, "s")


def test_one_of_two_kills_cleared_leaves_the_rollout_killed() -> None:
    killed = run(ramping(), Kill("moderation", ME), Kill(ALL, ME)).state
    assert only(run(killed, Rearm(ALL, ME, 1)).state).state is State.KILLED


def test_a_rollout_whose_variant_or_build_is_gone_is_ended() -> None:
    known = dict(spec().variants)
    gone = {name: known[name] for name in ("teacher", "int8")}
    rebuilt = known | {"distilled": entry("distilled", 9, "moderation/distilled:2")}
    for variants, words in ((gone, "no longer in the configuration"), (rebuilt, "no longer moderation/distilled:1")):
        outcome = run(ramping(), ApplyModels({"moderation": spec(variants=variants, weights={}, shadow={})}, ME))
        assert only(outcome.state).state is State.ROLLING_BACK
        assert words in only(outcome.state).why
        assert weights(table(outcome.state)).get("distilled", 0) == 0


@pytest.mark.parametrize("held", [False, True])
def test_a_rollout_is_compared_with_the_baseline_that_replaced_its_own(held: bool) -> None:
    state = run(fresh(), start("int8"), *UP_TO_PROMOTION, Move.PROMOTED, start()).state
    assert state.rollouts["distilled-2"].baseline == "teacher"  # as long as the other is watched
    if held:
        state = run(state, _numbered(Move.PAUSE)).state
    moved = run(state, Move.SUCCEED)
    rollout = moved.state.rollouts["distilled-2"]
    assert (rollout.baseline, rollout.rev) == ("int8", moved.state.rev)  # verdicts from before are about another
    assert moved.state.rollouts["int8-1"].baseline == "teacher"
    assert [row.action for row in moved.audit] == ["rollout-succeed"]


def test_a_rollout_follows_the_baseline_of_the_file_also_over_a_retry() -> None:
    named = ApplyModels({"moderation": spec(baseline="int8", weights={}, shadow={})}, ME)
    outcome = run(ramping(), named)
    assert (only(outcome.state).state, only(outcome.state).baseline) == (State.RAMPING, "int8")
    assert only(outcome.state).rev == outcome.state.rev
    over = run(rolled_back(), named).state
    assert only(over).baseline == "teacher"
    assert only(run(over, _move(Move.RETRY)).state).baseline == "int8"


def _numbered(move: Move) -> MoveRollout:
    return MoveRollout("distilled-2", Event(move), ME, "s")


# ---------------------------------------------------------------- the file and the promoted baseline


def promoted() -> ControlState:
    return run(fresh(), start(), *UP_TO_PROMOTION, Move.PROMOTED, Move.SUCCEED).state


def restarted(state: ControlState, **changes: Any) -> Outcome:
    return step(state, ApplyModels({"moderation": spec(weights={}, shadow={}, **changes)}, ME), NOW)


def test_a_promoted_baseline_outlives_a_restart_and_the_difference_is_told() -> None:
    outcome = restarted(promoted())
    assert outcome.state.tables == promoted().tables
    assert any("baseline is teacher in the file and distilled in the store, which wins" in n for n in outcome.notes)


def test_a_file_that_follows_ends_the_difference_and_one_that_changes_its_mind_wins() -> None:
    followed = restarted(promoted(), baseline="distilled")
    assert (followed.state.promoted, table(followed.state).baseline) == ({}, "distilled")
    assert not any("baseline" in note for note in followed.notes)
    changed = restarted(promoted(), baseline="int8")
    assert table(changed.state).baseline == "int8"
    assert any("baseline is int8 by the file, no longer the promoted distilled" in note for note in changed.notes)


def test_a_promoted_baseline_that_left_the_file_is_given_up() -> None:
    variants = {name: entry for name, entry in spec().variants.items() if name != "distilled"}
    outcome = restarted(promoted(), variants=variants)
    assert table(outcome.state).baseline == "teacher"


def test_a_second_promotion_still_knows_what_the_file_said() -> None:
    state = run(promoted(), start("teacher")).state
    id_ = "teacher-2"
    for move in (*UP_TO_PROMOTION, Move.PROMOTED, Move.SUCCEED):
        event = Event(move, hold=Hold.APPROVAL if move is Move.HOLD else None)
        state = step(state, MoveRollout(id_, event, ME, "s"), NOW).state
    assert table(state).baseline == "teacher"
    assert restarted(state).state.promoted == {}  # the file and the store agree again


def test_the_state_reads_back_from_its_document() -> None:
    for state in (ramping(), promoted()):
        assert msgspec.json.decode(msgspec.json.encode(state), type=ControlState) == state
