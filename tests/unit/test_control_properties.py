"""Whatever is asked of the control plane, in whatever order, these hold."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from control_kit import ME, NOW, entry, spec
from hypothesis import given
from hypothesis import strategies as st
from rollout_kit import POLICY

from serving.contract import Latch
from serving.control.state import step
from serving.core.commands import (
    ApplyModels,
    Command,
    ControlState,
    ImportWord,
    Kill,
    MoveRollout,
    Rearm,
    Rollback,
    SetTraffic,
    StartRollout,
)
from serving.core.killswitch import OFF
from serving.core.rollout import Event, Hold, Move, State
from serving.core.routing import weights
from serving.errors import RequestError

MODELS = ("moderation", "voice")
CANDIDATES = ("int8", "distilled")
START = ApplyModels({name: spec() for name in MODELS}, ME)

models = st.sampled_from((*MODELS, "unknown"))
kill_targets = st.sampled_from((*MODELS, "*"))
variants = st.sampled_from((*CANDIDATES, "teacher", "unknown"))
percents = st.sampled_from((0.0, 0.01, 5.0, 33.33, 50.0, 100.0, 101.0, -1.0))
shares = st.dictionaries(variants, percents, max_size=2)
latches = st.builds(Latch, st.integers(0, 4), st.integers(0, 4))
slots = st.sampled_from([f"{model}/{name}" for model in MODELS for name in (*CANDIDATES, "teacher")])
salts = st.sampled_from(("salt-a", "salt-b", "salt-c"))
two = {"teacher": entry("teacher", 1), "int8": entry("int8", 2, "moderation/int8:2")}
applied = st.sampled_from(
    (
        START,
        ApplyModels({name: spec(variants=two, shadow={}) for name in MODELS}, ME),
        ApplyModels({name: spec(baseline="int8", weights={}) for name in MODELS}, ME),
    )
)
#: Ids of rollouts that may exist after a few commands.
rollout_ids = st.sampled_from([f"{name}-{number}" for name in CANDIDATES for number in (1, 2, 3)])
events = st.builds(Event, st.sampled_from(Move), st.just("why"), st.sampled_from(Hold), st.integers(0, 100))
commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(StartRollout, models, variants, st.sampled_from(list(POLICY.values())), st.just("file"), st.just(ME)),
    st.builds(MoveRollout, rollout_ids, events, st.just(ME), salts),
    st.builds(MoveRollout, rollout_ids, events, st.just(ME), salts),
    st.builds(
        SetTraffic,
        model=models,
        by=st.just(ME),
        salt=salts,
        weights=shares,
        shadow=shares,
        reference_percent=st.none() | percents,
    ),
    st.builds(Rollback, models, st.just(ME), st.none() | variants),
    st.builds(Kill, kill_targets, st.just(ME), st.integers(0, 5)),
    st.builds(Rearm, kill_targets, st.just(ME), st.integers(0, 6)),
    st.builds(
        ImportWord,
        st.dictionaries(kill_targets, latches),
        st.dictionaries(slots, latches),
        st.frozensets(kill_targets | slots, max_size=1),
        st.booleans(),
    ),
    applied,
)


def run(commands: Sequence[Command]) -> list[tuple[ControlState, Command, ControlState]]:
    """Each command that was obeyed, with the state before and after."""
    state, steps = step(ControlState(), START, NOW).state, []
    for command in commands:
        if isinstance(command, ImportWord):
            known = {f"{m}/{v}" for m, t in state.tables.items() for v in t.variants}
            command = msgspec.structs.replace(
                command, vetoes={slot: latch for slot, latch in command.vetoes.items() if slot in known}
            )
        try:
            after = step(state, command, NOW).state
        except RequestError:
            continue
        steps.append((state, command, after))
        state = after
    return steps


@given(st.lists(commands, max_size=12))
def test_shares_always_add_up_and_belong_to_somebody(asked: list[Command]) -> None:
    for _, _, after in run(asked):
        for table in after.tables.values():
            assert sum(weights(table).values()) == 10_000
            assert min(weights(table).values()) >= 0
            assert table.baseline not in table.candidates.keys() | table.shadow.keys()
            assert table.candidates.keys() | table.shadow.keys() <= table.variants.keys()
            assert table.since.keys() == table.candidates.keys()


@given(st.lists(commands, max_size=12))
def test_the_epoch_rises_by_one_exactly_when_the_table_changes(asked: list[Command]) -> None:
    for before, _, after in run(asked):
        for name, table in after.tables.items():
            changed = table != before.tables[name]
            assert table.epoch == before.tables[name].epoch + changed


@given(st.lists(commands, max_size=12))
def test_a_change_raises_rev_by_one_and_nothing_else_does(asked: list[Command]) -> None:
    for before, _, after in run(asked):
        assert (after is before) == (after.rev == before.rev)
        if after is not before:
            assert after.rev == before.rev + 1
            assert msgspec.structs.replace(after, rev=before.rev) != before


@given(st.lists(commands, max_size=12))
def test_a_kill_ends_only_by_a_rearm_that_names_it(asked: list[Command]) -> None:
    for before, command, after in run(asked):
        for name, latch in before.kills.items():
            if latch.on and not after.kills[name].on:
                # The word's `cleared` is written by a re-arm only: seeing it is seeing that re-arm.
                by_word = isinstance(command, ImportWord) and command.kills[name].cleared >= latch.seq
                assert by_word or (isinstance(command, Rearm) and command.kill_seq == latch.seq)


@given(st.lists(commands, max_size=12))
def test_counters_of_latches_never_fall(asked: list[Command]) -> None:
    for before, _, after in run(asked):
        for old, new in ((before.kills, after.kills), (before.vetoes, after.vetoes)):
            for slot, latch in old.items():
                assert new[slot].seq >= latch.seq
                assert new[slot].cleared >= latch.cleared


@given(st.lists(commands, max_size=12))
def test_what_is_vetoed_has_no_traffic(asked: list[Command]) -> None:
    for _, _, after in run(asked):
        for slot, latch in after.vetoes.items():
            model, _, name = slot.partition("/")
            table = after.tables[model]
            if latch.on and name in table.variants:
                assert name not in table.candidates
                assert name not in table.shadow


@given(st.lists(commands, max_size=12), st.sampled_from(CANDIDATES) | st.none())
def test_after_a_rollback_nothing_of_its_target_is_left(asked: list[Command], variant: str | None) -> None:
    steps = run(asked)
    state = steps[-1][2] if steps else step(ControlState(), START, NOW).state
    table = state.tables["moderation"]
    if variant is not None and (variant == table.baseline or variant not in table.variants):
        return
    live = {variant} if variant else table.candidates.keys() | table.shadow.keys()
    after = step(state, Rollback("moderation", ME, variant), NOW).state
    assert not live & (after.tables["moderation"].candidates.keys() | after.tables["moderation"].shadow.keys())
    assert all(after.vetoes.get(f"moderation/{name}", OFF).on for name in live)


@given(st.lists(commands, max_size=12), kill_targets)
def test_a_kill_always_leads_to_killed(asked: list[Command], target: str) -> None:
    steps = run(asked)
    state = steps[-1][2] if steps else step(ControlState(), START, NOW).state
    assert step(state, Kill(target, ME), NOW).state.kills[target].on


@given(st.lists(commands, max_size=12))
def test_the_stored_document_gives_the_same_state(asked: list[Command]) -> None:
    for _, _, after in run(asked):
        assert msgspec.json.decode(msgspec.json.encode(after), type=ControlState) == after


# ---------------------------------------------------------------- rollouts

#: A rollout is started early, so that what follows has one to meet.
BEGUN = (SetTraffic("moderation", ME, "salt-a", {"int8": 0.0, "distilled": 0.0}),
         StartRollout("moderation", "int8", POLICY["short"], "file", ME))  # fmt: skip
WAY = (Move.START, Move.SHADOW, Move.RAMP, Move.ADVANCE, Move.PAUSE, Move.PROMOTE, Move.PROMOTED)
ways = st.integers(0, len(WAY)).map(
    lambda length: [MoveRollout("int8-1", Event(move, "why"), ME, "salt-b") for move in WAY[:length]]
)


def rolled(way: Sequence[Command], asked: Sequence[Command]) -> list[tuple[ControlState, Command, ControlState]]:
    return run([*BEGUN, *way, *asked])


@given(ways, st.lists(commands, max_size=12))
def test_a_candidate_has_at_most_one_rollout_under_way(way: list[Command], asked: list[Command]) -> None:
    for _, _, after in rolled(way, asked):
        live = [(rollout.model, rollout.variant) for rollout in after.rollouts.values() if rollout.live]
        assert len(live) == len(set(live))


@given(ways, st.lists(commands, max_size=12))
def test_a_killed_rollout_is_left_only_when_no_kill_is_in_force(way: list[Command], asked: list[Command]) -> None:
    for before, _, after in rolled(way, asked):
        for id_, rollout in before.rollouts.items():
            if rollout.state is not State.KILLED:
                continue
            killed = any(after.kills.get(name, OFF).on for name in (rollout.model, "*"))
            assert killed == (after.rollouts[id_].state is State.KILLED)


@given(ways, st.lists(commands, max_size=12))
def test_a_rollout_that_goes_back_leaves_its_candidate_nothing(way: list[Command], asked: list[Command]) -> None:
    for _, _, after in rolled(way, asked):
        for rollout in after.rollouts.values():
            table = after.tables.get(rollout.model)
            if rollout.state is State.ROLLING_BACK and rollout.rev == after.rev and table is not None:
                assert rollout.variant not in table.candidates.keys() | table.shadow.keys()


@given(ways, st.lists(commands, max_size=12))
def test_no_live_rollout_survives_its_veto(way: list[Command], asked: list[Command]) -> None:
    """Once an attempt has begun, whatever vetoes its candidate ends it."""
    for before, _, after in rolled(way, asked):
        for id_, rollout in after.rollouts.items():
            slot = f"{rollout.model}/{rollout.variant}"
            rose = after.vetoes.get(slot, OFF).seq > before.vetoes.get(slot, OFF).seq
            if after.vetoes.get(slot, OFF).on and rose and id_ in before.rollouts:
                assert not rollout.live or rollout.state in (State.ROLLING_BACK, State.KILLED)
