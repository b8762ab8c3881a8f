"""Reading what was recorded: every record once, in the order of the clock, whatever the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from recorded_kit import SECOND, Gateway

from monitoring import parquet
from monitoring.recorded import read
from monitoring.recording import merged
from serving.clock import FakeClock
from serving.contract import RECORD_DTYPE, RECORD_SIZE, RING_OFFSET, Kind

#: What a file of columns must give back as it was; names and checksums are made anew.
FIELDS = set(RECORD_DTYPE.names or ()) - {"crc", "series", "answered"}


def keys(*paths: Path, model: str = "m", **span: int) -> list[int]:
    return read(paths, model, **span).recording.records["request_key"].tolist()  # type: ignore[no-any-return]


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path, FakeClock())


def test_a_live_spool_is_read_and_left_as_it_is(tmp_path: Path, gateway: Gateway) -> None:
    for key in range(3):
        gateway.request("int8", request_key=key)
    gateway.request("teacher", request_key=3)
    before = gateway.path.read_bytes()
    found = read([tmp_path], "m")
    records, variants = found.recording.records, found.recording.variants
    assert records["request_key"].tolist() == [0, 1, 2, 3]
    assert [variants[at] for at in records["series"]] == ["int8", "int8", "int8", "teacher"]
    assert (found.files, found.lost, found.corrupt, found.unreadable) == (1, 0, 0, [])
    assert gateway.path.read_bytes() == before


def test_files_are_merged_by_the_clock(tmp_path: Path, gateway: Gateway) -> None:
    second = Gateway(tmp_path, gateway.clock, "g1")
    for key in range(10):
        (second if key in (0, 3, 4, 8) else gateway).request("int8", request_key=key)
        gateway.clock.advance(0.01)
    assert keys(tmp_path) == list(range(10))
    assert keys(second.path, gateway.path) == list(range(10))


def test_the_order_within_a_file_is_kept_although_its_clock_runs_back(gateway: Gateway) -> None:
    for key, mono_ns in enumerate((5 * SECOND, 3 * SECOND, 4 * SECOND, 6 * SECOND)):
        gateway.request("int8", request_key=key, mono_ns=mono_ns)
    assert keys(gateway.path) == [0, 1, 2, 3]


def test_a_later_boot_comes_later_although_its_monotonic_clock_is_behind(tmp_path: Path) -> None:
    rebooted = Gateway(tmp_path, FakeClock(wall_ns=1_800_000_000 * SECOND, monotonic_ns=5 * SECOND), "g1")
    first = Gateway(tmp_path, FakeClock(wall_ns=1_700_000_000 * SECOND, monotonic_ns=900 * SECOND), "g0")
    rebooted.request("int8", request_key=2)
    first.request("int8", request_key=1)
    assert keys(rebooted.path, first.path) == [1, 2]


def test_other_models_and_other_times_are_left_out(gateway: Gateway) -> None:
    begin = gateway.clock.wall_ns()
    for key in range(4):
        gateway.request("int8", request_key=key)
        gateway.write(Kind.REQUEST, "other", "other", request_key=100 + key)
        gateway.clock.advance(1)
    assert keys(gateway.path, since_ns=begin + SECOND, until_ns=begin + 3 * SECOND) == [1, 2]
    assert keys(gateway.path, model="other") == [100, 101, 102, 103]


def test_a_damaged_record_is_counted_and_left_out(gateway: Gateway) -> None:
    for key in range(5):
        gateway.request("int8", request_key=key)
    with gateway.path.open("r+b") as file:  # records count from 1: this is the third
        file.seek(RING_OFFSET + 3 * RECORD_SIZE + 40)
        file.write(b"\xff")
    found = read([gateway.path], "m")
    assert found.recording.records["request_key"].tolist() == [0, 1, 3, 4]
    assert (found.corrupt, found.lost) == (1, 0)


def test_a_damaged_newest_record_hides_no_other(gateway: Gateway) -> None:
    for key in range(5):
        gateway.request("int8", request_key=key)
    with gateway.path.open("r+b") as file:
        file.seek(RING_OFFSET + 5 * RECORD_SIZE)
        file.write(b"\xff" * 8)
    found = read([gateway.path], "m")
    assert found.recording.records["request_key"].tolist() == [0, 1, 2, 3]
    assert found.corrupt == 1


def test_what_a_ring_has_overwritten_is_counted(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, FakeClock(), capacity=8)
    for key in range(20):
        gateway.request("int8", request_key=key)
    found = read([gateway.path], "m")
    assert found.recording.records["request_key"].tolist() == list(range(12, 20))
    assert found.lost == 12


def test_files_that_are_no_spools_are_told_and_do_not_stop_the_others(tmp_path: Path, gateway: Gateway) -> None:
    gateway.request("int8", request_key=7)
    (tmp_path / "empty.spool").touch()
    (tmp_path / "noise.spool").write_bytes(b"x" * 10_000)
    found = read([tmp_path], "m")
    assert found.recording.records["request_key"].tolist() == [7]
    assert found.files == 1
    assert [Path(reason.partition(":")[0]).name for reason in found.unreadable] == ["empty.spool", "noise.spool"]


def test_nothing_to_read_is_an_error_that_says_what_there_is(tmp_path: Path, gateway: Gateway) -> None:
    with pytest.raises(ValueError, match="no records of the model 'm': there are no records at all"):
        read([gateway.path], "m")
    gateway.request("int8")
    with pytest.raises(ValueError, match="no records of the model 'nope': there are records of m, other"):
        read([tmp_path], "nope")
    with pytest.raises(ValueError, match="none is from the time asked for"):
        read([tmp_path], "m", until_ns=1)
    empty = tmp_path / "empty.spool"
    empty.touch()
    with pytest.raises(ValueError, match=r"(?s)no records at all.*empty\.spool: not a spool"):
        read([empty], "m")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"holds no \*\.spool and no \*\.parquet"):
        read([tmp_path / "folder"], "m")


# ---------------------------------------------------------------- columns and Parquet


def some_of_all(tmp_path: Path) -> Gateway:
    gateway = Gateway(tmp_path, FakeClock())
    gateway.request("teacher")
    gateway.invalid(trace_hi=2**64 - 1)
    gateway.pair(flip=True, kind=Kind.SHADOW, inclusion=0.25, slices=3, overlap=7)
    gateway.write(Kind.LABEL, "int8", "int8", cls=-1, status=202)
    return gateway


def test_columns_hold_all_there_is(tmp_path: Path) -> None:
    recording = read([some_of_all(tmp_path).path], "m").recording
    columns = parquet.to_columns(recording)
    assert columns["variant"] == ["teacher", "int8", "int8", "int8"]
    assert columns["answered_by"] == ["teacher", "teacher", "teacher", "int8"]
    again = merged([parquet.from_columns(columns)], "m")
    for name in FIELDS:
        assert again.records[name].tolist() == recording.records[name].tolist()
    assert parquet.to_columns(again)["variant"] == columns["variant"]
    assert parquet.to_columns(again)["answered_by"] == columns["answered_by"]


def test_a_record_that_several_files_hold_counts_once(tmp_path: Path) -> None:
    gateway = some_of_all(tmp_path)
    early = parquet.from_columns(parquet.to_columns(read([gateway.path], "m").recording))
    gateway.request("int8", request_key=99)
    late = read([gateway.path], "m").recording
    both = merged([early, late], "m")
    assert both.records["request_key"].tolist() == [1, 2, 3, 4, 99]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda columns: columns.pop("flips"), "lacks the columns flips"),
        (lambda columns: columns.update(status=np.array([200, 200, 200, -1])), "column 'status' holds values that"),
        (lambda columns: columns.update(epoch=np.array([1, 1, 1, 1.5])), "column 'epoch' holds values that"),
        (lambda columns: columns.update(cls=np.array(["a", "b", "c", "d"])), "column 'cls' holds <U1, expected num"),
    ],
    ids=["missing", "negative", "fraction", "text"],
)
def test_columns_that_do_not_fit_are_refused_by_name(tmp_path: Path, change: object, told: str) -> None:
    columns = parquet.to_columns(read([some_of_all(tmp_path).path], "m").recording)
    change(columns)  # type: ignore[operator]
    with pytest.raises(ValueError, match=told):
        parquet.from_columns(columns)


def test_a_parquet_file_gives_back_what_was_written(tmp_path: Path) -> None:
    recording = read([some_of_all(tmp_path).path], "m").recording
    path = tmp_path / "events.parquet"
    parquet.write(path, recording)
    again = read([path], "m").recording
    for name in FIELDS:
        assert again.records[name].tolist() == recording.records[name].tolist()
    assert parquet.to_columns(again)["answered_by"] == parquet.to_columns(recording)["answered_by"]
    assert read([path, tmp_path], "m").recording.records["seq"].tolist() == [1, 2, 3, 4]
    with pytest.raises(FileExistsError):
        parquet.write(path, recording)
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".parquet", ".spool"]


def test_an_older_export_without_slices_and_overlap_is_read_as_if_nothing_were_known(tmp_path: Path) -> None:
    from pyarrow.parquet import read_table, write_table

    recording = read([some_of_all(tmp_path).path], "m").recording
    new, old = tmp_path / "new.parquet", tmp_path / "old.parquet"
    parquet.write(new, recording)
    write_table(read_table(new).drop_columns(["slices", "overlap"]), old)
    again = read([old], "m").recording
    assert again.records["slices"].tolist() == again.records["overlap"].tolist() == [0, 0, 0, 0]
    for name in FIELDS - {"slices", "overlap"}:
        assert again.records[name].tolist() == recording.records[name].tolist()


def test_a_broken_parquet_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError, match=r"events\.parquet"):
        read([path], "m")


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    path = tmp_path / "events.parquet"
    path.touch()
    with pytest.raises(parquet.MissingError, match=r"pip install 'canarium\[parquet\]'"):
        read([path], "m")
