"""Sampled rows: what a gateway writes, what it gives up, what is removed, what is read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from monitoring.drift.rows import compact, read_rows
from monitoring.payloads import FINISHED_MS, prune, segments
from serving.clock import FakeClock, SystemClock
from serving.config_monitoring import PayloadsConfig
from serving.contract import AGG_OFFSET, C_PAYLOADS, C_PAYLOADS_DROPPED, CELLS, VariantEntry
from serving.gateway import payloads
from serving.gateway.dataplane import DataPlane
from serving.gateway.payloads import PayloadLog
from tests.support.gateway import InProcessGateway

HOUR_MS = 3_600_000


def sampling(gateway: InProcessGateway, folder: Path, percent: float = 100) -> PayloadLog:
    """The gateway with a sample taken of its requests."""
    settings = {"tiny": PayloadsConfig(percent=percent)}
    log = PayloadLog(folder, "gateway-1", settings, gateway.recorder, SystemClock())
    gateway.plane = DataPlane(gateway.config, gateway.live, gateway.recorder, gateway.clock, gateway._make, log)
    return log


def cell(gateway: InProcessGateway, index: int) -> int:
    series = gateway.recorder.series("tiny", "teacher")
    data = gateway.spool.path.read_bytes()
    return int(np.frombuffer(data, "<u8", 1, AGG_OFFSET + 8 * (series * CELLS + index))[0])


def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for path in sorted(folder.glob("tiny/*.jsonl")) for line in path.read_text().splitlines()]


async def test_live_requests_leave_features_and_no_text(tmp_path: Path) -> None:
    gateway = InProcessGateway(tmp_path, {"candidate": ""})
    log = sampling(gateway, tmp_path / "payloads")
    await gateway.publish()
    await gateway.ask("spam offer", "the second row is not sampled")
    await gateway.ask("pinned", version="2")
    await gateway.ask("asked of a variant", override="candidate")
    log.close()
    (row,) = rows(tmp_path / "payloads")
    assert (row["variant"], row["artifact_version"]) == ("teacher", 1)
    assert row["class"] == "spam"
    assert row["characters"] == 10
    assert row["unknown_share"] == 0.5
    assert abs(int(str(row["at_ms"])) * 1_000_000 - gateway.clock.wall_ns()) < 60e9
    assert "offer" not in json.dumps(row)
    (file,) = (tmp_path / "payloads" / "tiny").iterdir()
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert cell(gateway, C_PAYLOADS) == 1
    await gateway.plane.close()


async def test_nothing_is_kept_unless_asked_for(tmp_path: Path) -> None:
    gateway = InProcessGateway(tmp_path, {})
    log = sampling(gateway, tmp_path / "payloads", percent=0)
    await gateway.publish()
    await gateway.ask("spam")
    await gateway.plane.close()
    assert not (tmp_path / "payloads").exists()
    assert not log.wants("tiny", "r-1")


def test_about_the_share_that_was_asked_for_is_sampled(tmp_path: Path) -> None:
    gateway = InProcessGateway(tmp_path, {})
    log = sampling(gateway, tmp_path / "payloads", percent=20)
    assert 150 < sum(log.wants("tiny", f"r-{at}") for at in range(1000)) < 250
    log.close()


async def test_a_full_queue_drops_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "QUEUE_ROWS", 3)
    monkeypatch.setattr(payloads, "WAKE_S", 3600.0)
    gateway = InProcessGateway(tmp_path, {})
    log = sampling(gateway, tmp_path / "payloads")
    await gateway.publish()
    for _ in range(5):
        await gateway.ask("spam")
    log.close()
    assert len(rows(tmp_path / "payloads")) == 3
    assert (cell(gateway, C_PAYLOADS), cell(gateway, C_PAYLOADS_DROPPED)) == (3, 2)
    await gateway.plane.close()


async def test_what_cannot_be_written_is_counted_and_fails_no_request(tmp_path: Path) -> None:
    (tmp_path / "payloads").write_text("a file where the folder should be")
    gateway = InProcessGateway(tmp_path, {})
    sampling(gateway, tmp_path / "payloads")
    await gateway.publish()
    assert (await gateway.ask("spam")).variant == "teacher"
    await gateway.plane.close()
    assert cell(gateway, C_PAYLOADS_DROPPED) == 1


EVERY = PayloadsConfig(percent=100)


def offering(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: FakeClock,
    settings: PayloadsConfig = EVERY,
    gateway: str = "g",
    gateways: int = 1,
) -> tuple[PayloadLog, Callable[[], None]]:
    """A log that is drained by hand, and what hands it a row."""
    monkeypatch.setattr(payloads, "WAKE_S", 3600.0)
    monkeypatch.setattr(payloads, "_features", lambda row: {"text": row.text})
    log = PayloadLog(folder, gateway, {"tiny": settings}, Mock(), clock, gateways)
    pipeline = Mock(first_row=lambda inputs, session_inputs: ("some words", {}))
    entry = VariantEntry("teacher", 1, "tiny/teacher:1")
    return log, lambda: log.offer("tiny", entry, pipeline, {}, {}, Mock())


def test_rows_are_written_while_others_keep_coming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, offer = offering(tmp_path, monkeypatch, FakeClock())
    came = 0

    def features(row: object) -> dict[str, object]:
        nonlocal came
        came += 1
        if came < 1000:
            offer()  # as many come as are taken
        return {"at": came}

    monkeypatch.setattr(payloads, "_features", features)
    for _ in range(3):
        offer()
    log._drain()
    assert len(rows(tmp_path)) == came == 3
    log._drain()
    assert len(rows(tmp_path)) == came == 6
    came = 1000
    log.close()


def test_a_full_disk_is_not_filled_with_empty_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    log, offer = offering(tmp_path, monkeypatch, clock)
    real, tried = payloads._Segment.append, []

    def full(segment: payloads._Segment, data: bytes) -> None:
        tried.append(segment.path)
        raise OSError(28, "No space left on device")

    def drains(count: int, seconds: float) -> None:
        for _ in range(count):
            offer()
            log._drain()
            clock.advance(seconds)

    drains(1, 1.0)
    monkeypatch.setattr(payloads._Segment, "append", full)
    drains(3, payloads.REST_S + 1)
    assert len(tried) == 3
    assert len(list(tmp_path.glob("tiny/*"))) == len(rows(tmp_path)) == 1  # the one from before
    drains(20, 0.2)
    assert len(tried) == 4
    monkeypatch.setattr(payloads._Segment, "append", real)
    clock.advance(payloads.REST_S)
    drains(2, 1.0)
    assert len(rows(tmp_path)) == 3
    log.close()


def numbering(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Rows are numbered as they are drained, and take about `size` bytes each."""
    numbers = count()
    monkeypatch.setattr(payloads, "_features", lambda _: {"at": next(numbers), "pad": "x" * size})


def kept_rows(folder: Path) -> list[int]:
    return sorted(int(str(row["at"])) for row in rows(folder))


@pytest.mark.parametrize(("gateways", "drained"), [(1, 256), (1, 1024), (4, 256)])
def test_of_more_rows_than_are_kept_the_newest_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gateways: int, drained: int
) -> None:
    clock, settings = FakeClock(), PayloadsConfig(percent=100, keep_mib=1)
    logs = [offering(tmp_path, monkeypatch, clock, settings, f"g{at}", gateways) for at in range(gateways)]
    numbering(monkeypatch, size=1024)
    for begun in range(0, 3072, drained):  # 3 MiB
        log, offer = logs[begun // drained % gateways]
        for _ in range(drained):
            offer()
        log._drain()
        prune(tmp_path / "tiny", clock.wall_ns() // 1_000_000, 72 * HOUR_MS, 1 << 20)
        kept = kept_rows(tmp_path)
        assert kept == list(range(kept[0], begun + drained))
        clock.advance(1.0)
    assert 1 << 19 < sum(one.size for one in segments(tmp_path / "tiny")) <= 1 << 20
    for log, _ in logs:
        assert not log._unwritten
        log.close()


def test_rows_kept_for_less_than_an_hour_stay_for_most_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    log, offer = offering(tmp_path, monkeypatch, clock, PayloadsConfig(percent=100, keep_hours=0.5))
    numbering(monkeypatch, size=10)
    for minute in range(120):
        offer()
        log._drain()
        prune(tmp_path / "tiny", clock.wall_ns() // 1_000_000, HOUR_MS // 2, 64 << 20)
        kept = kept_rows(tmp_path)
        assert kept == list(range(kept[0], minute + 1))
        assert len(kept) >= min(minute + 1, 22)
        clock.advance(60.0)
    log.close()


def test_rows_go_to_a_new_file_when_theirs_has_been_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, offer = offering(tmp_path, monkeypatch, FakeClock())
    numbering(monkeypatch, size=10)
    for at in range(3):
        offer()
        log._drain()
        assert kept_rows(tmp_path) == [at]
        (file,) = tmp_path.glob("tiny/*")
        file.unlink()
    log.close()


# ---------------------------------------------------------------- files


def segment(folder: Path, start_ms: int, rows: int = 2, gateway: str = "g", variant: str = "teacher") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{start_ms:013d}-{gateway}.jsonl"
    whose = {"class": "ham", "variant": variant, "artifact_version": 1}
    lines = [json.dumps({"characters": float(at), "at_ms": start_ms + at, **whose}) for at in range(rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_what_is_too_old_or_too_much_is_removed(tmp_path: Path) -> None:
    for hour in range(6):
        segment(tmp_path, hour * HOUR_MS)
    (tmp_path / "notes.txt").write_text("not ours")
    size = segments(tmp_path)[-1].size
    assert prune(tmp_path, 6 * HOUR_MS, keep_ms=4 * HOUR_MS, keep_bytes=1 << 20) == 2
    assert prune(tmp_path, 6 * HOUR_MS, keep_ms=4 * HOUR_MS, keep_bytes=2 * size) == 2
    assert [one.start_ms for one in segments(tmp_path)] == [4 * HOUR_MS, 5 * HOUR_MS]
    assert (tmp_path / "notes.txt").exists()
    assert prune(tmp_path / "absent", 0, 1, 1) == 0


def test_finished_files_become_parquet_and_hold_the_same_rows(tmp_path: Path) -> None:
    now_ms = 10 * HOUR_MS
    segment(tmp_path, now_ms - FINISHED_MS - 1)
    open_one = segment(tmp_path, now_ms - 60_000)
    before = read_rows(tmp_path, "teacher", 1, 0, now_ms)
    assert compact(tmp_path, now_ms) == 1
    assert [one.path.suffix for one in segments(tmp_path)] == [".parquet", ".jsonl"]
    after = read_rows(tmp_path, "teacher", 1, 0, now_ms)
    assert {name: values.tolist() for name, values in after.items()} == {
        name: values.tolist() for name, values in before.items()
    }
    assert open_one.exists()
    assert compact(tmp_path, now_ms) == 0


def test_a_crash_between_the_two_files_counts_no_row_twice(tmp_path: Path) -> None:
    now_ms = 10 * HOUR_MS
    path = segment(tmp_path, now_ms - FINISHED_MS - 1)
    lines = path.read_bytes()
    compact(tmp_path, now_ms)
    path.write_bytes(lines)
    assert len(read_rows(tmp_path, "teacher", 1, 0, now_ms)["characters"]) == 2
    compact(tmp_path, now_ms)
    assert not path.exists()


def test_a_window_of_one_variant_is_read_and_damage_left_out(tmp_path: Path) -> None:
    path = segment(tmp_path, 1000, rows=5)
    segment(tmp_path, 1000, rows=5, gateway="h", variant="int8")
    path.write_text(path.read_text() + '{"at_ms": 1003, "variant": "teacher", "class"')
    found = read_rows(tmp_path, "teacher", 1, 1001, 1003)
    assert found["characters"].tolist() == [1.0, 2.0, 3.0]
    assert found["class"].tolist() == ["ham"] * 3
    assert read_rows(tmp_path, "nobody", 1, 0, 5000) == {}
