"""The spool's writing end, read back with nothing but the layout in `serving.contract`."""

from __future__ import annotations

import errno
import os
import stat
import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.clock import FakeClock
from serving.contract import (
    AGG_OFFSET,
    C_BATCH_ROWS,
    C_BATCH_SIZE,
    C_BATCHES,
    C_LATENCY,
    C_QUEUE_ROWS,
    C_STATUS,
    CELLS,
    H_BEAT_MONO_NS,
    H_CAPACITY,
    H_CLOSED,
    H_MAGIC,
    H_META_CRC,
    H_META_GENERATION,
    H_META_LENGTH,
    H_PID,
    H_WRITTEN,
    META_OFFSET,
    RECORD_DTYPE,
    RING_OFFSET,
    SERIES_MAX,
    SPOOL_MAGIC,
    SpoolMeta,
    record_crc,
    spool_bytes,
)
from serving.gateway.spool import SpoolWriter, latency_buckets_ms

CAPACITY = 16


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def spool(tmp_path: Path, clock: FakeClock) -> SpoolWriter:
    return SpoolWriter.create(tmp_path / "spool", "g0", clock, CAPACITY)


def header(spool: SpoolWriter) -> np.ndarray:
    return np.fromfile(spool.path, dtype="<u8", count=16)


def meta(spool: SpoolWriter) -> SpoolMeta:
    cells = header(spool)
    payload = spool.path.read_bytes()[META_OFFSET : META_OFFSET + int(cells[H_META_LENGTH])]
    assert zlib.crc32(payload) == cells[H_META_CRC]
    assert cells[H_META_GENERATION] % 2 == 0
    return msgspec.json.decode(payload, type=SpoolMeta)


def ring(spool: SpoolWriter) -> np.ndarray:
    return np.fromfile(spool.path, dtype=RECORD_DTYPE, count=CAPACITY, offset=RING_OFFSET)


def cells(spool: SpoolWriter, series: int) -> np.ndarray:
    return np.fromfile(spool.path, dtype="<u8", count=CELLS, offset=AGG_OFFSET + series * CELLS * 8)


def test_a_new_file_is_whole_private_and_named_by_its_nonce(spool: SpoolWriter, clock: FakeClock) -> None:
    status = spool.path.stat()
    assert status.st_size == spool_bytes(CAPACITY)
    assert status.st_blocks * 512 >= status.st_size  # allocated: a store can never find the disk full
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert [path.name for path in spool.path.parent.iterdir()] == [spool.path.name]
    first = header(spool)
    assert (first[H_MAGIC], first[H_CAPACITY], first[H_PID]) == (SPOOL_MAGIC, CAPACITY, os.getpid())
    assert meta(spool).nonce == spool.path.stem


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, clock: FakeClock, monkeypatch: Any) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"cannot allocate \d+ bytes for the spool") as failure:
        SpoolWriter.create(tmp_path, "g0", clock, CAPACITY)
    assert failure.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_records_carry_their_sequence_and_checksum(spool: SpoolWriter) -> None:
    for n in range(1, 4):
        spool.record(0, flags=3, request_key=n, total_us=100 * n, cls=1, prob=0.75, inclusion=0.5)
    assert header(spool)[H_WRITTEN] == spool.written == 3
    for n, record in enumerate(ring(spool)[1:4], start=1):
        assert (record["seq"], record["request_key"], record["total_us"]) == (n, n, 100 * n)
        assert record["prob"] == 0.75
        assert record["crc"] == record_crc(record.tobytes())


def test_the_oldest_record_makes_room(spool: SpoolWriter) -> None:
    for n in range(1, CAPACITY * 3 + 6):
        spool.record(0, request_key=n)
    seqs = sorted(ring(spool)["seq"].tolist())
    assert seqs == list(range(CAPACITY * 2 + 6, CAPACITY * 3 + 6))


anything = st.one_of(
    st.integers(), st.floats(allow_nan=True, allow_infinity=True), st.none(), st.text(max_size=2), st.booleans()
)


@given(
    st.fixed_dictionaries(
        dict.fromkeys(("flags", "request_key", "rows", "epoch", "total_us", "cls", "prob", "energy", "extra"), anything)
    )
)
def test_no_value_raises_and_every_record_is_intact(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    spool = SpoolWriter.create(tmp_path_factory.getbasetemp() / "hypothesis", "g", FakeClock(), CAPACITY)
    spool.record(1, **values)
    record = ring(spool)[1]
    assert record["seq"] == 1
    assert record["crc"] == record_crc(record.tobytes())
    spool.path.unlink()


def test_values_are_clipped_to_their_fields(spool: SpoolWriter) -> None:
    spool.record(
        0, rows=1 << 20, total_us=-5, cls=70_000, flips=-1, prob=1e300, request_key=1 << 80, epoch=float("inf")
    )
    record = ring(spool)[1]
    assert record["rows"] == 65_535
    assert record["total_us"] == record["flips"] == 0
    assert record["cls"] == 32_767
    assert record["request_key"] == (1 << 64) - 1
    assert record["epoch"] == (1 << 32) - 1
    assert np.isfinite(record["prob"])


def test_series_are_a_bounded_dictionary(spool: SpoolWriter) -> None:
    spool.set_model("m", [1.0, 5.0], ["ham", "spam"])
    ids = [spool.series_id("m", f"v{n}") for n in range(SERIES_MAX)]
    assert ids == list(range(SERIES_MAX))
    assert spool.series_id("m", "v7") == 7
    with pytest.raises(ValueError, match=f"holds {SERIES_MAX} variants"):
        spool.series_id("m", "one-more")
    described = meta(spool)
    assert described.series[7] == ("m", "v7")
    assert described.latency_buckets_ms == {"m": [1.0, 5.0]}
    assert described.labels == {"m": ["ham", "spam"]}


def test_latency_buckets_cannot_change_under_their_counts(spool: SpoolWriter) -> None:
    spool.set_model("m", [1.0, 5.0], [])
    spool.series_id("m", "v")
    spool.set_model("m", [1.0, 5.0], ["ham"])
    with pytest.raises(ValueError, match="in use"):
        spool.set_model("m", [1.0, 6.0], [])
    for bounds in ([], [2.0, 1.0], [1.0, 1.0], [float(n) for n in range(32)]):
        with pytest.raises(ValueError, match="must ascend and number"):
            spool.set_model("other", bounds, [])


def test_counters_add_up_in_their_cells(spool: SpoolWriter) -> None:
    bounds = [1.0, 5.0]
    spool.set_model("m", bounds, [])
    first, second = spool.series_id("m", "a"), spool.series_id("m", "b")
    for milliseconds in (0.5, 1.0, 1.1, 5.0, 7.0):
        spool.observe_latency(second, bounds, int(milliseconds * 1e6))
    for status in (200, 200, 503, 418):
        spool.observe_status(second, status)
    for rows in (1, 3, 64, 65):
        spool.observe_batch(second, rows)
    spool.set_gauge(second, C_QUEUE_ROWS, 9)
    spool.set_gauge(second, C_QUEUE_ROWS, 4)
    found = cells(spool, second)
    assert found[C_LATENCY : C_LATENCY + 3].tolist() == [2, 2, 1]
    assert found[C_STATUS : C_STATUS + 12].tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1]
    assert (found[C_BATCHES], found[C_BATCH_ROWS]) == (4, 133)
    assert found[C_BATCH_SIZE : C_BATCH_SIZE + 8].tolist() == [1, 0, 1, 0, 0, 0, 1, 1]
    assert found[C_QUEUE_ROWS] == 4
    assert not cells(spool, first).any()


def test_life_and_end_are_in_the_header(spool: SpoolWriter, clock: FakeClock) -> None:
    clock.advance(3)
    spool.beat()
    assert header(spool)[H_BEAT_MONO_NS] == clock.monotonic_ns()
    assert header(spool)[H_CLOSED] == 0
    spool.close()
    assert header(spool)[H_CLOSED] == 1
    spool.record(0)  # a late answer must not fail over its record


def test_every_slo_threshold_is_a_bucket() -> None:
    bounds = latency_buckets_ms([120.0, 33.0])
    assert {120.0, 33.0, 100.0} <= set(bounds)
    assert list(bounds) == sorted(set(bounds))
    many = latency_buckets_ms([1000.5 + n for n in range(30)])
    assert len(many) == 31
    with pytest.raises(ValueError, match="at most 31"):
        latency_buckets_ms(range(1, 40))
