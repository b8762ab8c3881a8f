"""Rollouts within the control plane's state: starting them, moving them, and what other commands mean for them.

A rollout, the table it moves and the audit row that says so change in one `Outcome`, hence in one
transaction and one snapshot: there is no moment at which one of them is ahead of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from serving.contract import BUCKETS, RouteTable
from serving.control.tables import drafted, join, known_variant, refuse_while_killed, table_of, take_out, with_shares
from serving.core.commands import (
    ALL,
    CONTROL_WORD,
    By,
    Command,
    ControlState,
    ImportWord,
    MoveRollout,
    Outcome,
    Promoted,
    Rollback,
    SetTraffic,
    StartRollout,
    WordWrite,
)
from serving.core.killswitch import OFF, engage, release
from serving.core.rollout import (
    OUT,
    TRANSITIONS,
    Baseline,
    Clear,
    Effect,
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
from serving.core.routing import size
from serving.core.routing import weights as shares_of
from serving.errors import ErrorKind, RequestError, bad_request

replace = msgspec.structs.replace

#: Rollouts of one model that are over and still listed; the audit has them all.
KEPT = 20


def start_rollout(state: ControlState, command: StartRollout, now_ns: int) -> Outcome:
    """A new rollout, which waits for its first event.

    Raises:
        RequestError: NOT_FOUND; BAD_REQUEST for the baseline; CONFLICT while the model is killed, the
            candidate has live traffic, or another rollout of it is under way.
    """
    table = table_of(state, command.model)
    known_variant(table, command.variant)
    if command.variant == table.baseline:
        raise bad_request(f"variant: {command.variant} is the baseline already")
    _refuse_attempt(state, table, command.variant)
    number = state.rollout_seq + 1
    rollout = Rollout(
        id=f"{command.variant}-{number}",
        model=command.model,
        variant=command.variant,
        policy=command.policy,
        policy_name=command.policy_name,
        started_by=command.by.actor,
        created_ns=now_ns,
        changed_ns=now_ns,
        why=command.by.reason,
        baseline=table.baseline,
    )
    after = replace(state, rollouts=_kept({**state.rollouts, rollout.id: rollout}), rollout_seq=number)
    shown = replace(command.policy, notify=tuple(replace(hook, url=hook.shown) for hook in command.policy.notify))
    facts = {**_facts(after, rollout), "policy": msgspec.to_builtins(shown)}
    row = drafted(command.by, now_ns, "rollout-create", (command.model, command.variant), {}, facts)
    return Outcome(after, (row,))


def move_rollout(state: ControlState, command: MoveRollout, now_ns: int) -> Outcome:
    """Carry out one event. Raises `RequestError` NOT_FOUND or CONFLICT (see `rollout.step`).

    A killed rollout goes on when its kill is re-armed, never by itself. A retry is refused for what `start_rollout`
    would be refused for.
    """
    rollout = rollout_of(state, command.id)
    if command.event.move is Move.REARM:
        raise RequestError(ErrorKind.CONFLICT, f"rollout {command.id}: re-arm the kill of {rollout.model} instead")
    possible = command.event.move in TRANSITIONS[rollout.state]
    if command.event.move is Move.RETRY and possible and (why := hindrance(state, rollout)):
        raise RequestError(ErrorKind.CONFLICT, f"rollout {rollout.id}: it cannot be tried again now: {why}")
    return _moved(state, rollout, command.event, command.by, now_ns, command.salt)


def rollout_of(state: ControlState, id_: str) -> Rollout:
    """A rollout by its id. Raises `RequestError` NOT_FOUND."""
    rollout = state.rollouts.get(id_)
    if rollout is None:
        known = ", ".join(sorted(state.rollouts)) or "none yet"
        raise RequestError(ErrorKind.NOT_FOUND, f"unknown rollout {id_!r}, expected one of: {known}")
    return rollout


def live_rollout(state: ControlState, model: str, variant: str) -> Rollout | None:
    """The rollout of a variant that is under way; there is at most one."""
    return next((r for r in state.rollouts.values() if r.live and (r.model, r.variant) == (model, variant)), None)


def hindrance(state: ControlState, rollout: Rollout) -> str:
    """Why a rollout that is over cannot be tried again now, or ""."""
    table = state.tables.get(rollout.model)
    if table is None or rollout.variant not in table.variants:
        return f"{rollout.variant} is no longer in the configuration"
    if rollout.variant == table.baseline:
        return f"{rollout.variant} is the baseline by now"
    try:
        _refuse_attempt(state, table, rollout.variant)
    except RequestError as error:
        return error.message
    return ""


def _refuse_attempt(state: ControlState, table: RouteTable, variant: str) -> None:
    """Raises `RequestError` CONFLICT if no attempt at rolling out a candidate may begin now."""
    refuse_while_killed(state, table.model, [variant])
    if (other := live_rollout(state, table.model, variant)) is not None:
        raise RequestError(ErrorKind.CONFLICT, f"rollout {other.id} of {variant} is {other.state}: end it first")
    if share := shares_of(table)[variant]:
        raise RequestError(
            ErrorKind.CONFLICT,
            f"{variant} has {share / 100:g} % of the live traffic: a rollout gives it step by step, "
            f"take it back first (canarium traffic {table.model} {variant}=0)",
        )


def _kept(rollouts: Mapping[str, Rollout]) -> dict[str, Rollout]:
    """Without those that have been over for longest: one that has just ended is still told of, and tried again."""
    over: dict[str, list[str]] = {}
    for rollout in sorted(rollouts.values(), key=lambda rollout: rollout.changed_ns):
        if not rollout.live:
            over.setdefault(rollout.model, []).append(rollout.id)
    gone = {id_ for ids in over.values() for id_ in ids[:-KEPT]}
    return {id_: rollout for id_, rollout in rollouts.items() if id_ not in gone}


# ---------------------------------------------------------------- what other commands mean


def follow(before: ControlState, outcome: Outcome, command: Command, now_ns: int) -> Outcome:
    """The rollouts after a command that was not about them: paused by hand, rolled back, killed, re-armed."""
    own = command.id if isinstance(command, MoveRollout) else None
    by = By(CONTROL_WORD, "found in the control word") if isinstance(command, ImportWord) else command.by
    for rollout in list(outcome.state.rollouts.values()):
        if rollout.id == own or not rollout.live:
            continue
        event = _meaning(before, outcome.state, rollout, command, by)
        if event is not None and event.move in TRANSITIONS[rollout.state]:
            moved = _moved(outcome.state, rollout, event, replace(by, reason=event.why), now_ns, "")
            outcome = join(outcome, moved)
    return _compared(_explained(before, outcome, command), before.rev + 1)


def _automatic(by: By) -> bool:
    """Whether a guard or a limit asks. Of what is found in the control word nobody knows: it may be a human's."""
    return "guard" in by.evidence or "limit" in by.evidence


def _explained(before: ControlState, outcome: Outcome, command: Command) -> Outcome:
    """The rollouts that the control word has ended, if a guard now says that it did: they may be tried again."""
    if not isinstance(command, Rollback) or not _automatic(command.by):
        return outcome
    known = {}
    for rollout in outcome.state.latest_rollouts():
        slot = f"{rollout.model}/{rollout.variant}"
        was, now = before.rolled_back.get(slot), outcome.state.rolled_back.get(slot)
        if was is None or was == now or rollout.state not in (State.ROLLING_BACK, State.ROLLED_BACK):
            continue
        if (was.actor, was.reason) == (CONTROL_WORD, rollout.why):
            known[rollout.id] = replace(rollout, failed=True, why=command.by.reason)
    if not known:
        return outcome
    return replace(outcome, state=replace(outcome.state, rollouts={**outcome.state.rollouts, **known}))


def _compared(outcome: Outcome, rev: int) -> Outcome:
    """The rollouts under way, compared with the baseline in force; what was said beside an earlier one counts no more.

    Another rollout may have replaced it, or the configuration.
    """
    fresh = {
        id_: replace(rollout, baseline=table.baseline, rev=rev)
        for id_, rollout in outcome.state.rollouts.items()
        if rollout.state not in OUT
        and (table := outcome.state.tables.get(rollout.model)) is not None
        and table.baseline != rollout.baseline
    }
    if not fresh:
        return outcome
    return replace(outcome, state=replace(outcome.state, rollouts={**outcome.state.rollouts, **fresh}))


def _meaning(before: ControlState, after: ControlState, rollout: Rollout, command: Command, by: By) -> Event | None:
    table, old = after.tables.get(rollout.model), before.tables.get(rollout.model)
    killed = any(after.kills.get(name, OFF).on for name in (rollout.model, ALL))
    if rollout.state is State.KILLED:
        return None if killed else Event(Move.REARM, f"killed ({rollout.why}) and re-armed: {by.reason}")
    if gone := _gone(rollout, table, old):
        return Event(Move.ABORT, gone)
    if killed:
        return Event(Move.KILL, by.reason)
    if rollout.state in OUT:
        return None
    slot = f"{rollout.model}/{rollout.variant}"
    was, now = before.vetoes.get(slot, OFF), after.vetoes.get(slot, OFF)
    asked = isinstance(command, Rollback) and command.model == rollout.model
    asked = asked and command.variant in (None, rollout.variant) and now.on  # type: ignore[union-attr]
    if asked or (now.on and now.seq > was.seq):
        mark = after.rolled_back.get(slot)
        return Event(Move.FAIL if _automatic(by) else Move.ABORT, mark.reason if mark is not None else by.reason)
    if isinstance(command, SetTraffic) and old is not None and table is not None and _touched(old, table, rollout):
        return Event(Move.PAUSE, f"traffic was set by hand: {by.reason}")
    return None


def _gone(rollout: Rollout, table: RouteTable | None, old: RouteTable | None) -> str:
    """Why the rollout has lost its subject, or ""."""
    if table is None or rollout.variant not in table.variants:
        return f"{rollout.variant} is no longer in the configuration"
    if rollout.variant == table.baseline:
        return f"the configuration has made {rollout.variant} the baseline"
    if old is not None and rollout.variant in old.variants:
        was, now = old.variants[rollout.variant].artifact, table.variants[rollout.variant].artifact
        if was != now:
            return f"its artifact is no longer {was} but {now}"
    return ""


def _touched(old: RouteTable, table: RouteTable, rollout: Rollout) -> bool:
    """Whether the candidate's traffic was changed while the rollout would go on by itself, now or after its pause."""
    variant = rollout.variant
    return rollout.hold not in (Hold.MANUAL, Hold.GUARD, Hold.APPROVAL) and (
        old.candidates.get(variant) != table.candidates.get(variant)
        or old.shadow.get(variant) != table.shadow.get(variant)
    )


# ---------------------------------------------------------------- moving


def _moved(state: ControlState, rollout: Rollout, event: Event, by: By, now_ns: int, salt: str) -> Outcome:
    moved, effects = step(rollout, event, now_ns)
    if effects:
        moved = replace(moved, rev=state.rev + 1)
    outcome = Outcome(replace(state, rollouts=_kept({**state.rollouts, moved.id: moved})))
    for effect in effects:
        outcome = join(outcome, _applied(outcome.state, moved, effect, by, now_ns, salt))
    before, after = _facts(state, rollout), _facts(outcome.state, moved)
    row = drafted(by, now_ns, f"rollout-{event.move}", (rollout.model, rollout.variant), before, after)
    return replace(outcome, audit=(*outcome.audit, row))


def _facts(state: ControlState, rollout: Rollout) -> dict[str, Any]:
    """What an audit row says of a rollout."""
    table = state.tables.get(rollout.model)
    known = table is not None and rollout.variant in table.variants
    return {
        "rollout": rollout.id,
        "state": str(rollout.state),
        "hold": str(rollout.hold) if rollout.hold else None,
        "step": rollout.at,
        "attempt": rollout.attempt,
        "baseline": table.baseline if table is not None else None,
        "weight": shares_of(table)[rollout.variant] / 100 if table is not None and known else 0.0,
        "shadow": table.shadow.get(rollout.variant, 0) / 100 if table is not None else 0.0,
    }


def _applied(state: ControlState, rollout: Rollout, effect: Effect, by: By, now_ns: int, salt: str) -> Outcome:
    """Make one effect so."""
    table, variant = state.tables.get(rollout.model), rollout.variant
    if table is None or variant not in table.variants or variant == table.baseline:
        return Outcome(state)  # it has no share that could be changed
    slot = f"{rollout.model}/{variant}"
    if isinstance(effect, TakeOut):
        return take_out(state, table, {variant: (engage(state.vetoes.get(slot, OFF)), by)}, now_ns)
    if isinstance(effect, Clear):
        # Also where no veto is in force: a higher seq is a new arming, with evidence of its own.
        latch = release(engage(state.vetoes.get(slot, OFF)))
        marks = {name: mark for name, mark in state.rolled_back.items() if name != slot}
        cleared = replace(state, vetoes={**state.vetoes, slot: latch}, rolled_back=marks)
        return Outcome(cleared, (), (WordWrite(rollout.model, variant, latch.seq, on=False),))
    if isinstance(effect, Baseline):
        return _as_baseline(state, table, variant)
    if isinstance(effect, ShadowShare):
        changed = with_shares(table, {}, {variant: effect.share}, salt)
    else:
        left = room(state, table, rollout)
        least = effect.share if isinstance(effect, Weight) else _least(table, rollout)
        if least > left:
            raise RequestError(
                ErrorKind.CONFLICT,
                f"rollout {rollout.id}: it needs {least / 100:g} % and the other candidates and the holdback leave "
                f"{left / 100:g} %",
            )
        share = effect.share if isinstance(effect, Weight) else left
        changed = with_shares(table, {variant: share}, {}, salt or table.salt)
    return Outcome(replace(state, tables={**state.tables, rollout.model: changed}))


def room(state: ControlState, table: RouteTable, rollout: Rollout) -> int:
    """Basis points that a candidate can have beside the other candidates and what stays on the baseline.

    That is its own holdback, or a larger one of another rollout under way whose candidate has live traffic.
    """
    others = sum(size(spans) for name, spans in table.candidates.items() if name != rollout.variant)
    beside = [
        other.policy.holdback
        for other in state.rollouts.values()
        if other.live and other.model == rollout.model and other.variant in table.candidates
    ]
    return max(0, BUCKETS - others - round(max([rollout.policy.holdback, *beside]) * 100))


def _least(table: RouteTable, rollout: Rollout) -> int:
    """Basis points that a promotion must leave the candidate: what it has; later, enough to be watched."""
    return max(1, shares_of(table)[rollout.variant] if rollout.state is State.PROMOTING else 0)


def _as_baseline(state: ControlState, table: RouteTable, variant: str) -> Outcome:
    """The variant as the baseline: it has what the other candidates leave, the old baseline nothing."""
    changed = replace(
        table,
        baseline=variant,
        candidates={name: spans for name, spans in table.candidates.items() if name != variant},
        since={name: epoch for name, epoch in table.since.items() if name != variant},
        shadow={name: share for name, share in table.shadow.items() if name != variant},
        epoch=table.epoch + 1,
    )
    earlier = state.promoted.get(table.model)
    by_file = earlier.instead_of if earlier is not None else table.baseline
    promoted = {model: known for model, known in state.promoted.items() if model != table.model}
    if variant != by_file:
        promoted[table.model] = Promoted(variant, by_file)
    marks = {name: mark for name, mark in state.rolled_back.items() if name != f"{table.model}/{variant}"}
    return Outcome(
        replace(
            state,
            tables={**state.tables, table.model: changed},
            promoted=promoted,
            rolled_back=marks,
        )
    )
