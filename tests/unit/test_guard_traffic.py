"""The guards of the split, of KPIs and of the baseline's latency, fed with records of a whole model."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from monitoring.config import MonitorModel, MonitorVariant
from monitoring.detectors.kpi import KpiTarget
from monitoring.event import Event
from monitoring.evidence import Evidence
from monitoring.verdicts import Verdict
from serving.contract import Cause, Flag, Kind, Latch, Reason, RouteTable, Snapshot, VariantEntry, kpi_key
from serving.packing import is_unopened, pack_unopened

SECOND = 1_000_000_000
KILLED = Flag.LIVE | Flag.BASELINE_VALID | Flag.KILLED


def snapshot(weights: dict[str, int], epoch: int = 1) -> Snapshot:
    low, spans = 0, {}
    for name, share in weights.items():
        spans[name] = ((low, low + share),)
        low += share
    entries = {name: VariantEntry(name, at, f"m/{name}:1") for at, name in enumerate(("teacher", "int8", "tiny"), 1)}
    table = RouteTable("m", epoch, "s", "teacher", "teacher", entries, spans, dict.fromkeys(spans, 2))
    return Snapshot(rev=epoch, lease=1, tables={"m": table})


class World:
    """One model, its users, and what the gateways record of them."""

    def __init__(self, *kpis: KpiTarget) -> None:
        variants = {name: MonitorVariant(at) for at, name in enumerate(("teacher", "int8", "tiny"), 1)}
        self.evidence = Evidence("m", MonitorModel("teacher", "teacher", variants, kpis=list(kpis)))
        self.guards = self.evidence.guards
        self.random = np.random.default_rng(3)
        self.key = self.at_ns = 0
        self.guards.configure(snapshot({}, 1))

    def request(self, variant: str, reason: Reason = Reason.BASELINE, **more: Any) -> int:
        self.key += 1
        self.at_ns += SECOND // 20
        event = Event(
            Kind.REQUEST, variant, variant, request_key=self.key, reason=reason, mono_ns=self.at_ns, wall_ns=self.at_ns,
            **{"epoch": 2, "total_us": 1000, "unit_key": int(self.random.integers(1, 2**63)), **more},
        )  # fmt: skip
        self.evidence.take(event)
        return self.key

    def kpi(self, key: int, name: str, value: float) -> None:
        self.evidence.take(Event(Kind.KPI, "teacher", request_key=key, prob=value, extra=kpi_key(name)))

    def of(self, guard: str, variant: str = "int8") -> Verdict:
        return next(v for v in self.guards.verdicts() if (v.guard, v.variant) == (guard, variant))


def split(world: World, number: int, chances: dict[str, float], **more: Any) -> None:
    names = ["teacher", *chances]
    shares = [1 - sum(chances.values()), *chances.values()]
    for variant in world.random.choice(names, number, p=shares).tolist():
        world.request(variant, Reason.BASELINE if variant == "teacher" else Reason.CANARY, **more)


class TestSplit:
    def test_users_that_do_not_fall_as_configured_pause_and_roll_nothing_back(self) -> None:
        world = World()
        world.guards.configure(snapshot({"int8": 5000}, 2))
        split(world, 2000, {"int8": 0.4})
        verdict = world.of("srm")
        assert (verdict.verdict, verdict.action) == ("fail", "pause")
        assert "not the configured 50.0 %" in verdict.sentence
        assert world.guards.trips() == []

    def test_weights_may_change_and_another_candidate_may_come(self) -> None:
        world = World()
        for epoch, weights in enumerate(({"int8": 500}, {"int8": 3000}, {"int8": 3000, "tiny": 4000}), 2):
            world.guards.configure(snapshot(weights, epoch))
            split(world, 2000, {name: share / 10_000 for name, share in weights.items()}, epoch=epoch)
        assert [world.of("srm", name).verdict for name in ("int8", "tiny")] == ["pass", "inconclusive"]

    def test_a_candidate_that_answers_late_lacks_no_users(self) -> None:
        world = World()
        world.guards.configure(snapshot({"int8": 5000}, 2))
        split(world, 40, {"int8": 0.5})
        for _ in range(
            60
        ):  # recorded when they end: the baseline's at once, those of three seconds' hanging after them
            world.request("teacher")
        for _ in range(60):
            world.request("int8", Reason.FALLBACK, cause=Cause.TIMEOUT, total_us=3_000_000)
        split(world, 400, {"int8": 0.5})
        assert world.of("srm").verdict != "fail"

    def test_failures_and_wrong_requests_are_users_as_well_and_testers_are_none(self) -> None:
        world = World()
        world.guards.configure(snapshot({"int8": 5000}, 2))
        world.request("int8", Reason.CANARY)
        world.request("int8", Reason.FALLBACK, cause=Cause.ERROR, flags=0)
        world.request("teacher", status=400, flags=4)
        for reason in (Reason.OVERRIDE, Reason.PINNED):
            world.request("int8", reason, flags=0)
        assert world.of("srm").verdict == "no_data"  # others may have begun before them and still be under way
        world.at_ns += 10 * SECOND
        world.request("teacher")
        assert world.of("srm").statistic["observations"] == 2

    @pytest.mark.parametrize("last", [{"reason": Reason.KILLED}, {"reason": Reason.FALLBACK, "cause": Cause.KILLED}])
    def test_a_kill_is_no_mismatch(self, last: dict[str, Any]) -> None:
        world = World()
        world.guards.configure(snapshot({"int8": 5000}, 2))
        world.request("int8", Reason.CANARY)
        world.request("teacher", **last)
        for _ in range(500):
            world.request("teacher")
        assert world.of("srm").verdict == "no_data"

    def test_nor_is_one_in_the_midst_of_counting(self) -> None:
        world = World()
        world.guards.configure(snapshot({"int8": 5000}, 2))
        split(world, 400, {"int8": 0.5})
        world.request("teacher", flags=KILLED)
        for _ in range(500):
            world.request("teacher")
        verdict = world.of("srm")
        assert verdict.verdict != "fail"
        assert verdict.statistic["stopped"]

    def test_what_a_kill_held_back_and_is_read_after_the_re_arm_hides_no_mismatch(self) -> None:
        world = World()
        table = snapshot({"int8": 5000}, 2)
        world.guards.configure(table)
        split(world, 400, {"int8": 0.5})
        world.guards.configure(msgspec.structs.replace(table, rev=3, kills={"m": Latch(1, 0)}))
        for _ in range(20):
            world.request("teacher", flags=KILLED)
        world.guards.configure(msgspec.structs.replace(table, rev=4, kills={"m": Latch(1, 1)}))
        world.request("teacher", flags=KILLED)  # was still unread
        split(world, 1000, {"int8": 0.17})
        verdict = world.of("srm")
        assert (verdict.verdict, verdict.statistic["stopped"]) == ("fail", False)

    def test_a_rollback_is_no_mismatch_while_its_table_is_on_the_way(self) -> None:
        world = World()
        world.guards.configure(snapshot({"int8": 5000}, 2))
        for _ in range(3):
            world.request("int8", Reason.FALLBACK, cause=Cause.INVALID_OUTPUT)
        assert [trip.action for trip in world.guards.trips()] == ["kill"]
        world.request("int8", Reason.CANARY)  # by a gateway that has not heard of it
        for _ in range(500):
            world.request("teacher")
        assert world.of("srm").verdict != "fail"


class TestHeldOnTheBaseline:
    """A silent monitor has everything answered by the baseline; table, epoch and arming stay as they are."""

    def run(self, seconds: int, held: bool) -> World:
        world = World()
        for _ in range(600):
            world.request("teacher", epoch=1)
        world.guards.configure(snapshot({"int8": 5000}, 2))
        split(world, 200, {"int8": 0.5})
        flags = Flag.LIVE | Flag.BASELINE_VALID | (Flag.KILLED if held else 0)
        for _ in range(seconds * 20):
            reason = Reason.KILLED if held and world.random.random() < 0.5 else Reason.BASELINE
            world.request("teacher", reason, flags=flags, total_us=int(world.random.integers(900, 1100)))
        return world

    def test_a_candidate_without_requests_wins_no_race(self) -> None:
        world = self.run(seconds=300, held=True)
        assert {world.of(guard).verdict for guard in ("latency", "interference", "srm")} <= {"inconclusive", "no_data"}

    def test_the_same_records_without_a_hold_are_a_race(self) -> None:
        world = self.run(seconds=300, held=False)
        assert {world.of(guard).verdict for guard in ("latency", "interference")} == {"pass"}

    def test_it_is_no_time_without_candidates_to_compare_with_either(self) -> None:
        world = World()
        for held in (0, Flag.KILLED):
            for _ in range(600):
                world.request("teacher", flags=Flag.LIVE | held, epoch=1, total_us=100_000 if held else 1000)
        world.guards.configure(snapshot({"int8": 5000}, 2))
        for _ in range(100):
            world.request("teacher")
        assert world.of("interference").statistic["threshold_ms"] < 8


class TestGatewayThatHasNotOpenedTheCandidate:
    """Of two gateways one gives the candidate's users to the baseline, until it has opened the candidate."""

    WITHOUT = pack_unopened(["int8"])
    DIVERTED = Flag.LIVE | Flag.BASELINE_VALID | Flag.UNOPENED

    def run(self, weights: dict[str, int], number: int = 4000) -> World:
        world = World()
        world.guards.configure(snapshot(weights, 2))
        shares = {"teacher": 10_000 - sum(weights.values()), **weights}
        names, chances = list(shares), [share / 10_000 for share in shares.values()]
        for at, owner in enumerate(world.random.choice(names, number, p=chances).tolist()):
            error = {"status": 500, "flags": Flag.LIVE} if at % 10 < 2 else {}  # a fifth of either arm
            if at % 2 and owner == "int8":
                world.request("teacher", flags=self.DIVERTED, extra=self.WITHOUT)
            else:
                reason = Reason.BASELINE if owner == "teacher" else Reason.CANARY
                world.request(owner, reason, extra=self.WITHOUT if at % 2 else 0, **error)
        return world

    def test_is_of_neither_arm(self) -> None:
        world = self.run({"int8": 5000})
        srm, errors = world.of("srm"), world.of("errors").statistic
        assert srm.verdict != "fail"
        assert srm.statistic["observations"] == pytest.approx(2000, abs=150)  # one gateway's, but the first and last
        # Half of the errors of that gateway are the candidate's, as half of the users are.
        assert errors["events"] / errors["observations"] == pytest.approx(0.5, abs=0.05)

    def test_but_of_those_of_a_candidate_that_is_open(self) -> None:
        world = self.run({"int8": 3000, "tiny": 3000})
        tiny = world.of("srm", "tiny").statistic
        assert world.of("srm", "tiny").verdict != "fail"
        assert tiny["observations"] == pytest.approx(4000 * 0.7, abs=200)  # the baseline's and its own, on both
        assert tiny["events"] / tiny["observations"] == pytest.approx(3 / 7, abs=0.03)

    @pytest.mark.parametrize("number", range(7))
    def test_all_candidates_that_are_not_open_are_told(self, number: int) -> None:
        names = [f"candidate-{at}" for at in range(number)]
        assert all(is_unopened(pack_unopened(names), name) for name in names)
        assert is_unopened(pack_unopened(names), "another") == (number > 4)  # of so many nothing is compared


class TestInterference:
    def ramp(self, slow_us: int, before_us: int = 1000, before: int = 600) -> World:
        world = World()
        for _ in range(before):
            world.request("teacher", epoch=1, total_us=before_us)
        world.guards.configure(snapshot({"int8": 5000}, 2))
        for _ in range(1000):
            world.request("teacher", total_us=slow_us)
            world.request("int8", Reason.CANARY, total_us=slow_us)
        return world

    def test_a_candidate_that_starves_the_machine_is_rolled_back_although_both_arms_are_slow(self) -> None:
        world = self.ramp(slow_us=60_000)
        assert [(trip.guard, trip.action) for trip in world.guards.trips()] == [("interference", "rollback")]
        assert (
            "with int8 over 5 % of the baseline's requests took longer than 7.0 ms" in world.of("interference").sentence
        )

    def test_a_baseline_as_before_passes(self) -> None:
        assert self.ramp(slow_us=1900).of("interference").verdict == "pass"

    def test_without_a_time_without_candidates_nothing_is_concluded(self) -> None:
        assert self.ramp(slow_us=60_000, before=100).of("interference").verdict == "no_data"

    def test_what_a_candidate_has_slowed_is_no_reference_nor_is_the_minute_after(self) -> None:
        world = self.ramp(slow_us=60_000)
        world.guards.configure(snapshot({}, 3))
        for _ in range(1100):  # 55 seconds
            world.request("teacher", epoch=3, total_us=60_000)
        again = {**snapshot({"int8": 5000}, 4).tables}
        world.guards.configure(Snapshot(4, 1, again))
        for _ in range(1000):
            world.request("teacher", epoch=4, total_us=60_000)
        assert world.of("interference").statistic["threshold_ms"] < 8


class TestKpi:
    CONVERSION = KpiTarget("conversion", margin=0.02)

    def test_fewer_conversions_pause(self) -> None:
        world = World(self.CONVERSION)
        world.guards.configure(snapshot({"int8": 5000}, 2))
        for draw in world.random.random(1500).tolist():
            for variant, chance in (("teacher", 0.5), ("int8", 0.25)):
                world.kpi(world.request(variant), "conversion", float(draw < chance))
        verdict = world.of("kpi")
        assert (verdict.verdict, verdict.action) == ("fail", "pause")
        assert "int8: conversion is 0.2" in verdict.sentence
        assert "over the margin of 0.02" in verdict.sentence

    def test_requests_from_before_the_traffic_and_of_testers_do_not_count(self) -> None:
        world = World(self.CONVERSION)
        early = world.request("teacher", epoch=1)
        world.guards.configure(snapshot({"int8": 5000}, 2))
        tester = world.request("int8", Reason.OVERRIDE)
        late = world.request("teacher")
        for key in (early, tester, late, 10**6):
            world.kpi(key, "conversion", 1.0)
            world.kpi(key, "clicks", 1.0)
        found = world.of("kpi").statistic["kpis"]["conversion"]
        assert (found["baseline_users"], found["candidate_users"]) == (1, 0)

    def test_nor_do_those_of_a_model_that_was_held_on_its_baseline(self) -> None:
        world = World(self.CONVERSION)
        world.guards.configure(snapshot({"int8": 5000}, 2))
        world.kpi(world.request("int8", Reason.CANARY), "conversion", 1.0)
        world.kpi(world.request("teacher", flags=Flag.LIVE | Flag.KILLED), "conversion", 1.0)
        found = world.of("kpi").statistic["kpis"]["conversion"]
        assert (found["baseline_users"], found["candidate_users"]) == (0, 1)

    def test_a_model_without_kpis_has_no_such_guard(self) -> None:
        world = World()
        world.guards.configure(snapshot({"int8": 5000}, 2))
        world.kpi(world.request("int8"), "conversion", 1.0)
        assert "kpi" not in {verdict.guard for verdict in world.guards.verdicts()}
