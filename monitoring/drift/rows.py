"""Reading sampled rows and the reference, and making finished files smaller. For the report process alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow
import pyarrow.parquet

from monitoring.payloads import FINISHED_MS, LINES, PARQUET, segments

#: Rows of a window that are compared; of more, the latest.
ROWS_MAX = 50_000
#: Fields of a row that are no features.
FIELDS = ("at_ms", "variant", "artifact_version")

Columns = dict[str, Any]  # feature -> float64 [n], or words as objects [n]


class Reference(msgspec.Struct, frozen=True):
    """The features of rows that the model was not trained on, as a build leaves them."""

    schema: str
    split: str
    rows: int
    columns: dict[str, list[float | str]]


def read_reference(path: Path) -> Reference:
    """Raises `OSError`, or `ValueError` naming the file."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Reference)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no reference: {error}") from error
    if any(len(values) != found.rows for values in found.columns.values()):
        raise ValueError(f"{path}: its columns have not all {found.rows} rows")
    return found


def arrays(columns: Mapping[str, list[float | str]]) -> Columns:
    """Lists as arrays: of numbers if all are numbers, else of words."""
    found: Columns = {}
    for name, values in columns.items():
        if all(isinstance(value, int | float) for value in values):
            found[name] = np.array(values, np.float64)
        else:
            found[name] = np.array([str(value) for value in values], dtype=object)
    return found


def read_rows(folder: Path, variant: str, version: int, since_ms: int, until_ms: int) -> Columns:
    """The rows that one artifact of a variant answered in a window, as columns.

    A row that lacks a feature of the others is left out; one without a version is of an earlier release, and of
    whichever artifact was in use then.
    """
    rows: list[dict[str, Any]] = []
    for segment in reversed(segments(folder)):
        if segment.start_ms < since_ms - FINISHED_MS or len(rows) >= ROWS_MAX:
            break
        rows += [
            row
            for row in _rows_of(segment.path)
            if (row.get("variant"), row.get("artifact_version")) == (variant, version)
            and since_ms <= row["at_ms"] <= until_ms
        ]
    rows = sorted(rows, key=lambda row: int(row["at_ms"]))[-ROWS_MAX:]
    names = [name for name in (rows[-1] if rows else {}) if name not in FIELDS]
    whole = [row for row in rows if all(row.get(name) is not None for name in names)]
    return arrays({name: [row[name] for row in whole] for name in names})


def _rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file. A line in the making, or damaged, is left out; so is a file that has just been removed."""
    if path.suffix == PARQUET:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                yield from file.read().to_pylist()
        except (OSError, pyarrow.ArrowException):
            return
        return
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            row = msgspec.json.decode(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("at_ms"), int):
            yield row


def compact(folder: Path, now_ms: int) -> int:
    """Replace finished files of lines by Parquet with the same rows; returns how many. Raises `OSError`."""
    made = 0
    for segment in segments(folder):
        if segment.path.suffix != LINES or not segment.finished(now_ms):
            continue
        rows = list(_rows_of(segment.path))
        if rows:
            _write(segment.path.with_suffix(PARQUET), rows)
        segment.path.unlink(missing_ok=True)
        made += 1
    for leftover in folder.glob(f"*{PARQUET}"):  # of a process that ended between the two
        leftover.with_suffix(LINES).unlink(missing_ok=True)
    return made


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    unfinished = path.with_name(f"{path.name}.new")
    table = pyarrow.Table.from_pylist(rows, schema=_schema(rows))
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        pyarrow.parquet.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)


def _schema(rows: list[dict[str, Any]]) -> Any:
    """Every name of any row; a column with a word anywhere is one of words."""
    kinds: dict[str, Any] = {}
    for row in rows:
        for name, value in row.items():
            kind = pyarrow.int64() if name == "at_ms" else pyarrow.float64()
            kinds[name] = pyarrow.string() if isinstance(value, str) else kinds.get(name, kind)
    return pyarrow.schema(list(kinds.items()))
