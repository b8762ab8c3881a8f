"""A staged rollout as a table: which event leads from which state to which. Pure.

`step` is the only way a rollout changes. What it asks of the world comes back as effects that say
what is to be so ("weight is 1000"), never what to add, so that doing one twice does no harm. Which
event the present situation calls for is decided elsewhere (`rollout_decide`).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import msgspec

from serving.core.freeze import SECOND_NS, frozen_until, seconds
from serving.core.rollout_policy import Policy, Step
from serving.errors import ErrorKind, RequestError

replace = msgspec.structs.replace


class State(StrEnum):
    PENDING = "pending"  # waits for its time: a cooldown, a freeze
    WARMUP = "warmup"  # waits for a worker of the candidate
    SHADOW = "shadow"  # copies only
    RAMPING = "ramping"  # step by step to more live traffic
    PAUSED = "paused"  # stays where it is, see `Hold`
    PROMOTING = "promoting"  # everything but the holdback goes to the candidate
    MONITORING = "monitoring"  # promoted and watched; the old baseline is where everything goes back to
    SUCCEEDED = "succeeded"  # the candidate is the baseline
    ROLLING_BACK = "rolling_back"  # taken out; not every gateway has said so yet
    ROLLED_BACK = "rolled_back"
    KILLED = "killed"  # the model's kill-switch came in between; left by a re-arm only


class Move(StrEnum):
    """What can happen to a rollout."""

    START = "start"
    SHADOW = "shadow"
    RAMP = "ramp"
    ADVANCE = "advance"
    PROMOTE = "promote"
    PROMOTED = "promoted"
    SUCCEED = "succeed"
    FINISH = "finish"  # done without a promotion: the policy gives no live traffic
    HOLD = "hold"  # paused by the machine, which also resumes
    PAUSE = "pause"  # paused by a human
    RESUME = "resume"
    APPROVE = "approve"
    FAIL = "fail"  # a guard or a limit
    ABORT = "abort"  # a human
    DONE = "done"  # every gateway has it
    KILL = "kill"
    REARM = "rearm"
    RETRY = "retry"


class Hold(StrEnum):
    """Why a rollout is paused."""

    MANUAL = "manual"
    INCONCLUSIVE = "inconclusive"
    NO_DATA = "no_data"
    FREEZE = "freeze"
    APPROVAL = "approval"
    MONITOR_LOST = "monitor_lost"
    GUARD = "guard"  # a guard's verdict that pauses the ramp
    NO_HEADROOM = "no_headroom"  # the baseline could not take the traffic back
    BASELINE = "baseline"  # the baseline is not well itself
    NO_ROOM = "no_room"  # other candidates have the traffic that the next step needs


#: In place of a state: back to where it was paused.
BACK = None

#: What can come in any state with a future.
_ALWAYS: dict[Move, State | None] = {
    Move.PAUSE: State.PAUSED,
    Move.FAIL: State.ROLLING_BACK,
    Move.ABORT: State.ROLLING_BACK,
    Move.KILL: State.KILLED,
}
_HOLD: dict[Move, State | None] = {Move.HOLD: State.PAUSED}

#: The whole machine. A pair that is not here is refused.
TRANSITIONS: dict[State, dict[Move, State | None]] = {
    State.PENDING: {Move.START: State.WARMUP, **_ALWAYS},
    State.WARMUP: {Move.SHADOW: State.SHADOW, Move.RAMP: State.RAMPING, **_ALWAYS},
    State.SHADOW: {Move.RAMP: State.RAMPING, Move.FINISH: State.SUCCEEDED, **_HOLD, **_ALWAYS},
    State.RAMPING: {Move.ADVANCE: State.RAMPING, Move.PROMOTE: State.PROMOTING, **_HOLD, **_ALWAYS},
    State.PAUSED: {Move.RESUME: BACK, Move.APPROVE: State.RAMPING, Move.PROMOTE: State.PROMOTING, **_ALWAYS},
    State.PROMOTING: {Move.PROMOTED: State.MONITORING, **_ALWAYS},
    State.MONITORING: {Move.SUCCEED: State.SUCCEEDED, **_HOLD, **_ALWAYS},
    State.ROLLING_BACK: {Move.DONE: State.ROLLED_BACK, Move.KILL: State.KILLED},
    State.KILLED: {Move.REARM: State.ROLLING_BACK},
    State.ROLLED_BACK: {Move.RETRY: State.PENDING},
    State.SUCCEEDED: {},
}

#: What a freeze window blocks. Going back is never among them.
ADVANCING = frozenset(
    {
        Move.START,
        Move.SHADOW,
        Move.RAMP,
        Move.ADVANCE,
        Move.PROMOTE,
        Move.SUCCEED,
        Move.FINISH,
        Move.APPROVE,
        Move.RESUME,
    }
)
#: A rollout in one of these is over.
ENDED = frozenset({State.SUCCEEDED, State.ROLLED_BACK})
#: Out of traffic, or on the way: nothing that happens to the candidate's traffic concerns the rollout any more.
OUT = ENDED | {State.ROLLING_BACK, State.KILLED}


# ---------------------------------------------------------------- effects


class Clear(msgspec.Struct, frozen=True):
    """No veto of the candidate is in force, and its evidence starts anew: this attempt is a new one."""


class ShadowShare(msgspec.Struct, frozen=True):
    """Basis points of the requests are copied to the candidate."""

    share: int


class Weight(msgspec.Struct, frozen=True):
    """The candidate has basis points of the live traffic."""

    share: int


class AllBut(msgspec.Struct, frozen=True):
    """The candidate has all live traffic but `holdback` basis points and what other candidates have or keep back."""

    holdback: int


class TakeOut(msgspec.Struct, frozen=True):
    """The candidate has no traffic, no shadow, and a veto."""


class Baseline(msgspec.Struct, frozen=True):
    """The candidate is the model's baseline, and the old baseline has no traffic."""


Effect = Clear | ShadowShare | Weight | AllBut | TakeOut | Baseline


# ---------------------------------------------------------------- values


class Event(msgspec.Struct, frozen=True):
    """Something that happens to a rollout.

    Args:
        why: the reason in words and numbers, for the trail.
        hold: with HOLD, which one.
        seen: answers of the candidate (in a shadow: pairs) that the monitor has counted so far.
        waive: with RESUME, APPROVE and PROMOTE, guards whose say a human sets aside.
        free: with RESUME, the guard that paused it does so no longer, or a human overrides it.
    """

    move: Move
    why: str = ""
    hold: Hold | None = None
    seen: int = 0
    waive: tuple[str, ...] = ()
    free: bool = False


class Rollout(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One rollout as it is stored. Times: nanoseconds since the Unix epoch."""

    id: str
    model: str
    variant: str
    policy: Policy
    policy_name: str
    started_by: str
    created_ns: int
    state: State = State.PENDING
    at: int = 0  # index of the present step
    held: State | None = None  # where it was paused
    hold: Hold | None = None
    why: str = ""  # of the latest change
    changed_ns: int = 0
    step_ns: int = 0  # when the present step (or the monitoring) began
    step_seen: int = 0  # what the monitor had counted then
    attempt: int = 1
    not_before_ns: int = 0
    failed: bool = False  # ended by a guard or a limit, so that it may be tried again by itself
    waived: tuple[str, ...] = ()
    #: What it is compared with, and where everything goes back to.
    baseline: str = ""
    #: Rev of the snapshot with this rollout's latest change of traffic: older verdicts do not count.
    rev: int = 0

    @property
    def live(self) -> bool:
        return self.state not in ENDED

    @property
    def step(self) -> Step | None:
        """The present step; None once all are done."""
        return self.policy.steps[self.at] if self.at < len(self.policy.steps) else None

    @property
    def weight(self) -> int:
        """Basis points that the steps so far have given, before a promotion."""
        given = [step.set_weight for step in self.policy.steps[: self.at + 1] if step.set_weight is not None]
        return round(given[-1] * 100) if given else 0

    @property
    def required(self) -> tuple[str, ...]:
        """Guards that must pass, without those that a human has set aside."""
        return tuple(guard for guard in self.policy.required if guard not in self.waived)


# ---------------------------------------------------------------- stepping


def step(rollout: Rollout, event: Event, now_ns: int) -> tuple[Rollout, tuple[Effect, ...]]:
    """Carry out one event.

    Args:
        now_ns: wall clock, nanoseconds since the Unix epoch.

    Raises:
        RequestError: CONFLICT; the table has no such pair, a freeze window is open, or the rollout is
            not where the event makes sense.
    """
    moves = TRANSITIONS[rollout.state]
    if event.move not in moves:
        raise _conflict(rollout, f"{event.move} is not possible while it is {_where(rollout)}")
    if event.move in ADVANCING and (until := frozen_until(rollout.policy.freeze, now_ns)) is not None:
        raise _conflict(rollout, f"{event.move} has to wait: a freeze window is open for {_span(until - now_ns)}")
    changed, effects = _EFFECTS[event.move](rollout, event, now_ns)
    target = moves[event.move]
    if target is BACK:
        target = rollout.held or State.PENDING
    changed = replace(changed, state=target, why=event.why, changed_ns=now_ns)
    if target is not State.PAUSED:
        changed = replace(changed, held=None, hold=None)
    return changed, effects


def _conflict(rollout: Rollout, what: str) -> RequestError:
    return RequestError(ErrorKind.CONFLICT, f"rollout {rollout.id}: {what}")


def _where(rollout: Rollout) -> str:
    return f"{rollout.state} ({rollout.hold})" if rollout.hold else str(rollout.state)


def _span(span_ns: int) -> str:
    minutes = max(1, round(span_ns / SECOND_NS / 60))
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.0f} h"


_Change = tuple[Rollout, tuple[Effect, ...]]


def _entered(rollout: Rollout, at: int, event: Event, now_ns: int) -> _Change:
    """At step `at`, whose time starts now."""
    entered = replace(rollout, at=at, step_ns=now_ns, step_seen=event.seen)
    present = entered.step
    if present is not None and present.shadow is not None:
        return entered, (ShadowShare(round(present.shadow.percent * 100)),)
    return entered, (Weight(entered.weight),) if present is not None and present.set_weight is not None else ()


def _start(rollout: Rollout, _event: Event, _now_ns: int) -> _Change:
    return rollout, (Clear(),)


def _shadow(rollout: Rollout, event: Event, now_ns: int) -> _Change:
    if rollout.step is None or rollout.step.shadow is None:
        raise _conflict(rollout, "its policy has no shadow step")
    return _entered(rollout, 0, event, now_ns)


def _ramp(rollout: Rollout, event: Event, now_ns: int) -> _Change:
    first = next((at for at, step in enumerate(rollout.policy.steps) if step.shadow is None), None)
    if first is None:
        raise _conflict(rollout, "its policy gives no live traffic")
    changed, effects = _entered(rollout, first, event, now_ns)
    return changed, (ShadowShare(0), *effects)


def _advance(rollout: Rollout, event: Event, now_ns: int) -> _Change:
    if rollout.step is None:
        raise _conflict(rollout, "its steps are done, what is next is its promotion")
    return _entered(rollout, rollout.at + 1, event, now_ns)


def _promote(rollout: Rollout, event: Event, now_ns: int) -> _Change:
    if State.RAMPING not in (rollout.state, rollout.held):
        raise _conflict(rollout, f"a promotion follows ramping, and it was {rollout.held}")
    promoted = replace(
        rollout, at=len(rollout.policy.steps), waived=_waived(rollout, event), step_ns=now_ns, step_seen=event.seen
    )
    return promoted, (AllBut(round(rollout.policy.holdback * 100)),)


def _promoted(rollout: Rollout, event: Event, now_ns: int) -> _Change:
    return replace(rollout, step_ns=now_ns, step_seen=event.seen), ()


def _succeed(rollout: Rollout, _event: Event, _now_ns: int) -> _Change:
    return rollout, (Baseline(),)


def _finish(rollout: Rollout, _event: Event, _now_ns: int) -> _Change:
    if rollout.policy.promotes:
        raise _conflict(rollout, "its policy gives live traffic, so it ends with a promotion")
    return rollout, (ShadowShare(0),)


def _paused(rollout: Rollout, event: Event, _now_ns: int) -> _Change:
    held = rollout.held if rollout.state is State.PAUSED else rollout.state
    hold = Hold.MANUAL if event.move is Move.PAUSE else event.hold or Hold.MANUAL
    return replace(rollout, held=held, hold=hold), ()


#: Holds at which the step had done its part: its time does not start anew.
_WAITED = (Hold.FREEZE, Hold.INCONCLUSIVE, Hold.NO_DATA, Hold.NO_ROOM, Hold.NO_HEADROOM)


def _resume(rollout: Rollout, event: Event, now_ns: int) -> _Change:
    if rollout.hold is Hold.APPROVAL:
        raise _conflict(rollout, "it waits for an approval, not to be resumed")
    if rollout.hold is Hold.GUARD and not event.free:
        raise _conflict(
            rollout, f'a guard pauses it: {rollout.why}. To go on all the same, ask again with "override": true'
        )
    changed = replace(rollout, waived=_waived(rollout, event))
    if rollout.hold not in _WAITED:
        changed = replace(changed, step_ns=now_ns, step_seen=event.seen)
    # What a human may have changed meanwhile is set right again.
    if rollout.held in (State.PROMOTING, State.MONITORING):
        return changed, (AllBut(round(rollout.policy.holdback * 100)),)
    present = rollout.step
    if rollout.held is State.SHADOW and present is not None and present.shadow is not None:
        return changed, (ShadowShare(round(present.shadow.percent * 100)),)
    return changed, (Weight(rollout.weight),) if rollout.held is State.RAMPING else ()


def _approve(rollout: Rollout, event: Event, now_ns: int) -> _Change:
    if rollout.hold is not Hold.APPROVAL:
        raise _conflict(rollout, f"it is paused ({rollout.hold}) and waits for no approval")
    changed, effects = _entered(replace(rollout, waived=_waived(rollout, event)), rollout.at + 1, event, now_ns)
    # Where the next step gives no weight, what a human may have changed meanwhile is set right.
    return changed, effects or (Weight(changed.weight),)


def _fail(rollout: Rollout, event: Event, _now_ns: int) -> _Change:
    return replace(rollout, failed=event.move is Move.FAIL), (TakeOut(),)


def _unchanged(rollout: Rollout, _event: Event, _now_ns: int) -> _Change:
    return rollout, ()


def _rearm(rollout: Rollout, _event: Event, _now_ns: int) -> _Change:
    return replace(rollout, failed=False), (TakeOut(),)


def _retry(rollout: Rollout, _event: Event, now_ns: int) -> _Change:
    retry = rollout.policy.retry
    pause_s = seconds(retry.cooldown) * retry.backoff ** (rollout.attempt - 1)
    return (
        replace(
            rollout,
            at=0,
            step_ns=0,
            step_seen=0,
            attempt=rollout.attempt + 1,
            not_before_ns=rollout.changed_ns + int(min(pause_s, _LONGEST_PAUSE_S) * SECOND_NS),
            created_ns=now_ns,
            failed=False,
            waived=(),
        ),
        (),
    )


#: However often it backs off: a month.
_LONGEST_PAUSE_S = 30 * 86_400.0


def _waived(rollout: Rollout, event: Event) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*rollout.waived, *event.waive)))


_EFFECTS: dict[Move, Callable[[Rollout, Event, int], Any]] = {
    Move.START: _start,
    Move.SHADOW: _shadow,
    Move.RAMP: _ramp,
    Move.ADVANCE: _advance,
    Move.PROMOTE: _promote,
    Move.PROMOTED: _promoted,
    Move.SUCCEED: _succeed,
    Move.FINISH: _finish,
    Move.HOLD: _paused,
    Move.PAUSE: _paused,
    Move.RESUME: _resume,
    Move.APPROVE: _approve,
    Move.FAIL: _fail,
    Move.ABORT: _fail,
    Move.DONE: _unchanged,
    Move.KILL: _unchanged,
    Move.REARM: _rearm,
    Move.RETRY: _retry,
}
