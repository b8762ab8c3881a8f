"""Guards over recorded events: the same trips as the running monitor's, each at its exact record."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from recorded_kit import SECOND, VARIANTS, Gateway, traffic

from monitoring.config import MonitorConfig, MonitorModel, MonitorVariant
from monitoring.detectors.agreement import Agreement
from monitoring.guard import Trip
from monitoring.recorded import read
from monitoring.replay import Look, Replay, Tripped, tables
from monitoring.watch import Watch
from serving.clock import FakeClock
from serving.contract import Flag, Kind, RouteTable, Snapshot, VariantEntry

MODEL = MonitorModel("teacher", "teacher", {name: MonitorVariant() for name in VARIANTS})


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path, FakeClock())


def replay(*paths: Path) -> tuple[Replay, list[Look]]:
    run = Replay(read(paths, "m").recording, "m", MODEL, "int8")
    return run, list(run.looks())


def first_failure(agreement: Agreement) -> int:
    """The pair at which a candidate that never agrees fails."""
    return next(n for n in range(1, 1000) if agreement.observe(flips=1))


def test_a_broken_candidate_trips_agreement_at_an_exact_record(gateway: Gateway) -> None:
    begin = gateway.clock.wall_ns()
    for _ in range(20):
        gateway.request("teacher")
        gateway.request("int8")
        gateway.pair(flip=True)
        gateway.clock.advance(1)
    run, _ = replay(gateway.path)
    needed = first_failure(Agreement(limit=0.02, gross=0.06, alpha=0.01 / 6))
    trip = run.trips[-1]
    assert (trip.guard, trip.action) == ("agreement", "rollback")
    assert (trip.pairs, trip.live, trip.suspect) == (needed, needed, float(needed))
    assert trip.wall_ns == begin + (needed - 1) * SECOND
    assert trip.sentence.startswith(f"int8 disagrees with teacher on {needed} of {needed} scored answers")


def test_over_the_limit_and_not_grossly_it_is_the_pause_that_is_told(gateway: Gateway) -> None:
    for number in range(1200):
        gateway.request("teacher")
        gateway.request("int8")
        gateway.pair(flip=number % 22 == 0)  # 4.5 %: over 2 %, under 6 %
        gateway.clock.advance(0.1)
    run, looks = replay(gateway.path)
    assert [(trip.guard, trip.action) for trip in run.trips] == [("agreement", "pause")]
    assert {verdict.guard: verdict.verdict for verdict in looks[-1].verdicts}["agreement"] == "fail"


def test_the_third_invalid_output_kills(gateway: Gateway) -> None:
    for _ in range(5):
        gateway.request("teacher")
        gateway.invalid()
        gateway.clock.advance(0.5)
    run, looks = replay(gateway.path)
    (trip,) = [trip for trip in run.trips if trip.guard == "invalid_output"]
    assert (trip.action, trip.live) == ("kill", 3)
    assert trip.wall_ns == looks[0].wall_ns + SECOND
    assert trip.sentence == "int8 gave 3 invalid outputs in 3 live answers, the limit is 3"


def test_labels_reach_the_harm_guard(gateway: Gateway) -> None:
    for key in range(40):
        gateway.request("teacher")
        gateway.request("int8", request_key=key)
        gateway.pair(flip=True, request_key=key)
        gateway.write(Kind.LABEL, "int8", "int8", request_key=key, cls=0, status=202, flags=0, epoch=0)
        gateway.clock.advance(1)
    run, _ = replay(gateway.path)
    assert "harm" in {trip.guard for trip in run.trips}


def test_a_copy_counts_as_a_pair_and_as_nobodys_answer(gateway: Gateway) -> None:
    for _ in range(20):
        gateway.request("teacher")
        gateway.pair(flip=True, kind=Kind.SHADOW)
        gateway.clock.advance(1)
    run, looks = replay(gateway.path)
    assert (looks[-1].live, looks[-1].pairs, looks[-1].suspect) == (0, 20, 0.0)
    assert run.trips[-1].action == "rollback"


def test_evidence_goes_on_when_the_recorded_weight_changes(gateway: Gateway) -> None:
    traffic(gateway, 3)
    traffic(gateway, 3, epoch=2)
    gateway.request("teacher", epoch=3)  # the candidate was taken out
    gateway.clock.advance(1)
    traffic(gateway, 3, epoch=4)
    _, looks = replay(gateway.path)
    assert (looks[-1].live, looks[-1].pairs) == (90, 90)


def test_an_epoch_that_one_gateway_never_saw_costs_no_evidence(tmp_path: Path, gateway: Gateway) -> None:
    late = Gateway(tmp_path, gateway.clock, "g1")
    traffic(gateway, 2, epoch=1)
    traffic(gateway, 1, epoch=3)
    traffic(late, 1, epoch=2)
    traffic(gateway, 2, epoch=3)
    _, looks = replay(tmp_path)
    assert (looks[-1].live, looks[-1].pairs) == (60, 60)


def test_there_is_a_look_at_each_second_and_at_the_end(gateway: Gateway) -> None:
    begin = gateway.clock.wall_ns()
    gateway.request("int8")
    gateway.clock.advance(2.5)
    gateway.request("int8")
    _, looks = replay(gateway.path)
    assert [(look.wall_ns - begin) / SECOND for look in looks] == [0.0, 1.0, 2.0, 2.5]
    assert [look.live for look in looks] == [0, 1, 1, 2]


def test_a_recording_of_years_is_a_clock_that_went_wrong(gateway: Gateway) -> None:
    gateway.request("int8", wall_ns=1)
    gateway.request("int8")
    with pytest.raises(ValueError, match="the records span 19675 days, over 400"):
        replay(gateway.path)


def test_weights_are_taken_from_the_requests_of_an_epoch(gateway: Gateway) -> None:
    for number in range(100):
        gateway.request("int8" if number % 4 == 0 else "teacher", epoch=3)
        gateway.request("int8", flags=0, epoch=3)  # by override: no part of the live traffic
        gateway.request("teacher", flags=Flag.LIVE | Flag.KILLED, epoch=3)  # a kill: not by the weights
    gateway.pair(inclusion=0.5, epoch=3)
    gateway.pair(kind=Kind.SHADOW, inclusion=0.2, epoch=2)
    found = tables(read([gateway.path], "m").recording, "m", "teacher", "teacher")
    assert found[3].candidates == {"int8": ((0, 2500),)}
    assert (found[3].since, found[3].reference_bp, found[3].shadow) == ({"int8": 3}, 5000, {})
    assert (found[2].candidates, found[2].shadow) == ({}, {"int8": 2000})


# ---------------------------------------------------------------- the same as the monitor


def monitored(folder: Path, clock: FakeClock, chunk: int) -> list[Trip]:
    """What the monitor says of the same spools, read in chunks under the table that the records were made by."""
    config = MonitorConfig(
        "i", str(folder), str(folder / "state"), str(folder / "word"), "http://127.0.0.1:1", {"m": MODEL}
    )
    watch = Watch(config, clock)
    entries = {name: VariantEntry(name, number, f"m/{name}:1") for number, name in enumerate(VARIANTS, 1)}
    table = RouteTable(
        "m", 1, "s", "teacher", "teacher", entries, {"int8": ((0, 5000),)}, {"int8": 1}, reference_bp=10_000
    )
    watch.apply(Snapshot(1, 1, {"m": table}))
    watch.tick()
    trips: list[Trip] = []
    while (read_ := watch.step(chunk))[0]:
        trips += read_[1]
    return trips


def _evidence(trip: Trip | Tripped) -> float:
    return float(trip.statistic.get("log_evidence_at_failure", math.nan))


@pytest.mark.parametrize("chunk", [256, 1024, 8192])
def test_the_monitor_trips_over_the_same_evidence(tmp_path: Path, chunk: int) -> None:
    clock = FakeClock()
    gateway = Gateway(tmp_path, clock)
    for number in range(1500):
        gateway.request("teacher", total_us=1000 + number % 100)
        slow = 50_000 if number > 700 else 1000
        gateway.request("int8", total_us=slow)
        gateway.pair(flip=number % 9 == 0)
        if number % 400 == 399:
            gateway.invalid()
            gateway.request("teacher")
        clock.advance(0.05)
    run, _ = replay(gateway.path)
    live = monitored(tmp_path, clock, chunk)
    acted = [trip for trip in run.trips if trip.action != "pause"]
    assert {trip.guard for trip in live} == {"agreement", "latency", "invalid_output"}
    assert sorted(trip.guard for trip in acted) == sorted(trip.guard for trip in live)
    for trip in live:
        (same,) = [one for one in acted if one.guard == trip.guard]
        assert same.wall_ns <= trip.wall_ns  # the monitor looks once a chunk
        if trip.guard != "invalid_output":
            assert _evidence(same) == _evidence(trip)
