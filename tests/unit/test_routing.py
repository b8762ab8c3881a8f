"""Routing: who moves when weights change, and that nobody else does."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contract import BUCKETS, Latch, Reason, RouteTable, Snapshot, VariantEntry
from serving.core import routing

CANDIDATES = ("int8", "distilled", "tiny")
KEYS = [f"user-{number}" for number in range(20_000)]

shares = st.integers(0, BUCKETS)
steps = st.lists(st.tuples(st.sampled_from(CANDIDATES), shares), max_size=12)


def table(**changes: object) -> RouteTable:
    names = ("teacher", *CANDIDATES)
    variants = {name: VariantEntry(name, number, f"m/{name}:1") for number, name in enumerate(names, 1)}
    base = RouteTable("m", 1, "salt-1", "teacher", "teacher", variants)
    return msgspec.structs.replace(base, **changes)


def buckets(of: RouteTable, variant: str) -> frozenset[int]:
    return frozenset(bucket for low, high in of.candidates.get(variant, ()) for bucket in range(low, high))


def ramped(through: list[tuple[str, int]]) -> RouteTable:
    """A table after some sequence of weight changes, those that do not fit left out."""
    current = table()
    for epoch, (variant, share) in enumerate(through, 2):
        try:
            current = routing.with_weight(current, variant, share, epoch=epoch)
        except ValueError:
            assert share > routing.weights(current)[variant] + routing.weights(current)["teacher"]
    return current


# ---------------------------------------------------------------- weights


@given(steps)
def test_weights_add_up_and_no_bucket_has_two_owners(through: list[tuple[str, int]]) -> None:
    result = ramped(through)
    owned = [buckets(result, name) for name in CANDIDATES]
    assert sum(routing.weights(result).values()) == BUCKETS
    assert len(frozenset().union(*owned)) == sum(map(len, owned)) == sum(map(routing.size, result.candidates.values()))
    assert all(0 <= low < high <= BUCKETS for spans in result.candidates.values() for low, high in spans)


@given(steps, st.sampled_from(CANDIDATES), shares)
def test_a_change_moves_exactly_the_difference_and_disturbs_nobody(
    through: list[tuple[str, int]], variant: str, share: int
) -> None:
    before = ramped(through)
    held = routing.weights(before)
    if share > held[variant] + held["teacher"]:
        with pytest.raises(ValueError, match="the baseline has"):
            routing.with_weight(before, variant, share, epoch=99)
        return
    after = routing.with_weight(before, variant, share, epoch=99)
    old, new = buckets(before, variant), buckets(after, variant)
    assert len(new) == share
    assert old <= new or new <= old, "a ramp only adds users, a step back only removes"
    for other in set(CANDIDATES) - {variant}:
        assert after.candidates.get(other) == before.candidates.get(other)
    assert after.epoch == 99


@given(steps, st.sampled_from(CANDIDATES), shares)
def test_a_step_back_undoes_the_step(through: list[tuple[str, int]], variant: str, more: int) -> None:
    before = ramped(through)
    held = routing.weights(before)
    up = routing.with_weight(before, variant, held[variant] + min(more, held["teacher"]), epoch=98)
    assert buckets(routing.with_weight(up, variant, held[variant], epoch=99), variant) == buckets(before, variant)


@given(steps, st.sampled_from(CANDIDATES), shares)
def test_setting_the_same_weight_again_changes_nothing(
    through: list[tuple[str, int]], variant: str, share: int
) -> None:
    before = ramped(through)
    held = routing.weights(before)
    once = routing.with_weight(before, variant, min(share, held[variant] + held["teacher"]), epoch=99)
    again = routing.with_weight(once, variant, routing.weights(once)[variant], epoch=100)
    assert (again.candidates, again.since) == (once.candidates, once.since)


@given(st.lists(st.integers(1, BUCKETS), min_size=2, max_size=6, unique=True).map(sorted))
def test_users_of_a_ramp_stay_until_it_is_taken_back(ramp: list[int]) -> None:
    current, previous = table(), frozenset[str]()
    for share in ramp:
        current = routing.with_weight(current, "int8", share, epoch=share)
        now = frozenset(key for key in KEYS[:300] if routing.route(current, key).variant == "int8")
        assert previous <= now
        previous = now
    for share in reversed(ramp):
        current = routing.with_weight(current, "int8", share, epoch=share)
        now = frozenset(key for key in KEYS[:300] if routing.route(current, key).variant == "int8")
        assert now <= previous
        previous = now


@pytest.mark.parametrize("share", [1, 100, 500, 2500, 9900])
def test_shares_of_users_are_as_configured_within_sampling_error(share: int) -> None:
    current = routing.with_weight(table(), "int8", share, epoch=2)
    hits = sum(routing.route(current, key).variant == "int8" for key in KEYS)
    expected = len(KEYS) * share / BUCKETS
    assert abs(hits - expected) <= 4.5 * math.sqrt(expected * (1 - share / BUCKETS)) + 1


@pytest.mark.parametrize("share", [0, BUCKETS])
def test_none_and_all_are_exact(share: int) -> None:
    current = routing.with_weight(table(), "int8", share, epoch=2)
    assert {routing.route(current, key).variant for key in KEYS[:500]} == {"int8" if share else "teacher"}


def test_the_seeded_table_has_the_configured_weights() -> None:
    seeded = routing.initial_table(table(), {"int8": 500, "distilled": 250})
    assert routing.weights(seeded) == {"teacher": 9250, "int8": 500, "distilled": 250, "tiny": 0}
    assert (seeded.epoch, seeded.since) == (1, {"int8": 1, "distilled": 1})


@pytest.mark.parametrize(
    ("variant", "share", "message"),
    [
        ("teacher", 1, "teacher is the baseline, which gets what the others leave"),
        ("int4", 1, "unknown variant int4, expected one of distilled, int8, teacher, tiny"),
        ("int8", -1, "a share is between 0 and 10000 basis points, got -1"),
        ("int8", 10_001, "a share is between 0 and 10000 basis points, got 10001"),
        ("int8", 8_000, "int8 at 80 % needs 80 % more, the baseline has 60 %"),
    ],
)
def test_impossible_weights_say_why(variant: str, share: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        routing.with_weight(routing.with_weight(table(), "distilled", 4_000, epoch=2), variant, share, epoch=3)


# ---------------------------------------------------------------- epochs


def test_since_is_the_epoch_of_the_first_traffic() -> None:
    first = routing.with_weight(table(), "int8", 100, epoch=2)
    raised = routing.with_weight(first, "int8", 500, epoch=3)
    other = routing.with_weight(raised, "distilled", 100, epoch=4)
    assert other.since == {"int8": 2, "distilled": 4}
    gone = routing.with_weight(other, "int8", 0, epoch=5)
    assert gone.since == {"distilled": 4}
    assert "int8" not in gone.candidates
    assert routing.with_weight(gone, "int8", 100, epoch=6).since == {"distilled": 4, "int8": 6}


def test_a_rollback_of_everything_leaves_the_baseline_alone() -> None:
    live = routing.initial_table(table(shadow={"tiny": 2_000}), {"int8": 500})
    back = routing.without_candidates(live, epoch=7)
    assert routing.weights(back) == {"teacher": BUCKETS, "int8": 0, "distilled": 0, "tiny": 0}
    assert (back.shadow, back.since, back.epoch) == ({}, {}, 7)


# ---------------------------------------------------------------- hashing


def test_buckets_are_pinned() -> None:
    """A change of the hash would move every user of every running canary at the upgrade."""
    assert [routing.bucket_of("salt-1", key) for key in ("user-1", "user-2", "ü")] == [4343, 4052, 9850]
    assert routing.bucket_of("salt-1", "user-1", "shadow:int8") == 8282


@given(st.text(), st.text(), st.sampled_from(["route", "reference", "shadow:int8"]))
def test_a_bucket_is_in_range_and_always_the_same(salt: str, key: str, domain: str) -> None:
    bucket = routing.bucket_of(salt, key, domain)
    assert 0 <= bucket < BUCKETS
    assert bucket == routing.bucket_of(salt, key, domain)


def correlation(left: list[int], right: list[int]) -> float:
    mean_left, mean_right = sum(left) / len(left), sum(right) / len(right)
    cross = sum((a - mean_left) * (b - mean_right) for a, b in zip(left, right, strict=True))
    squares = sum((a - mean_left) ** 2 for a in left) * sum((b - mean_right) ** 2 for b in right)
    return cross / math.sqrt(squares)


@pytest.mark.parametrize("other", [("salt-2", "route"), ("salt-1", "reference"), ("salt-1", "shadow:int8")])
def test_a_fresh_salt_and_another_domain_are_independent(other: tuple[str, str]) -> None:
    here = [routing.bucket_of("salt-1", key) for key in KEYS]
    there = [routing.bucket_of(other[0], key, other[1]) for key in KEYS]
    assert abs(correlation(here, there)) < 4.5 / math.sqrt(len(KEYS))


def test_a_fresh_salt_moves_users() -> None:
    first = routing.with_weight(table(), "int8", 1_000, epoch=2)
    fresh = msgspec.structs.replace(first, salt="salt-2")
    users = [key for key in KEYS if routing.route(first, key).variant == "int8"]
    stayed = sum(routing.route(fresh, key).variant == "int8" for key in users)
    assert stayed / len(users) == pytest.approx(0.1, abs=0.04)


# ---------------------------------------------------------------- decisions


def keys_of(of: RouteTable, variant: str) -> list[str]:
    return [key for key in KEYS[:2_000] if routing.route(of, key).variant == variant]


LIVE = routing.initial_table(table(shadow={"tiny": 5_000, "int8": 5_000}, reference_bp=3_000), {"int8": 4_000})


def test_a_candidate_is_scored_by_the_teacher_at_the_configured_rate() -> None:
    routes = [routing.route(LIVE, key) for key in keys_of(LIVE, "int8")]
    assert {route.reason for route in routes} == {Reason.CANARY}
    assert sum(route.reference for route in routes) / len(routes) == pytest.approx(0.3, abs=0.07)


def test_the_baseline_is_never_scored_against_itself() -> None:
    routes = [routing.route(LIVE, key) for key in keys_of(LIVE, "teacher")]
    assert {(route.reason, route.reference) for route in routes} == {(Reason.BASELINE, False)}


def test_shadows_are_copied_independently_and_never_to_the_one_who_answers() -> None:
    answered = [routing.route(LIVE, key) for key in keys_of(LIVE, "int8")]
    assert {route.shadows for route in answered} == {(), ("tiny",)}
    others = [routing.route(LIVE, key) for key in keys_of(LIVE, "teacher")]
    assert {route.shadows for route in others} == {(), ("tiny",), ("int8",), ("tiny", "int8")}
    for name in ("tiny", "int8"):
        assert sum(name in route.shadows for route in others) / len(others) == pytest.approx(0.5, abs=0.07)


def test_of_one_user_as_many_requests_are_copied_and_scored_as_of_many() -> None:
    for key, reason in ((keys_of(LIVE, "int8")[0], Reason.CANARY), (keys_of(LIVE, "teacher")[0], Reason.BASELINE)):
        routes = [routing.route(LIVE, key, f"request-{n}") for n in range(2_000)]
        assert {route.reason for route in routes} == {reason}
        assert sum("tiny" in route.shadows for route in routes) / 2_000 == pytest.approx(0.5, abs=0.05)
        scored = 0.3 if reason is Reason.CANARY else 0.0
        assert sum(route.reference for route in routes) / 2_000 == pytest.approx(scored, abs=0.05)


def test_a_killed_model_answers_from_the_baseline_and_copies_nothing() -> None:
    for key in KEYS[:500]:
        would_be, route = routing.route(LIVE, key), routing.route(LIVE, key, killed=True)
        reason = Reason.KILLED if would_be.variant == "int8" else Reason.BASELINE
        assert route == routing.Route("teacher", reason)


def test_a_veto_takes_one_candidate_out_and_leaves_the_rest_alone() -> None:
    both = routing.with_weight(LIVE, "distilled", 3_000, epoch=2)
    for key in KEYS[:500]:
        free, route = routing.route(both, key), routing.route(both, key, vetoed=frozenset({"int8"}))
        if free.variant == "int8":
            assert (route.variant, route.reason, route.reference) == ("teacher", Reason.BASELINE, False)
        else:
            assert (route.variant, route.reason) == (free.variant, free.reason)
        assert "int8" not in route.shadows


def test_a_kill_of_all_models_or_of_this_one_is_in_force_until_it_is_cleared() -> None:
    def snapshot(**kills: Latch) -> Snapshot:
        return Snapshot(1, 1, {}, kills={name.replace("every", "*"): latch for name, latch in kills.items()})

    assert not routing.killed(snapshot(), "m")
    assert routing.killed(snapshot(m=Latch(1)), "m")
    assert not routing.killed(snapshot(other=Latch(1)), "m")
    assert routing.killed(snapshot(every=Latch(4, 3)), "m")
    assert not routing.killed(snapshot(m=Latch(2, 2), every=Latch(4, 4)), "m")
    assert routing.killed(snapshot(m=Latch(2, 2), every=Latch(5, 4)), "m")


def test_vetoes_belong_to_their_model() -> None:
    vetoes = {"m/int8": Latch(1), "m/tiny": Latch(2, 2), "m2/distilled": Latch(1)}
    assert routing.vetoed(Snapshot(1, 1, {}, vetoes=vetoes), "m") == {"int8"}


@given(steps)
def test_a_table_survives_the_wire(through: list[tuple[str, int]]) -> None:
    snapshot = Snapshot(3, 1, {"m": ramped(through)}, kills={"*": Latch(1, 1)})
    assert msgspec.json.decode(msgspec.json.encode(snapshot), type=Snapshot) == snapshot
