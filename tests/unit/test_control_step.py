"""Decisions of the control plane as a pure function, one rule a test."""

from __future__ import annotations

import msgspec
import pytest
from control_kit import ME, NOW, entry, seeded, spec, table

from serving.contract import Latch
from serving.control.state import step
from serving.core.commands import (
    ApplyModels,
    By,
    Command,
    ControlState,
    ImportWord,
    Kill,
    Outcome,
    Rearm,
    Rollback,
    SetTraffic,
    WordWrite,
)
from serving.core.routing import weights
from serving.errors import ErrorKind, RequestError


def traffic(weights: dict[str, float] | None = None, **more: object) -> SetTraffic:
    return SetTraffic(model="moderation", by=ME, salt="salt-new", weights=weights or {}, **more)  # type: ignore[arg-type]


def run(state: ControlState, *commands: Command) -> Outcome:
    outcome = Outcome(state)
    for command in commands:
        outcome = step(outcome.state, command, NOW)
    return outcome


def refused(state: ControlState, command: Command) -> RequestError:
    with pytest.raises(RequestError) as caught:
        step(state, command, NOW)
    return caught.value


# ---------------------------------------------------------------- seeding


def test_a_model_never_seen_is_seeded_from_the_configuration() -> None:
    outcome = step(ControlState(), ApplyModels({"moderation": spec()}, ME), NOW)
    assert weights(table(outcome.state)) == {"teacher": 9500, "int8": 500, "distilled": 0}
    assert table(outcome.state).shadow == {"distilled": 2000}
    assert [row.action for row in outcome.audit] == ["model-added"]
    assert outcome.notes == ()


def test_afterwards_the_store_wins_and_the_difference_is_told() -> None:
    state = run(seeded(), traffic({"int8": 20})).state
    outcome = step(state, ApplyModels({"moderation": spec()}, ME), NOW)
    assert outcome.state is state
    assert outcome.notes == (
        "moderation: weights.int8 is 5 in the file and 20 in the store, which wins (change it with 'canarium traffic')",
    )


def test_a_removed_variant_returns_its_traffic_and_a_new_one_joins_without_any() -> None:
    variants = {"teacher": entry("teacher", 1), "distilled": entry("distilled", 3), "tiny": entry("tiny", 4)}
    outcome = step(seeded(), ApplyModels({"moderation": spec(variants=variants, weights={"tiny": 1000})}, ME), NOW)
    assert weights(table(outcome.state)) == {"teacher": 10_000, "distilled": 0, "tiny": 0}
    assert table(outcome.state).epoch == 2
    assert [row.action for row in outcome.audit] == ["model-changed"]
    assert any("weights.tiny is 10 in the file and 0 in the store" in note for note in outcome.notes)


def test_a_candidate_that_becomes_the_baseline_stops_being_a_candidate() -> None:
    state = run(seeded(), Rollback("moderation", ME, "int8")).state
    outcome = step(state, ApplyModels({"moderation": spec(baseline="int8", weights={})}, ME), NOW)
    assert weights(table(outcome.state)) == {"teacher": 0, "int8": 10_000, "distilled": 0}
    assert not outcome.state.vetoes["moderation/int8"].on
    assert outcome.effects == (WordWrite("moderation", "int8", 1, on=False),)


def test_a_new_artifact_under_live_traffic_starts_its_evidence_over() -> None:
    variants = table(seeded()).variants | {"int8": entry("int8", 4, "moderation/int8:2")}
    state = step(seeded(), ApplyModels({"moderation": spec(variants=variants)}, ME), NOW).state
    assert weights(table(state))["int8"] == 500
    assert table(state).since == {"int8": 2}


def test_a_kill_outlives_the_model_being_taken_out_and_put_back() -> None:
    state = run(seeded(), Kill("moderation", ME), ApplyModels({"other": spec()}, ME)).state
    assert set(state.tables) == {"other"}
    state = run(state, ApplyModels({"moderation": spec()}, ME)).state
    assert state.kills["moderation"].on


# ---------------------------------------------------------------- traffic


def test_traffic_sets_only_what_is_named_and_raises_the_epoch_once() -> None:
    outcome = step(seeded(), traffic({"int8": 12.5}, shadow={"distilled": 0}), NOW)
    changed = table(outcome.state)
    assert weights(changed)["int8"] == 1250
    assert (changed.shadow, changed.reference_bp, changed.epoch) == ({}, 500, 2)
    row = outcome.audit[0]
    assert (row.actor, row.action, row.reason, row.at_ns) == ("ann", "traffic", "because", NOW)
    assert (row.before["weights"]["int8"], row.after["weights"]["int8"]) == (5, 12.5)


def test_one_candidate_can_take_over_what_another_gives_up() -> None:
    state = run(seeded(), traffic({"int8": 100}), traffic({"distilled": 100, "int8": 0})).state
    assert weights(table(state)) == {"teacher": 0, "int8": 0, "distilled": 10_000}


def test_traffic_already_in_force_changes_nothing() -> None:
    state = seeded()
    outcome = step(state, traffic({"int8": 5}, reference_percent=5), NOW)
    assert outcome.state is state
    assert outcome.audit == ()


def test_the_salt_is_fresh_only_when_no_candidate_was_live() -> None:
    raised = run(seeded(), traffic({"int8": 20})).state
    assert table(raised).salt == "salt-0"
    again = run(raised, traffic({"int8": 0}), traffic({"distilled": 5})).state
    assert table(again).salt == "salt-new"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (traffic({"int8": 105}), "weights.int8: 105 is over 100"),
        (traffic({"int8": -1}), "weights.int8: -1 is under 0"),
        (traffic({"int8": float("nan")}), "weights.int8: nan is not a number of percent"),
        (traffic({"int8": 0.005}), "weights.int8: 0.005 is not a multiple of 0.01, the smallest step"),
        (traffic({"teacher": 50}), "weights.teacher: is the baseline, which gets what the others leave"),
        (traffic(shadow={"teacher": 5}), "shadow.teacher: is the baseline, which gets what the others leave"),
        (traffic({"int8": 60, "distilled": 50}), "weights: distilled 50 + int8 60 add up to 110, over 100"),
        (traffic({"distilled": 96}), "weights: distilled 96 + int8 5 add up to 101, over 100"),
        (traffic(reference_percent=101), "reference_percent: 101 is over 100"),
        (traffic(), "name at least one of weights, shadow and reference_percent"),
    ],
)
def test_impossible_traffic_is_refused_with_its_path(command: SetTraffic, message: str) -> None:
    error = refused(seeded(), command)
    assert (error.kind, error.message) == (ErrorKind.BAD_REQUEST, message)


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    error = refused(seeded(), traffic({"int4": 5}))
    assert error.kind is ErrorKind.NOT_FOUND
    assert error.message == "unknown variant 'int4' of moderation, expected one of: distilled, int8, teacher"
    error = refused(seeded(), Kill("spam", ME))
    assert error.message == "unknown model 'spam', expected one of: moderation"


def test_a_table_that_has_moved_on_refuses_the_change() -> None:
    error = refused(run(seeded(), traffic({"int8": 6})).state, traffic({"int8": 7}, expect_epoch=1))
    assert error.kind is ErrorKind.PRECONDITION
    assert "is at epoch 2, not 1" in error.message


# ---------------------------------------------------------------- rollback


def test_rollback_takes_weight_and_shadow_and_latches_a_veto() -> None:
    outcome = step(seeded(), Rollback("moderation", By("monitor", "flips", {"e": 9}), "int8"), NOW)
    state = outcome.state
    assert weights(table(state))["int8"] == 0
    assert state.vetoes["moderation/int8"] == Latch(1, 0)
    assert state.rolled_back["moderation/int8"].reason == "flips"
    assert outcome.effects == (WordWrite("moderation", "int8", 1, on=True),)
    assert outcome.audit[0].evidence == {"e": 9}
    assert table(state).shadow == {"distilled": 2000}


def test_rollback_of_everything_is_one_epoch_and_a_row_a_variant() -> None:
    outcome = step(seeded(), Rollback("moderation", ME), NOW)
    assert table(outcome.state).epoch == 2
    assert [row.variant for row in outcome.audit] == ["distilled", "int8"]
    assert table(outcome.state).shadow == {}
    assert step(outcome.state, Rollback("moderation", ME), NOW).state is outcome.state


def test_rollback_of_the_baseline_makes_no_sense() -> None:
    assert refused(seeded(), Rollback("moderation", ME, "teacher")).kind is ErrorKind.BAD_REQUEST


def test_giving_traffic_again_clears_the_veto_it_names() -> None:
    state = run(seeded(), Rollback("moderation", ME, "int8")).state
    outcome = step(state, traffic({"int8": 5}), NOW)
    assert outcome.state.vetoes["moderation/int8"] == Latch(1, 1)
    assert outcome.effects == (WordWrite("moderation", "int8", 1, on=False),)
    assert outcome.state.rolled_back == {}
    assert outcome.audit[0].evidence == {"vetoes_cleared": {"int8": 1}}


def test_a_shadow_alone_clears_a_veto_too_but_zero_does_not() -> None:
    state = run(seeded(), Rollback("moderation", ME, "int8")).state
    assert not run(state, traffic(shadow={"int8": 5})).state.vetoes["moderation/int8"].on
    assert run(state, traffic({"int8": 0})).state is state


# ---------------------------------------------------------------- kill


def test_a_kill_is_a_latch_beside_the_table_not_an_epoch_of_it() -> None:
    state = run(seeded(), Kill("moderation", ME)).state
    assert state.kills["moderation"] == Latch(1, 0)
    assert table(state) == table(seeded())


def test_a_second_kill_has_a_number_and_a_row_of_its_own() -> None:
    first = run(seeded(), Kill("moderation", ME)).state
    again = run(first, Kill("moderation", By("bob", "another reason")))
    assert again.state.kills["moderation"].seq == first.kills["moderation"].seq + 1
    assert [(row.actor, row.reason) for row in again.audit] == [("bob", "another reason")]
    with pytest.raises(RequestError, match="is not the one in force"):
        run(again.state, Rearm("moderation", first.kills["moderation"].seq, ME))


def test_a_kill_that_names_its_number_is_one_act_and_a_higher_number_is_taken() -> None:
    state = run(seeded(), Kill("moderation", ME)).state
    assert run(state, Kill("moderation", ME, 1)).state is state
    assert run(state, Kill("moderation", ME, at_least=7)).state.kills["moderation"].seq == 7


@pytest.mark.parametrize("model", ["moderation", "*"])
def test_no_traffic_can_be_given_to_a_killed_model(model: str) -> None:
    state = run(seeded(), Kill(model, ME)).state
    error = refused(state, traffic({"int8": 20}))
    assert error.kind is ErrorKind.CONFLICT
    assert "kill_seq 1" in error.message
    assert "rearm" in error.message
    assert weights(table(run(state, traffic({"int8": 0})).state))["int8"] == 0


def test_only_a_rearm_that_names_the_kill_in_force_clears_it() -> None:
    state = run(seeded(), Kill("moderation", ME), Rearm("moderation", ME, 1), Kill("moderation", ME)).state
    error = refused(state, Rearm("moderation", ME, 1))
    assert (error.kind, "kill 1 of moderation is not the one in force, 2 is" in error.message) == (
        ErrorKind.CONFLICT,
        True,
    )
    outcome = step(state, Rearm("moderation", ME, 2), NOW)
    assert outcome.state.kills["moderation"] == Latch(2, 2)
    assert outcome.effects == (WordWrite("moderation", "*", 2, on=False),)


def test_rearming_what_is_not_killed_says_so() -> None:
    state = run(seeded(), Kill("*", ME)).state
    error = refused(state, Rearm("moderation", ME, 1))
    assert error.message == "no kill of moderation is in force; the global kill-switch is on (kill_seq 1)"


# ---------------------------------------------------------------- the control word


def test_latches_found_in_the_word_are_taken_over_and_audited() -> None:
    word = ImportWord({"moderation": Latch(4, 3)}, {"moderation/int8": Latch(1, 0)})
    outcome = step(seeded(), word, NOW)
    assert outcome.state.kills["moderation"] == Latch(4, 3)
    assert weights(table(outcome.state))["int8"] == 0
    assert [(row.actor, row.action) for row in outcome.audit] == [
        ("control-word", "kill"),
        ("control-word", "rollback"),
    ]
    assert step(outcome.state, word, NOW).state is outcome.state


def test_a_word_that_lags_behind_a_rearm_does_not_kill_again() -> None:
    state = run(seeded(), Kill("moderation", ME), Rearm("moderation", ME, 1)).state
    assert step(state, ImportWord({"moderation": Latch(1, 0)}), NOW).state is state


def test_a_word_made_anew_is_believed_at_start_though_it_counts_from_one() -> None:
    state = msgspec.structs.replace(seeded(), kills={"moderation": Latch(5, 5)})
    outcome = step(state, ImportWord({"moderation": Latch(1, 0)}, starting=True), NOW)
    assert outcome.state.kills["moderation"] == Latch(6, 5)
    assert outcome.effects == (WordWrite("moderation", "*", 6, on=True),)


def test_an_unreadable_slot_means_baseline() -> None:
    word = ImportWord(
        {"moderation": Latch()}, {"moderation/int8": Latch()}, frozenset({"moderation", "moderation/int8"})
    )
    outcome = step(seeded(), word, NOW)
    assert outcome.state.kills["moderation"].on
    assert outcome.state.vetoes["moderation/int8"].on
    assert "unreadable" in outcome.audit[0].reason


def test_the_baseline_cannot_be_vetoed_by_the_word() -> None:
    outcome = step(seeded(), ImportWord({}, {"moderation/teacher": Latch(1, 0)}), NOW)
    assert not outcome.state.vetoes["moderation/teacher"].on
    assert outcome.effects == (WordWrite("moderation", "teacher", 1, on=False),)


def test_who_explains_a_latch_from_the_word_is_added_to_the_trail_once() -> None:
    state = run(seeded(), ImportWord({"moderation": Latch(1, 0)}, {"moderation/int8": Latch(1, 0)})).state
    monitor = By("monitor", "three invalid outputs", {"events": 3})
    for command in (Kill("moderation", monitor, 1), Rollback("moderation", monitor, "int8")):
        outcome = step(state, command, NOW)
        assert [(row.actor, row.evidence) for row in outcome.audit] == [("monitor", {"events": 3})]
        assert outcome.state.tables == state.tables
        assert step(outcome.state, command, NOW).state is outcome.state
