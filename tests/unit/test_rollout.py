"""The rollout's table: every state and every event, and what must hold whatever happens."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_kit import NOW, POLICY, SECOND, facts, frozen, passing, rollout, weight_of

from serving.contract import ROLLOUT_STATES
from serving.core.rollout import (
    ADVANCING,
    BACK,
    ENDED,
    TRANSITIONS,
    AllBut,
    Baseline,
    Clear,
    Event,
    Hold,
    Move,
    Rollout,
    ShadowShare,
    State,
    TakeOut,
    Weight,
    step,
)
from serving.core.rollout_decide import Facts, Guard, by_hand, decide
from serving.core.rollout_policy import parse_policy
from serving.errors import ErrorKind, RequestError

#: The table once more, written down by hand: (state, event) -> state. What is not here is refused.
ENDS = {"pause": "paused", "fail": "rolling_back", "abort": "rolling_back", "kill": "killed"}
EXPECTED = {
    "pending": {"start": "warmup", **ENDS},
    "warmup": {"shadow": "shadow", "ramp": "ramping", **ENDS},
    "shadow": {"ramp": "ramping", "finish": "succeeded", "hold": "paused", **ENDS},
    "ramping": {"advance": "ramping", "promote": "promoting", "hold": "paused", **ENDS},
    "paused": {"resume": None, "approve": "ramping", "promote": "promoting", **ENDS},
    "promoting": {"promoted": "monitoring", **ENDS},
    "monitoring": {"succeed": "succeeded", "hold": "paused", **ENDS},
    "rolling_back": {"done": "rolled_back", "kill": "killed"},
    "killed": {"rearm": "rolling_back"},
    "rolled_back": {"retry": "pending"},
    "succeeded": {},
}


def fit(state: State, move: Move) -> Rollout:
    """A rollout in a state, with what an event asks for beyond the table."""
    at = {State.SHADOW: 0, State.RAMPING: 2}.get(state, 0)
    hold, held = None, None
    if state is State.PAUSED:
        hold, held = (Hold.APPROVAL if move is Move.APPROVE else Hold.MANUAL), State.RAMPING
        at = 3 if move is Move.APPROVE else 2
    if move is Move.FINISH:
        return rollout(state=state, policy=POLICY["shadow-only"])
    return rollout(state=state, at=at, hold=hold, held=held)


@pytest.mark.parametrize(("state", "move"), list(itertools.product(State, Move)))
def test_every_pair_of_state_and_event(state: State, move: Move) -> None:
    given_ = fit(state, move)
    event = Event(move, "why", Hold.FREEZE if move is Move.HOLD else None)
    if str(move) not in EXPECTED[str(state)]:
        with pytest.raises(RequestError, match=rf"{move} is not possible while it is {state}") as caught:
            step(given_, event, NOW)
        assert caught.value.kind is ErrorKind.CONFLICT
        return
    moved, _ = step(given_, event, NOW + SECOND)
    assert moved.state == (EXPECTED[str(state)][str(move)] or "ramping")
    assert (moved.why, moved.changed_ns) == ("why", NOW + SECOND)
    assert (moved.hold is None) == (moved.state is not State.PAUSED)


def test_the_table_and_the_contract_name_the_same_states() -> None:
    assert set(TRANSITIONS) == set(State)
    assert tuple(sorted(ROLLOUT_STATES)) == tuple(sorted(State))
    assert [state for state in State if State.KILLED not in TRANSITIONS[state].values()] == [
        State.SUCCEEDED, State.ROLLED_BACK, State.KILLED,
    ]  # fmt: skip


def test_killed_is_left_only_by_a_rearm() -> None:
    assert TRANSITIONS[State.KILLED] == {Move.REARM: State.ROLLING_BACK}


# ---------------------------------------------------------------- effects


def effects(given_: Rollout, move: Move, **more: object) -> tuple[object, ...]:
    return step(given_, Event(move, "why", **more), NOW)[1]  # type: ignore[arg-type]


def test_each_step_says_what_is_to_be_so() -> None:
    shadowed = rollout(state=State.SHADOW)
    assert effects(rollout(), Move.START) == (Clear(),)
    assert effects(rollout(state=State.WARMUP), Move.SHADOW) == (ShadowShare(10_000),)
    assert effects(shadowed, Move.RAMP) == (ShadowShare(0), Weight(100))
    ramped, _ = step(shadowed, Event(Move.RAMP), NOW)
    assert effects(ramped, Move.ADVANCE) == ()  # a bake changes nothing
    baked, _ = step(ramped, Event(Move.ADVANCE), NOW)
    assert baked.weight == 100
    assert effects(rollout(state=State.RAMPING, at=3), Move.ADVANCE) == (Weight(5000),)
    assert effects(rollout(state=State.RAMPING, at=6), Move.PROMOTE) == (AllBut(500),)
    assert effects(rollout(state=State.MONITORING, at=6), Move.SUCCEED) == (Baseline(),)
    for move in (Move.FAIL, Move.ABORT):
        assert effects(ramped, move) == (TakeOut(),)
    assert effects(rollout(state=State.KILLED), Move.REARM) == (TakeOut(),)


def test_a_resumed_ramp_sets_its_weight_right_and_starts_its_step_anew() -> None:
    paused, nothing = step(rollout(state=State.RAMPING, at=5), Event(Move.PAUSE, "look first"), NOW)
    assert nothing == ()
    resumed, again = step(paused, Event(Move.RESUME, "seen", seen=70), NOW + 60 * SECOND)
    assert (resumed.state, resumed.step_ns, resumed.step_seen) == (State.RAMPING, NOW + 60 * SECOND, 70)
    assert again == (Weight(5000),)


def test_an_approval_sets_the_weight_right_whatever_the_next_step_is() -> None:
    steps = ({"set_weight": 50}, {"approve": {}}, {"bake": {}}, {"approve": {}}, {"set_weight": 60}, {"approve": {}})
    policy = parse_policy({"steps": list(steps)})
    for at, share in ((1, 5000), (3, 6000), (5, 6000)):  # before a bake, a weight, the promotion
        waiting = rollout(policy=policy, state=State.PAUSED, held=State.RAMPING, hold=Hold.APPROVAL, at=at)
        assert effects(waiting, Move.APPROVE) == (Weight(share),)


def test_a_step_that_had_done_its_part_does_not_start_anew() -> None:
    given_ = rollout(state=State.RAMPING, at=5, step_ns=NOW)
    held, _ = step(given_, Event(Move.HOLD, "frozen", Hold.FREEZE), NOW + 60 * SECOND)
    resumed, _ = step(held, Event(Move.RESUME, "open"), NOW + 120 * SECOND)
    assert resumed.step_ns == NOW


def test_what_the_state_alone_does_not_forbid() -> None:
    waiting = rollout(state=State.PAUSED, held=State.RAMPING, hold=Hold.APPROVAL, at=3)
    asked, by_guard = (rollout(state=State.PAUSED, held=State.RAMPING, hold=hold) for hold in (Hold.MANUAL, Hold.GUARD))
    refused = {
        "waits for an approval": (waiting, Event(Move.RESUME)),
        "waits for no approval": (asked, Event(Move.APPROVE)),
        "follows ramping": (rollout(state=State.PAUSED, held=State.SHADOW, hold=Hold.MANUAL), Event(Move.PROMOTE)),
        "a guard pauses it": (by_guard, Event(Move.RESUME)),
        "its steps are done": (rollout(state=State.RAMPING, at=6), Event(Move.ADVANCE)),
        "gives live traffic": (rollout(state=State.SHADOW), Event(Move.FINISH)),
        "no live traffic": (rollout(state=State.SHADOW, policy=POLICY["shadow-only"]), Event(Move.RAMP)),
    }
    for words, (given_, event) in refused.items():
        with pytest.raises(RequestError, match=words):
            step(given_, event, NOW)


def test_a_retry_waits_longer_each_time_and_starts_from_nothing() -> None:
    over = rollout(state=State.ROLLED_BACK, at=5, failed=True, waived=("latency",), changed_ns=NOW)
    again, nothing = step(over, Event(Move.RETRY), NOW + SECOND)
    assert (again.state, again.at, again.attempt, again.waived, nothing) == (State.PENDING, 0, 2, (), ())
    assert again.not_before_ns == NOW + 60 * SECOND
    third, _ = step(rollout(state=State.ROLLED_BACK, attempt=2, changed_ns=NOW), Event(Move.RETRY), NOW)
    assert third.not_before_ns == NOW + 180 * SECOND


# ---------------------------------------------------------------- freeze


@pytest.mark.parametrize(("state", "move"), [(s, m) for s in State for m in TRANSITIONS[s]])
def test_a_freeze_blocks_advance_and_nothing_else(state: State, move: Move) -> None:
    given_ = frozen(fit(state, move))
    event = Event(move, "why", Hold.FREEZE if move is Move.HOLD else None)
    if move in ADVANCING:
        with pytest.raises(RequestError, match="freeze window is open"):
            step(given_, event, NOW)
    else:
        target = TRANSITIONS[state][move]
        assert target is not BACK
        assert step(given_, event, NOW)[0].state is target


# ---------------------------------------------------------------- whatever happens

WORDS = st.sampled_from(["pass", "fail", "inconclusive", "no_data", "degraded"])
GUARD_FACTS = st.fixed_dictionaries(
    {}, optional={name: st.tuples(WORDS, st.sampled_from(["none", "pause", "rollback"])) for name in passing()}
)
SITUATIONS = st.builds(
    lambda fresh, guards, live, **more: Facts(
        fresh=fresh,
        guards={n: Guard(n, word, act if word == "fail" else "none") for n, (word, act) in guards.items() if fresh},
        live=live if fresh else 0, pairs=live if fresh else 0, **more,
    ),
    fresh=st.sampled_from([True, True, True, False]),
    guards=st.one_of(GUARD_FACTS, st.just(dict.fromkeys(passing(), ("pass", "none")))),
    live=st.sampled_from([0, 5, 1000, 1000]),
    silent_s=st.sampled_from([0.5, 0.5, 0.5, 60.0, None]),
    workers=st.sampled_from([0, 1, 1, 1]),
    suspect=st.sampled_from([0.0, 0.0, 0.0, 999.0]),
    confirmed=st.sampled_from([True, True, False]),
    room=st.sampled_from([10_000, 10_000, 50]),
)  # fmt: skip
HUMAN = st.sampled_from(
    [None] * 8 + [Move.PAUSE, Move.RESUME, Move.PROMOTE, Move.APPROVE, Move.ABORT, Move.KILL, Move.REARM, Move.RETRY]
)
MOMENTS = st.lists(st.tuples(SITUATIONS, HUMAN, st.sampled_from([1, 30, 600, 7200]), st.booleans()), max_size=40)


@given(MOMENTS)
@settings(max_examples=300)
def test_whatever_happens_limits_hold_and_missing_data_never_passes(
    moments: list[tuple[Facts, Move | None, int, bool]],
) -> None:
    now, given_ = NOW, rollout()
    weight = 0
    for situation, human, seconds, freeze in moments:
        now += seconds * SECOND
        given_ = frozen(given_, freeze)
        event = decide(given_, situation, now).event
        by_human = human is not None and human in TRANSITIONS[given_.state]
        if by_human and human is not None:
            event = by_hand(human, given_, situation, "asked")
        if event is None:
            continue
        try:
            moved, done = step(given_, event, now)
        except RequestError:
            assert by_human, f"the machine chose {event} for {given_.state}, which is impossible"
            continue
        if freeze:
            assert event.move not in ADVANCING
        if given_.state is State.KILLED:
            assert event.move is Move.REARM
        if event.move in (Move.RAMP, Move.ADVANCE, Move.SUCCEED, Move.PROMOTE) and not by_human:
            judged = {State.SHADOW: ("agreement",)}.get(given_.state, given_.required)
            gated = given_.state is not State.WARMUP and (given_.step is None or given_.step.set_weight is None)
            words = [situation.guards[name].verdict if name in situation.guards else "no_data" for name in judged]
            assert not gated or not {"no_data", "degraded", "fail"} & set(words), (given_.state, event)
        weight = weight_of(done, weight, situation.room)
        if moved.state in (State.SHADOW, State.RAMPING):
            assert weight <= given_.policy.limits.max_weight * 100
        assert weight <= 10_000 - given_.policy.holdback * 100
        if moved.state in ENDED - {State.SUCCEEDED}:
            assert weight == 0
        given_ = moved


def test_a_sound_candidate_gets_through_by_itself_but_for_the_approval() -> None:
    now, given_, seen = NOW, rollout(), []
    for tick in range(60):
        now += 10 * SECOND
        event = decide(given_, facts(live=100 * tick, pairs=100 * tick), now).event
        if given_.hold is Hold.APPROVAL:
            event = Event(Move.APPROVE, "fine")
        if event is not None:
            given_, done = step(given_, event, now)
            seen.append((str(given_.state), *(effect for effect in done if isinstance(effect, Weight | AllBut))))
    assert given_.state is State.SUCCEEDED
    assert [state for state, *_ in seen] == [
        "warmup", "shadow", "ramping", "ramping", "ramping", "paused", "ramping", "ramping", "ramping", "promoting",
        "monitoring", "succeeded",
    ]  # fmt: skip
    assert [effect for _, *rest in seen for effect in rest] == [Weight(100), Weight(5000), AllBut(500)]
