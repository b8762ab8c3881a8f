"""The control plane's decisions as one pure function: (state, command, time) -> outcome.

A command that cannot be obeyed raises `RequestError`; one that would change nothing returns
the very same state. Each change raises `rev` by one, each change of a table its epoch by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from serving.contract import Latch, RouteTable
from serving.control.models import apply_models
from serving.control.rollouts import follow, move_rollout, rollout_of, start_rollout
from serving.control.tables import (
    basis_points,
    drafted,
    explains,
    join,
    known_variant,
    one_epoch,
    refuse_while_killed,
    require_epoch,
    table_of,
    take_out,
    traffic_of,
    with_shares,
)
from serving.core.commands import (
    ALL,
    CONTROL_WORD,
    ApplyModels,
    By,
    Command,
    ControlState,
    ImportWord,
    Kill,
    Mark,
    MoveRollout,
    Outcome,
    Rearm,
    Rollback,
    SetTraffic,
    StartRollout,
    WordWrite,
)
from serving.core.killswitch import OFF, KillNote, engage, merge, release
from serving.core.rollout import OUT
from serving.core.routing import weights as shares_of
from serving.errors import ErrorKind, RequestError, bad_request

replace = msgspec.structs.replace


def step(state: ControlState, command: Command, now_ns: int) -> Outcome:
    """Decide one command.

    Args:
        state: what is in force.
        command: what is asked for.
        now_ns: wall clock, nanoseconds since the Unix epoch.

    Raises:
        RequestError: NOT_FOUND (unknown model or variant), BAD_REQUEST (impossible share),
            CONFLICT (wrong kill_seq, a kill in force), PRECONDITION (a table that has moved on).
    """
    _refuse_if_moved_on(state, command)
    outcome = _HANDLERS[type(command)](state, command, now_ns)
    outcome = follow(state, outcome, command, now_ns)
    if outcome.state is state:
        return outcome
    tables = {name: one_epoch(state.tables.get(name), table) for name, table in outcome.state.tables.items()}
    return replace(outcome, state=replace(outcome.state, tables=tables, rev=state.rev + 1))


def _refuse_if_moved_on(state: ControlState, command: Command) -> None:
    """Kills and rollbacks expect no epoch: they must always act."""
    if isinstance(command, SetTraffic | Rearm | StartRollout | MoveRollout) and command.expect_epoch is not None:
        model = rollout_of(state, command.id).model if isinstance(command, MoveRollout) else command.model
        require_epoch(state, model, command.expect_epoch)


# ---------------------------------------------------------------- traffic


def _set_traffic(state: ControlState, command: SetTraffic, now_ns: int) -> Outcome:
    table = table_of(state, command.model)
    if not command.weights and not command.shadow and command.reference_percent is None:
        raise bad_request("name at least one of weights, shadow and reference_percent")
    weights = _shares(table, "weights", command.weights)
    shadow = _shares(table, "shadow", command.shadow)
    raised = sorted(name for name in weights.keys() | shadow.keys() if weights.get(name) or shadow.get(name))
    held = shares_of(table)
    refuse_while_killed(
        state,
        table.model,
        [n for n in raised if weights.get(n, 0) > held[n] or shadow.get(n, 0) > table.shadow.get(n, 0)],
    )
    changed = with_shares(table, weights, shadow, command.salt, command.reference_percent)
    vetoes, rolled_back = dict(state.vetoes), dict(state.rolled_back)
    effects = []
    for name in raised:
        slot = f"{table.model}/{name}"
        rolled_back.pop(slot, None)
        if vetoes.get(slot, OFF).on:
            vetoes[slot] = release(vetoes[slot])
            effects.append(WordWrite(table.model, name, vetoes[slot].seq, on=False))
    if changed is table and not effects:
        return Outcome(state)
    evidence = dict(command.by.evidence)
    if effects:
        evidence["vetoes_cleared"] = {effect.variant: effect.seq for effect in effects}
    draft = drafted(
        replace(command.by, evidence=evidence),
        now_ns,
        "traffic",
        (table.model, raised[0] if len(raised) == 1 else None),
        traffic_of(table),
        traffic_of(changed),
    )
    after = replace(state, tables={**state.tables, table.model: changed}, vetoes=vetoes, rolled_back=rolled_back)
    return Outcome(after, (draft,), tuple(effects))


def _shares(table: RouteTable, section: str, percents: Mapping[str, float]) -> dict[str, int]:
    shares = {}
    for name, percent in percents.items():
        known_variant(table, name)
        if name == table.baseline:
            raise bad_request(f"{section}.{name}: is the baseline, which gets what the others leave")
        shares[name] = basis_points(f"{section}.{name}", percent)
    return shares


# ---------------------------------------------------------------- rollback


def _rollback(state: ControlState, command: Rollback, now_ns: int) -> Outcome:
    table = table_of(state, command.model)
    if command.variant is None:
        targets = sorted(table.candidates.keys() | table.shadow.keys() | command.at_least.keys() | _due(state, table))
    else:
        known_variant(table, command.variant)
        if command.variant == table.baseline:
            raise bad_request(f"variant: {command.variant} is the baseline: there is nothing to go back to")
        targets = [command.variant]
    vetoes = {
        name: (engage(state.vetoes.get(f"{table.model}/{name}", OFF), command.at_least.get(name, 0)), command.by)
        for name in targets
    }
    return take_out(state, table, vetoes, now_ns)


def _due(state: ControlState, table: RouteTable) -> set[str]:
    """The variants with a rollout under way: what has no traffic yet, or no more, would get it in a moment."""
    ours = {r.variant for r in state.rollouts.values() if r.model == table.model and r.state not in OUT}
    return ours & (table.variants.keys() - {table.baseline})


# ---------------------------------------------------------------- kill and re-arm


def _kill(state: ControlState, command: Kill, now_ns: int) -> Outcome:
    if command.model != ALL:
        table_of(state, command.model)
    old = state.kills.get(command.model, OFF)
    # A second kill is a kill of its own: whoever re-arms the first must not release what he never read about.
    # The monitor names its number, so that its word and its request stay one.
    latch = engage(old, command.at_least or (old.seq + 1 if old.on else 0))
    return _put_kill(state, command.model, latch, command.by, now_ns)


def _put_kill(state: ControlState, model: str, latch: Latch, by: By, now_ns: int) -> Outcome:
    old = state.kills.get(model, OFF)
    if old == latch and not explains(by, state.killed.get(model)):
        return Outcome(state)
    after = replace(
        state,
        kills={**state.kills, model: latch},
        killed={**state.killed, model: Mark(now_ns, by.actor, by.reason)},
    )
    draft = drafted(by, now_ns, "kill", (model, None), _kill_facts(old), _kill_facts(latch))
    return Outcome(after, (draft,), (WordWrite(model, "*", latch.seq, on=True),))


def _rearm(state: ControlState, command: Rearm, now_ns: int) -> Outcome:
    model = command.model
    if model != ALL:
        table_of(state, model)
    latch, who = state.kills.get(model, OFF), "all models" if model == ALL else model
    if not latch.on:
        other = state.kills.get(ALL, OFF)
        hint = f"; the global kill-switch is on (kill_seq {other.seq})" if other.on else ""
        raise RequestError(ErrorKind.CONFLICT, f"no kill of {who} is in force{hint}")
    if command.kill_seq != latch.seq:
        raise RequestError(
            ErrorKind.CONFLICT,
            f"kill {command.kill_seq} of {who} is not the one in force, {latch.seq} is: "
            "read why before re-arming that one",
        )
    after = replace(
        state,
        kills={**state.kills, model: release(latch)},
        killed={name: mark for name, mark in state.killed.items() if name != model},
    )
    draft = drafted(command.by, now_ns, "rearm", (model, None), _kill_facts(latch), _kill_facts(release(latch)))
    return Outcome(after, (draft,), (WordWrite(model, "*", latch.seq, on=False),))


def _kill_facts(latch: Latch) -> dict[str, Any]:
    return {"killed": latch.on, "kill_seq": latch.seq, "cleared_seq": latch.cleared}


# ---------------------------------------------------------------- the control word


def _import_word(state: ControlState, command: ImportWord, now_ns: int) -> Outcome:
    outcome = Outcome(state)
    for slot, word in sorted(command.kills.items()):
        outcome = join(outcome, _import_kill(outcome.state, slot, word, command, now_ns))
    for model in sorted({slot.partition("/")[0] for slot in command.vetoes}):
        outcome = join(outcome, _import_vetoes(outcome.state, model, command, now_ns))
    return outcome


def _import_kill(state: ControlState, model: str, word: Latch, command: ImportWord, now_ns: int) -> Outcome:
    old, writers = state.kills.get(model, OFF), "`canarium kill` or the monitor"
    latch, why = _imported(old, word, model in command.unreadable, command.starting, writers)
    said = {} if model in command.unreadable else _said(command.notes, model)
    earlier = Outcome(state)
    for seq in sorted(said):  # each is a kill of its own; the last one is in force
        known = earlier.state.kills.get(model, OFF)
        if max(known.seq, latch.cleared) < seq < min(latch.seq, word.seq):
            earlier = join(earlier, _put_kill(earlier.state, model, Latch(seq, latch.cleared), said[seq], now_ns))
    return join(earlier, _import_last_kill(earlier.state, model, latch, said.get(word.seq), why, now_ns))


def _said(notes: tuple[KillNote, ...], model: str) -> dict[int, By]:
    """By the numbers of a model's kills, who set them in the word and why."""
    return {note.seq: By(note.actor, note.reason, {"through": CONTROL_WORD}) for note in notes if note.slot == model}


def _import_last_kill(state: ControlState, model: str, latch: Latch, said: By | None, why: str, now_ns: int) -> Outcome:
    old = state.kills.get(model, OFF)
    if latch.on and (said is not None or not old.on):
        by = said or By(CONTROL_WORD, why, {"kill_seq": latch.seq})
        return _put_kill(state, model, latch, by, now_ns)
    if latch == old:
        return Outcome(state)
    after = replace(state, kills={**state.kills, model: latch})
    if latch.on or not old.on:
        return Outcome(after)
    by = By(CONTROL_WORD, "the control word holds a re-arm that the store had not seen", {"kill_seq": old.seq})
    draft = drafted(by, now_ns, "rearm", (model, None), _kill_facts(old), _kill_facts(latch))
    return Outcome(
        replace(after, killed={name: mark for name, mark in state.killed.items() if name != model}), (draft,)
    )


def _import_vetoes(state: ControlState, model: str, command: ImportWord, now_ns: int) -> Outcome:
    table, vetoes = state.tables[model], dict(state.vetoes)
    targets: dict[str, tuple[Latch, By]] = {}
    effects = []
    for slot, word in sorted(command.vetoes.items()):
        owner, _, variant = slot.partition("/")
        old = state.vetoes.get(slot, OFF)
        latch, why = _imported(old, word, slot in command.unreadable, command.starting, "the monitor")
        if owner != model or latch == old:
            continue
        if latch.on and variant == table.baseline:  # where everything else goes back to: nothing to veto
            vetoes[slot] = release(latch)
            effects.append(WordWrite(model, variant, latch.seq, on=False))
        elif latch.on and not old.on:
            targets[variant] = (latch, By(CONTROL_WORD, why, {"veto_seq": latch.seq}))
        else:
            vetoes[slot] = latch
    counted = Outcome(state) if vetoes == state.vetoes else Outcome(replace(state, vetoes=vetoes))
    counted = replace(counted, effects=tuple(effects))
    return join(counted, take_out(counted.state, table, targets, now_ns)) if targets else counted


def _imported(old: Latch, word: Latch, unreadable: bool, starting: bool, writers: str) -> tuple[Latch, str]:
    if unreadable:
        return engage(old), "this slot of the control word is unreadable, which means baseline"
    latch = merge(old, word)
    if starting and word.on and not latch.on:
        latch = engage(latch)
    return latch, f"found in force in the control word, where {writers} writes when the control plane is silent"


def _apply_models(state: ControlState, command: ApplyModels, now_ns: int) -> Outcome:
    return apply_models(state, command, now_ns)


def _start_rollout(state: ControlState, command: StartRollout, now_ns: int) -> Outcome:
    return start_rollout(state, command, now_ns)


def _move_rollout(state: ControlState, command: MoveRollout, now_ns: int) -> Outcome:
    return move_rollout(state, command, now_ns)


_HANDLERS: dict[type, Callable[[ControlState, Any, int], Outcome]] = {
    SetTraffic: _set_traffic,
    Rollback: _rollback,
    Kill: _kill,
    Rearm: _rearm,
    ImportWord: _import_word,
    ApplyModels: _apply_models,
    StartRollout: _start_rollout,
    MoveRollout: _move_rollout,
}
