"""Records that overtake the routing snapshot they were made under: nothing of a ramp's beginning is lost."""

from __future__ import annotations

from pathlib import Path

import msgspec

from monitoring.config import MonitorConfig, MonitorModel, MonitorVariant
from monitoring.watch import EARLY_S, Watch
from serving.clock import FakeClock
from serving.contract import C_CAPACITY, C_ROWS, Cause, Flag, Kind, Latch, Reason, RouteTable, Snapshot, VariantEntry
from serving.gateway.spool import SpoolWriter


def _snapshot(rev: int, epoch: int, share: int) -> Snapshot:
    entries = {name: VariantEntry(name, number, f"m/{name}:1") for number, name in enumerate(("teacher", "nan"), 1)}
    candidates = {"nan": ((0, share),)} if share else {}
    table = RouteTable("m", epoch, "s", "teacher", "teacher", entries, candidates, {"nan": epoch} if share else {})
    return Snapshot(rev, 1, {"m": table})


class Bench:
    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        variants = {"teacher": MonitorVariant(1), "nan": MonitorVariant(2)}
        config = MonitorConfig(
            "i", str(folder / "spool"), str(folder / "state"), str(folder / "word"), "http://127.0.0.1:1",
            {"m": MonitorModel("teacher", "teacher", variants)},
        )  # fmt: skip
        self.watch = Watch(config, self.clock)
        self.spool = SpoolWriter.create(config.spool_dir, "g", self.clock, 64)
        self.spool.set_model("m", [10.0], ["a", "b"])
        self.ids = {name: self.spool.series_id("m", name) for name in variants}
        self.watch.apply(_snapshot(1, 1, 0))
        self.watch.tick()

    def second(self) -> None:
        """A second passes, and the gateway lives."""
        self.clock.advance(1)
        self.spool.beat()
        self.watch.step()
        self.watch.tick()

    def invalid(self, count: int, epoch: int) -> None:
        for _ in range(count):
            self.spool.record(
                Kind.REQUEST, Flag.LIVE | Flag.BASELINE_VALID, Reason.FALLBACK, Cause.INVALID_OUTPUT,
                mono_ns=self.clock.monotonic_ns(), wall_ns=self.clock.wall_ns(), series=self.ids["nan"],
                answered=self.ids["teacher"], status=200, rows=1, epoch=epoch,
            )  # fmt: skip


def test_records_of_an_epoch_wait_for_its_snapshot_and_then_count(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.invalid(3, epoch=2)
    assert bench.watch.step() == (3, [])
    assert not bench.watch.settled  # committing now would lose them in a crash
    bench.watch.apply(_snapshot(2, 2, 5000))
    _, trips = bench.watch.step()
    assert [(trip.guard, trip.variant) for trip in trips] == [("invalid_output", "nan")]
    assert bench.watch.settled


def test_without_the_snapshot_they_are_handed_on_after_a_while(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.invalid(3, epoch=2)
    bench.watch.step()
    bench.clock.advance(EARLY_S + 1)
    assert bench.watch.step() == (0, [])
    assert bench.watch.settled


def test_those_of_an_earlier_boot_wait_no_longer(tmp_path: Path) -> None:
    """The monotonic clock begins anew with the machine: their time is yet to come."""
    bench = Bench(tmp_path)
    bench.clock.advance(10 * 86_400)
    bench.invalid(3, epoch=2)
    bench.clock.advance(-10 * 86_400)
    bench.watch.step()
    assert not bench.watch.settled
    bench.clock.advance(EARLY_S + 1)
    bench.watch.step()
    assert bench.watch.settled


def test_cut_off_from_the_control_plane_it_waits_once_an_epoch(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.invalid(1, epoch=2)
    bench.watch.step()
    bench.clock.advance(EARLY_S + 1)
    bench.watch.step()
    bench.invalid(1, epoch=2)
    bench.watch.step()
    assert bench.watch.settled  # commits go on
    bench.invalid(1, epoch=3)
    bench.watch.step()
    assert not bench.watch.settled


def test_headroom_is_what_the_baseline_can_do_over_what_is_asked_of_the_model(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.watch.headroom() == {"m": None}
    bench.spool.set_gauge(bench.ids["teacher"], C_CAPACITY, 90_000)  # 90 rows/s
    for _ in range(10):
        bench.spool.add(bench.ids["teacher"], C_ROWS, 20)
        bench.spool.add(bench.ids["nan"], C_ROWS, 40)
        bench.second()
    assert bench.watch.headroom() == {"m": 1.5}
    for _ in range(70):  # nobody asks any more
        bench.second()
    assert bench.watch.headroom() == {"m": None}


def test_after_a_kill_only_the_baseline_answers_anybody(tmp_path: Path) -> None:
    """The candidate keeps its weight in the table; golden rows asked of it would be refused, every one."""
    bench = Bench(tmp_path)
    live = _snapshot(2, 2, 5000)
    bench.watch.apply(live)
    assert bench.watch.answering("m") == {"teacher", "nan"}
    for whose in ("m", "*"):
        bench.watch.apply(msgspec.structs.replace(live, kills={whose: Latch(1, 0)}))
        assert bench.watch.answering("m") == {"teacher"}
    bench.watch.apply(msgspec.structs.replace(live, kills={"m": Latch(1, 1)}))
    assert bench.watch.answering("m") == {"teacher", "nan"}


def test_a_clock_that_is_set_back_blanks_no_chart(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for wall_s in (3600, 0):
        wall_ns = bench.clock.wall_ns() + wall_s * 10**9
        bench.spool.record(
            Kind.REQUEST, Flag.LIVE, series=bench.ids["teacher"], answered=bench.ids["teacher"], status=200, rows=1,
            epoch=1, wall_ns=wall_ns, mono_ns=bench.clock.monotonic_ns(),
        )  # fmt: skip
        bench.watch.step()
    bench.clock.advance(1)
    chart = bench.watch.series("m", 2)
    assert chart is not None
    assert chart["variants"]["teacher"]["rps"] == [0, 1]


def test_golden_rows_are_not_charted(tmp_path: Path) -> None:
    """They are pinned; nor is a prediction's traffic made of them."""
    bench = Bench(tmp_path)
    for reason in (Reason.PINNED, Reason.OVERRIDE, Reason.BASELINE):
        bench.spool.record(
            Kind.REQUEST, 0, reason, series=bench.ids["teacher"], answered=bench.ids["teacher"], status=200, rows=1,
            epoch=1, wall_ns=bench.clock.wall_ns(), mono_ns=bench.clock.monotonic_ns(),
        )  # fmt: skip
    bench.watch.step()
    bench.clock.advance(1)
    chart = bench.watch.series("m", 2)
    assert chart is not None
    assert chart["variants"]["teacher"]["rps"] == [0, 1]


def test_only_pairs_with_the_teacher_are_charted(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for answered in ("teacher", "nan"):
        bench.spool.record(
            Kind.SHADOW, Flag.LIVE, series=bench.ids["nan"], answered=bench.ids[answered], status=200, rows=1, epoch=1,
            flips=int(answered == "nan"), wall_ns=bench.clock.wall_ns(), mono_ns=bench.clock.monotonic_ns(),
        )  # fmt: skip
    bench.watch.step()
    bench.clock.advance(1)
    chart = bench.watch.series("m", 2)
    assert chart is not None
    assert [value for value in chart["variants"]["nan"]["agreement"] if value is not None] == [1.0]
