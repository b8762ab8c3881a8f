"""Reading spools: nothing twice, nothing lost uncounted, and no file that can stop it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.ingest import Flow, Ingest, IngestState
from serving.clock import FakeClock, boot_id
from serving.contract import (
    AGG_OFFSET,
    C_DURATION_NS,
    C_QUEUE_ROWS,
    CELLS,
    H_BEAT_MONO_NS,
    H_BOOT,
    H_MAGIC,
    H_PID,
    H_START_MONO_NS,
    H_START_WALL_NS,
    H_WRITTEN,
    META_OFFSET,
    RECORD_SIZE,
    RING_OFFSET,
)
from serving.gateway.spool import SpoolWriter

CAPACITY = 32
NOBODY = 2**22 + 7  # over any pid_max


class Node:
    """A spool directory with writers and a reader that can be restarted from its last commit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.reader = Ingest(folder, self.clock)
        self.committed = b""
        self.keys: list[int] = []

    def writer(self, name: str = "g0", capacity: int = CAPACITY) -> SpoolWriter:
        spool = SpoolWriter.create(self.folder, name, self.clock, capacity)
        spool.set_model("m", [1.0, 5.0], [])
        spool.series_id("m", "a")
        spool.series_id("m", "b")
        return spool

    def read(self, limit: int = 1000) -> list[int]:
        self.reader.scan()
        new = [key for chunk in self.reader.poll(limit) for key in chunk.records["request_key"].tolist()]
        self.keys += new
        flow = self.reader.flow()
        assert flow.written == flow.consumed + flow.dropped + flow.pending
        return new

    def commit(self) -> None:
        folded = self.reader.folded_files
        self.committed = msgspec.msgpack.encode(self.reader.state())
        self.reader.remove_folded(folded)

    def restart(self) -> None:
        self.reader.close()
        state = msgspec.msgpack.decode(self.committed, type=IngestState) if self.committed else None
        self.reader = Ingest(self.folder, self.clock, state)
        self.reader.remove_folded(self.reader.folded_files)

    def close(self) -> None:
        self.reader.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with closing(Node(tmp_path)) as node:
        yield node


def poke(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def poke_cell(path: Path, cell: int, value: int) -> None:
    poke(path, cell * 8, value.to_bytes(8, "little"))


def slot(seq: int, capacity: int = CAPACITY) -> int:
    return RING_OFFSET + (seq % capacity) * RECORD_SIZE


def write(spool: SpoolWriter, *keys: int) -> None:
    for key in keys:
        spool.record(0, request_key=key)


def test_every_record_is_read_once_in_order(node: Node) -> None:
    spool = node.writer()
    for start in range(0, 100, 20):
        write(spool, *range(start, start + 20))
        assert node.read() == list(range(start, start + 20))
        assert node.read() == []
    assert node.reader.flow() == Flow(100, 100, 0, 0, 0)


def test_a_bounded_read_leaves_the_rest_pending(node: Node) -> None:
    write(node.writer(), *range(30))
    assert node.read(limit=12) == list(range(12))
    assert node.reader.flow().pending == 18
    assert node.read(limit=12) + node.read(limit=12) == list(range(12, 30))


def test_what_was_overwritten_is_counted_as_lost(node: Node) -> None:
    spool = node.writer()
    write(spool, *range(100))
    assert node.read() == list(range(68, 100))
    assert node.reader.flow() == Flow(100, 32, 68, 0, 0)


def test_several_files_add_up(node: Node) -> None:
    first, second = node.writer("g0"), node.writer("g1")
    write(first, 1, 2)
    write(second, 3)
    assert sorted(node.read()) == [1, 2, 3]
    assert node.reader.gateways == ["g0", "g1"]
    for spool in (first, second):
        spool.add(1, 0, 5)
    assert node.reader.totals()["m", "b"].cells[0] == 10


@given(st.data())
@settings(max_examples=60)
def test_the_invariant_holds_whatever_happens(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    with closing(Node(tmp_path_factory.mktemp("node"))) as node:
        _anything(node, data)


def _anything(node: Node, data: Any) -> None:
    spools = [node.writer(f"g{n}") for n in range(2)]
    written = finished = 0
    for _ in range(data.draw(st.integers(1, 12))):
        act = data.draw(st.sampled_from(["write", "read", "flip", "commit", "crash", "truncate", "finish"]))
        spool = data.draw(st.sampled_from(spools))
        if act == "write":
            count = data.draw(st.integers(1, 80))
            write(spool, *range(written, written + count))
            written += count
        elif act == "read":
            node.read(data.draw(st.integers(1, 50)))
        elif act == "flip":
            if spool.path.exists():
                poke(spool.path, RING_OFFSET + data.draw(st.integers(0, CAPACITY * RECORD_SIZE - 1)), b"\xa5")
        elif act == "truncate" and spool.path.exists():  # and back: a writer's store into a truncated file is SIGBUS
            node.read(1)  # the reader has met the file
            size = spool.path.stat().st_size
            # of an empty ring nobody could tell how much was in it
            kept = data.draw(st.integers(CAPACITY // 2, CAPACITY))
            os.truncate(spool.path, RING_OFFSET + kept * RECORD_SIZE)
            node.read()
            os.truncate(spool.path, size)
        elif act == "finish":
            spool.close()
            spools[spools.index(spool)] = node.writer()
            finished += spool.written
            node.reader.settle()
        elif act == "commit":
            node.commit()
        elif act == "crash":
            node.restart()
    for _ in range(8):
        node.read()
    flow = node.reader.flow()
    assert flow.written == finished + sum(spool.written for spool in spools) == written
    assert flow.pending == 0


class TestDamage:
    def test_a_flipped_bit_costs_one_record(self, node: Node) -> None:
        spool = node.writer()
        write(spool, *range(1, 11))
        poke(spool.path, slot(4) + 60, b"\xff")
        assert node.read() == [1, 2, 3, 5, 6, 7, 8, 9, 10]
        assert node.reader.flow() == Flow(10, 9, 0, 1, 0)

    @pytest.mark.parametrize("lie", [0, 3, 11, 200, 2**40, 2**64 - 1])
    def test_a_damaged_count_is_not_believed_and_heals(self, node: Node, lie: int) -> None:
        spool = node.writer()
        write(spool, *range(1, 11))
        node.read()
        poke_cell(spool.path, H_WRITTEN, lie)
        node.read()
        assert node.reader.header_errors == 1
        write(spool, 11)
        assert node.read() == [11]
        assert node.reader.flow() == Flow(11, 11, 0, 0, 0)

    def test_a_newest_record_without_its_number_is_waited_for_only_so_long(self, node: Node) -> None:
        spool = node.writer()
        write(spool, 1, 2)
        poke(spool.path, slot(2), b"\0" * 8)
        assert [node.read() for _ in range(3)] == [[], [], [1]]
        assert node.reader.flow() == Flow(2, 1, 0, 1, 0)

    def test_a_newest_record_without_its_number_hides_no_more_than_a_ring_either(self, node: Node) -> None:
        """The writer died, and what it wrote last is damaged: the other records tell that its count is right."""
        spool = node.writer()
        write(spool, *range(1, 101))
        poke(spool.path, slot(100), b"\0" * 8)
        spool.close()
        for _ in range(3):
            node.read()
            node.reader.settle()
        assert node.reader.flow() == Flow(100, 31, 68, 1, 0)

    def test_a_truncated_file_is_survived(self, node: Node) -> None:
        spool = node.writer(capacity=1024)
        write(spool, *range(1, 1001))
        node.read(limit=10)
        os.truncate(spool.path, RING_OFFSET + 501 * RECORD_SIZE)
        node.read(5000)
        assert node.reader.flow() == Flow(1000, 500, 0, 500, 0)
        os.truncate(spool.path, 0)
        node.read()
        assert node.reader.header_errors == 1
        assert node.reader.totals()["m", "a"].cells[0] == 0

    def test_garbage_is_left_alone_and_counted_once(self, node: Node) -> None:
        (node.folder / "garbage.spool").write_bytes(os.urandom(200_000))
        (node.folder / "short.spool").write_bytes(b"CNSPOOL1")
        spool = node.writer()
        poke_cell(spool.path, H_MAGIC, 1)
        for _ in range(3):
            assert node.read() == []
        assert node.reader.bad_files == 3
        assert (node.folder / "garbage.spool").exists()

    def test_a_damaged_dictionary_keeps_the_names_known_before(self, node: Node) -> None:
        spool = node.writer()
        write(spool, 1)
        node.read()
        poke(spool.path, META_OFFSET, b"\0" * 40)
        write(spool, 2)
        assert node.read() == [2]
        assert ("m", "a") in node.reader.totals()

    def test_a_counter_that_jumps_or_falls_is_not_believed(self, node: Node) -> None:
        spool = node.writer()
        spool.add(0, 0, 7)
        node.read()
        node.reader.totals()
        for value in (3, 2**60):
            poke_cell(spool.path, AGG_OFFSET // 8, value)
            assert node.reader.totals()["m", "a"].cells[0] == 7
        poke_cell(spool.path, AGG_OFFSET // 8, 9)
        assert node.reader.totals()["m", "a"].cells[0] == 9

    def test_a_missing_directory_is_an_empty_one(self, tmp_path: Path) -> None:
        node = Node(tmp_path / "absent")
        assert node.read() == []


class TestFinishedFiles:
    def finish(self, node: Node) -> bool:
        node.read()
        return node.reader.settle()

    def test_a_closed_file_is_folded_then_removed_after_the_commit(self, node: Node) -> None:
        spool = node.writer()
        write(spool, 1, 2)
        spool.add(0, 0, 5)
        spool.set_gauge(0, C_QUEUE_ROWS, 3)
        spool.observe_latency(0, [1.0, 5.0], 2_000_000)
        spool.close()
        assert self.finish(node)
        assert spool.path.exists()
        node.commit()
        assert not spool.path.exists()
        totals = node.reader.totals()["m", "a"]
        assert totals.cells[0] == 5
        assert totals.cells[C_QUEUE_ROWS] == 0
        assert totals.latency == {1.0: 0, 5.0: 1, float("inf"): 0}
        assert node.reader.flow() == Flow(2, 2, 0, 0, 0)
        node.restart()
        assert node.reader.totals()["m", "a"].cells[0] == 5

    def test_records_are_drained_first(self, node: Node) -> None:
        spool = node.writer()
        write(spool, *range(20))
        spool.close()
        node.read(limit=5)
        assert not node.reader.settle()
        assert self.finish(node)
        assert node.keys == list(range(20))

    @pytest.mark.parametrize("after_commit", [False, True])
    def test_a_crash_around_the_removal_counts_nothing_twice(self, node: Node, after_commit: bool) -> None:
        spool = node.writer()
        write(spool, 1, 2, 3)
        spool.add(0, 0, 5)
        node.read()
        node.commit()
        spool.close()
        self.finish(node)
        if after_commit:
            node.committed = msgspec.msgpack.encode(node.reader.state())
        node.restart()
        self.finish(node)
        assert node.reader.flow() == Flow(3, 3, 0, 0, 0)
        assert node.reader.totals()["m", "a"].cells[0] == 5

    def test_a_silent_writer_is_dead_only_when_its_process_is(self, node: Node) -> None:
        spool = node.writer()
        node.clock.advance(60)
        poke_cell(spool.path, H_START_MONO_NS, time.monotonic_ns())  # started just now
        assert not self.finish(node)
        gone = node.writer("g1")
        poke_cell(gone.path, H_PID, NOBODY)
        assert not self.finish(node)
        node.clock.advance(60)
        assert self.finish(node)

    def test_a_reused_pid_does_not_keep_a_file_alive(self, node: Node) -> None:
        spool = node.writer()  # says that it started a second after the boot, long before its process
        assert not self.finish(node)
        node.clock.advance(60)
        assert self.finish(node)
        assert spool.written == 0

    def test_no_step_of_the_wall_clock_makes_a_live_writer_dead(self, node: Node) -> None:
        """Its start by the wall clock seems an hour before that of its process, whose time of boot moved along."""
        spool = node.writer()
        poke_cell(spool.path, H_START_MONO_NS, time.monotonic_ns())
        poke_cell(spool.path, H_START_WALL_NS, time.time_ns() - 3600 * 10**9)
        node.clock.advance(60)
        assert not self.finish(node)

    def test_a_writer_of_an_earlier_boot_is_dead_though_its_pid_runs(self, node: Node) -> None:
        spool = node.writer()
        poke_cell(spool.path, H_START_MONO_NS, time.monotonic_ns())
        assert not self.finish(node)
        earlier = node.writer("g1")
        poke_cell(earlier.path, H_BOOT, boot_id() ^ 1)
        assert self.finish(node)
        assert node.reader.folded_files == [earlier.path.stem]

    def test_a_beat_from_the_future_is_from_before_a_reboot(self, node: Node) -> None:
        spool = node.writer()
        poke_cell(spool.path, H_BEAT_MONO_NS, node.clock.monotonic_ns() + 10**15)
        assert self.finish(node)

    def test_bucket_bounds_may_differ_between_files(self, node: Node) -> None:
        old = node.writer("g0")
        old.observe_latency(0, [1.0, 5.0], 4_000_000)
        old.close()
        self.finish(node)
        new = SpoolWriter.create(node.folder, "g1", node.clock, CAPACITY)
        new.set_model("m", [2.0, 5.0], [])
        new.series_id("m", "a")
        new.observe_latency(0, [2.0, 5.0], 1_000_000)
        node.read()
        assert node.reader.totals()["m", "a"].latency == {1.0: 0, 5.0: 1, float("inf"): 0, 2.0: 1}


def test_a_crash_replays_exactly_what_was_not_committed(node: Node) -> None:
    spool = node.writer(capacity=256)
    write(spool, *range(50))
    node.read()
    node.commit()
    write(spool, *range(50, 80))
    assert node.read() == list(range(50, 80))
    node.restart()
    assert node.read() == list(range(50, 80))
    assert node.reader.flow() == Flow(80, 80, 0, 0, 0)


class TestAfterALossOfPower:
    """The commit is on the disk; what gateways wrote since their pages were last written back may not be."""

    def committed(self, node: Node) -> SpoolWriter:
        spool = node.writer()
        spool.add(0, 0, 5)
        spool.add(1, C_DURATION_NS, 1000)
        spool.observe_latency(0, [1.0, 5.0], 2_000_000)
        write(spool, 1, 2, 3)
        node.read(limit=2)
        node.reader.totals()
        node.commit()
        return spool

    def seen(self, node: Node) -> tuple[int, int, int]:
        totals = node.reader.totals()
        return (
            int(totals["m", "a"].cells[0]), int(totals["m", "b"].cells[C_DURATION_NS]), totals["m", "a"].latency[5.0],
        )  # fmt: skip

    def test_an_older_file_takes_no_counter_back(self, node: Node) -> None:
        spool = self.committed(node)
        young = node.writer("g1").path.read_bytes()
        spool.path.write_bytes(young[:META_OFFSET] + bytes(len(young) - META_OFFSET))  # no name, counter or record
        node.restart()
        node.read()
        assert self.seen(node) == (5, 1000, 1)
        node.clock.advance(60)
        node.read()
        assert node.reader.settle()
        node.commit()
        node.restart()
        assert self.seen(node) == (5, 1000, 1)
        assert node.reader.flow() == Flow(3, 2, 0, 1, 0)

    @pytest.mark.parametrize("gone", [False, True])
    def test_nor_does_one_without_its_header_or_its_name(self, node: Node, gone: bool) -> None:
        spool = self.committed(node)
        poke_cell(spool.path, H_MAGIC, 0)
        if gone:
            spool.path.unlink()
        for _ in range(2):
            node.restart()
            node.read()
            assert self.seen(node) == (5, 1000, 1)
            node.commit()
        node.clock.advance(60)
        assert node.reader.settle()
        assert self.seen(node) == (5, 1000, 1)
        node.commit()
        assert not spool.path.exists()
        node.restart()
        assert self.seen(node) == (5, 1000, 1)
        assert node.reader.flow() == Flow(3, 2, 1, 0, 0)

    def test_one_that_comes_back_whole_counts_once(self, node: Node) -> None:
        spool = self.committed(node)
        whole = spool.path.read_bytes()
        poke_cell(spool.path, H_MAGIC, 0)
        node.restart()
        node.read()
        spool.path.write_bytes(whole)
        poke_cell(spool.path, AGG_OFFSET // 8, 7)
        assert node.read() == [3]
        assert self.seen(node) == (7, 1000, 1)
        assert node.reader.flow() == Flow(3, 3, 0, 0, 0)


def test_a_monitor_that_starts_late_believes_sums_of_nanoseconds(node: Node) -> None:
    """312 hours of requests, one after the other or a thousand at once: more than any counter of events will hold."""
    spool = node.writer()
    spool.add(0, C_DURATION_NS, 1 << 51)
    node.read()
    assert node.reader.totals()["m", "a"].cells[C_DURATION_NS] == 1 << 51


def test_totals_are_u64(node: Node) -> None:
    spool = node.writer()
    for _ in range(3):
        spool.add(0, 38, 2**49)
        node.read()
        node.reader.totals()
    total = node.reader.totals()["m", "a"].cells
    assert total.dtype == np.uint64
    assert total.shape == (CELLS,)
    assert int(total[38]) == 3 * 2**49
