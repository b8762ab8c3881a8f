"""Rows of numbers with a label and a split, and the check that they can be used."""

from __future__ import annotations

import csv
import gzip
import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from serving.build.cache import BuildError, Tick, write_json
from serving.build.text.data import SPLITS
from serving.decoding import UNPACKABLE
from serving.registry.files import file_digest

#: The arrays inside the folder of the step that checked the data.
TABLE = "rows.npz"


class Table(NamedTuple):
    """The rows of one split: `features` float32 [n, columns], `classes` int64 [n]."""

    features: np.ndarray
    classes: np.ndarray


def read_table(folder: Path, split: str) -> Table:
    """A split from the folder of `check_table`."""
    with np.load(folder / TABLE) as arrays:
        return Table(arrays[f"{split}-features"], arrays[f"{split}-classes"])


def check_table(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Check `needs["file"]`; write `TABLE` and `data.json`: rows by split and label, digests by split.

    Raises:
        BuildError: a damaged file, another header, a value that is no finite number, an unknown label or split, a
            split without rows of a label, a row in two splits.
    """
    path, labels, columns = needs["file"], list(parameters["labels"]), list(parameters["columns"])
    rows: dict[str, list[tuple[list[float], int]]] = {name: [] for name in SPLITS}
    home: dict[tuple[float, ...], str] = {}
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as stream:
            reader = csv.reader(stream)
            header = next(reader, [])
            if header != [*columns, "label", "split"]:
                raise BuildError(
                    f"{path}: line 1: expected the columns {', '.join(columns)}, label, split, got {header}"
                )
            for line in reader:
                place = f"{path}: line {reader.line_num}"
                values, label, split = _row(line, len(columns), place)
                if split not in rows:
                    raise BuildError(f"{place}: split {split!r} is not one of {', '.join(SPLITS)}")
                if label not in labels:
                    raise BuildError(f"{place}: label {label!r} is not one of {', '.join(labels)}")
                if home.setdefault(tuple(values), split) != split:
                    raise BuildError(f"{place}: the same row is in another split")
                rows[split].append((values, labels.index(label)))
    except (*UNPACKABLE, UnicodeDecodeError, csv.Error) as error:
        raise BuildError(f"{path}: cannot be read: {error}") from error
    arrays: dict[str, np.ndarray] = {}
    counts: dict[str, dict[str, int]] = {}
    for split, found in rows.items():
        by_class = Counter(label for _, label in found)
        counts[split] = {label: by_class[index] for index, label in enumerate(labels)}
        for label, count in counts[split].items():
            if not count:
                raise BuildError(f"{path}: split {split} has no row labelled {label!r}")
        arrays[f"{split}-features"] = np.array([values for values, _ in found], np.float32)
        arrays[f"{split}-classes"] = np.array([label for _, label in found], np.int64)
    np.savez(out / TABLE, allow_pickle=False, **arrays)
    write_json(
        out / "data.json",
        {
            "sha256": file_digest(path),
            "rows": sum(len(found) for found in rows.values()),
            "splits": counts,
            "split_sha256": {
                split: hashlib.sha256(
                    arrays[f"{split}-features"].tobytes() + arrays[f"{split}-classes"].tobytes()
                ).hexdigest()
                for split in SPLITS
            },
        },
    )


def _row(line: list[str], columns: int, place: str) -> tuple[list[float], str, str]:
    if len(line) != columns + 2:
        raise BuildError(f"{place}: expected {columns + 2} values, got {len(line)}")
    try:
        values = [float(value) for value in line[:columns]]
    except ValueError as error:
        raise BuildError(f"{place}: {error}") from None
    if not np.isfinite(values).all():
        raise BuildError(f"{place}: expected finite numbers, got {', '.join(line[:columns])}")
    return values, line[-2], line[-1]
