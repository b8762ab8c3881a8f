"""A data file that is damaged is refused by its name, wherever the damage is."""

from __future__ import annotations

import gzip
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.build.anomaly.data import check_table
from serving.build.cache import BuildError
from serving.build.imported.sound import check_clips
from serving.build.text.data import check_data

Check = Callable[[Path, dict[str, Path], dict[str, Any], Callable[..., None]], None]

PARAMETERS = {"labels": ["ham", "spam"], "columns": ["flow"], "window": 64, "context": 8}


def halved(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def overwritten(raw: bytes, at: int | None = None, by: bytes = b"\xff" * 16) -> bytes:
    at = len(raw) // 2 if at is None else at
    return raw[:at] + by + raw[at + len(by) :]


def texts(path: Path) -> None:
    word = random.Random(1)
    rows = [f'{{"text": "{word.random()}", "label": "ham", "split": "train"}}' for _ in range(200)]
    path.write_bytes(gzip.compress("\n".join(rows).encode(), mtime=0))


def table(path: Path) -> None:
    value = random.Random(1)
    rows = [
        "flow,label,split",
        *(f"{value.random()},ham,train" for _ in range(100)),
    ]  # few: what is unpacked before the damage would be read, and refused by line
    path.write_bytes(gzip.compress("\n".join(rows).encode(), mtime=0))


def sound(path: Path) -> None:
    random_ = np.random.default_rng(1)
    given = {f"{split}-sound": random_.integers(0, 99, (4, 4096)).astype(np.uint8) for split in ("calibration", "test")}
    np.savez_compressed(path, allow_pickle=False, **given)


def refused(tmp_path: Path, check: Check, path: Path) -> str:
    with pytest.raises(BuildError) as caught:
        check(tmp_path, {"file": path}, PARAMETERS, lambda *_: None)
    return str(caught.value)


@pytest.mark.parametrize("damage", [halved, overwritten])
@pytest.mark.parametrize(
    ("name", "write", "check"),
    [("rows.jsonl.gz", texts, check_data), ("rows.csv.gz", table, check_table), ("sound.npz", sound, check_clips)],
)
def test_cut_in_half_or_overwritten_in_the_middle(
    tmp_path: Path, name: str, write: Callable[[Path], None], check: Check, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / name
    write(path)
    path.write_bytes(damage(path.read_bytes()))
    assert refused(tmp_path, check, path).startswith(f"{path}: cannot be read: ")


@pytest.mark.parametrize(
    ("mark", "by"),
    [
        (b"{'descr", b"{{"),  # no dictionary: numpy asks Python's tokenizer, which finds no end
        (b"PK\x01\x02", b"PK\x01\x02\x14\x00\xff"),  # a version of the archive's format that there is none of
    ],
)
def test_headers_within_an_archive(tmp_path: Path, mark: bytes, by: bytes) -> None:
    path = tmp_path / "sound.npz"
    np.savez(path, allow_pickle=False, **{"test-sound": np.zeros((40, 40_960), np.uint8)})
    raw = path.read_bytes()
    path.write_bytes(overwritten(raw, raw.index(mark), by))
    assert refused(tmp_path, check_clips, path).startswith(f"{path}: cannot be read: ")


def test_an_archive_of_what_is_no_array(tmp_path: Path) -> None:
    path = tmp_path / "sound.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("test-sound.npy", b"\x93NUMPY\x01\x00")
    assert refused(tmp_path, check_clips, path).startswith(f"{path}: cannot be read: ")


def test_a_value_without_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(gzip.compress(b'flow,label,split\n"' + b"1" * 200_000))
    assert refused(tmp_path, check_table, path) == f"{path}: cannot be read: field larger than field limit (131072)"
