"""Recorded events as a Parquet file: a row a record, with its variants by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from monitoring.recording import NOBODY, Recording
from serving.contract import RECORD_DTYPE

SUFFIX = ".parquet"
#: Columns that hold names; the others are fields of `contract.RECORD_DTYPE` under their own names.
TEXTS = ("spool", "model", "variant", "answered_by")
_INTERNAL = ("crc", "series", "answered")
NUMBERS = tuple(name for name in RECORD_DTYPE.names or () if name not in _INTERNAL)
#: Columns that older exports lack; zeros say of both that nothing is known.
_LATER = ("overlap", "slices")
_MAGIC = b"PAR1"

Columns = dict[str, Any]  # a list of texts or an array of numbers each


class MissingError(ValueError):
    """The library for Parquet is not installed."""


def is_parquet(path: Path) -> bool:
    """Whether a file is Parquet by its name or its first bytes. Raises `OSError`."""
    if path.suffix == SUFFIX:
        return True
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def write(path: Path, recording: Recording) -> None:
    """Write all records to a new file, which appears when it is complete.

    Raises:
        MissingError: pyarrow is not installed.
        OSError: the file exists, or cannot be written.
    """
    arrow, files = _library()
    if path.exists():
        raise FileExistsError(17, "exists already, and is not replaced", str(path))
    columns = {
        name: arrow.array(values).dictionary_encode() if name in TEXTS else arrow.array(values)
        for name, values in to_columns(recording).items()
    }
    unfinished = path.with_name(f"{path.name}.new")
    try:
        files.write_table(arrow.table(columns), unfinished, compression="zstd")
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read(path: Path) -> Recording:
    """Read a file that `write` made, or one with the same columns.

    Raises:
        MissingError: pyarrow is not installed.
        ValueError: it is no Parquet file, or its columns cannot be used.
        OSError: it cannot be read.
    """
    arrow, files = _library()
    try:
        with files.ParquetFile(path) as file:  # one file as it is: a dataset would read columns into its path
            table = file.read()
    except arrow.ArrowException as error:
        raise ValueError(f"{path}: {error}") from error
    columns: Columns = {}
    for name in (*TEXTS, *NUMBERS):
        if name in table.column_names:
            column = table.column(name)
            if column.null_count:
                raise ValueError(f"{path}: column {name!r} has empty values")
            columns[name] = column.to_pylist() if name in TEXTS else column.to_numpy()
    try:
        return from_columns(columns)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def to_columns(recording: Recording) -> Columns:
    """The records as columns, in order."""
    records = recording.records
    routed = [recording.series[at] for at in records["series"].tolist()]
    names = dict(enumerate(recording.variants))
    texts = {
        "spool": [recording.spools[at] for at in recording.spool.tolist()],
        "model": [model for model, _ in routed],
        "variant": [variant for _, variant in routed],
        "answered_by": [names.get(at, "") for at in records["answered"].tolist()],
    }
    return {**texts, **{name: np.ascontiguousarray(records[name]) for name in NUMBERS}}


def from_columns(columns: Mapping[str, Any]) -> Recording:
    """The records that columns hold. Raises `ValueError` naming the column that is missing or does not fit."""
    if missing := [name for name in (*TEXTS, *NUMBERS) if name not in columns and name not in _LATER]:
        raise ValueError(f"lacks the columns {', '.join(missing)}")
    models, variants = columns["model"], columns["variant"]
    series: dict[tuple[str, str], int] = {}
    spools: dict[str, int] = {}
    records = np.zeros(len(models), dtype=RECORD_DTYPE)
    for name in (name for name in NUMBERS if name in columns):
        values = np.asarray(columns[name])
        if values.dtype.kind not in "iuf":
            raise ValueError(f"column {name!r} holds {values.dtype}, expected numbers")
        field = RECORD_DTYPE[name]
        with np.errstate(invalid="ignore"):  # what does not fit is refused below
            records[name] = values.astype(field)
        if field.kind != "f" and (records[name] != values).any():
            raise ValueError(f"column {name!r} holds values that do not fit into {field}")
    routed = [series.setdefault(key, len(series)) for key in zip(models, variants, strict=True)]
    answered = [
        series.setdefault((model, name), len(series)) if name else NOBODY
        for model, name in zip(models, columns["answered_by"], strict=True)
    ]
    if len(series) > NOBODY:
        raise ValueError(f"names {len(series)} variants, at most {NOBODY} can be told apart")
    records["series"], records["answered"] = routed, answered
    spool = np.array([spools.setdefault(name, len(spools)) for name in columns["spool"]], dtype=np.int64)
    return Recording(list(series), list(spools), spool, records)


def _library() -> tuple[Any, Any]:
    """pyarrow and its Parquet module. Raises `MissingError`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingError(f"Parquet needs pyarrow: pip install 'canarium[parquet]' ({error})") from error
    return pyarrow, pyarrow.parquet
