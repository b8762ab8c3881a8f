"""The rows of a text classification task and the check that they can be used."""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from serving.build.cache import BuildError, Tick, write_json
from serving.decoding import UNPACKABLE, UNREADABLE
from serving.registry.files import file_digest

#: The data file inside the folder of the step that checked it.
ROWS = "rows.jsonl.gz"
SPLITS = ("train", "calibration", "validation", "test")


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the data file."""

    text: str
    label: str
    split: str


class Split(NamedTuple):
    """The rows of one split: texts, and class indices int64 [n]."""

    texts: list[str]
    classes: np.ndarray

    @property
    def blob(self) -> np.ndarray:
        """The texts as a request carries them: object array of UTF-8 bytes [n]."""
        return np.array([text.encode() for text in self.texts], dtype=object)


def read_rows(path: Path) -> list[Row]:
    """All rows of a gzipped JSON-lines file. Raises `BuildError` naming the file, and the line if it is one."""
    decoder = msgspec.json.Decoder(Row)
    rows = []
    try:
        with gzip.open(path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    rows.append(decoder.decode(line))
                except UNREADABLE as error:
                    raise BuildError(f"{path}: line {number}: {error}") from error
    except UNPACKABLE as error:
        raise BuildError(f"{path}: cannot be read: {error}") from error
    return rows


def read_split(path: Path, name: str, labels: Sequence[str]) -> Split:
    """The rows of one split."""
    index = {label: number for number, label in enumerate(labels)}
    rows = [row for row in read_rows(path) if row.split == name]
    return Split([row.text for row in rows], np.array([index[row.label] for row in rows], np.int64))


def near_key(text: str) -> str:
    """What near-identical texts share: the first 300 characters of their lower-case words, masks left out.

    A text without words, such as `5/5`, shares nothing with others: its key is all of it.
    """
    words = " ".join(re.findall(r"[^\W\d_]+", re.sub(r"\[(url|email|phone|name)\]", " ", text).lower()))
    return words[:300] or text.strip().casefold()


def check_data(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Check `needs["file"]`; write a copy (`ROWS`) and `data.json`: rows by split and label, digests by split.

    Raises:
        BuildError: an unknown label or split, an empty split, a text in two splits.
    """
    path, labels = needs["file"], parameters["labels"]
    rows = read_rows(path)
    counts: dict[str, Counter[str]] = {name: Counter() for name in SPLITS}
    digests = {name: hashlib.sha256() for name in SPLITS}
    home: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        if row.split not in counts:
            raise BuildError(f"{path}: line {number}: split {row.split!r} is not one of {', '.join(SPLITS)}")
        if row.label not in labels:
            raise BuildError(f"{path}: line {number}: label {row.label!r} is not one of {', '.join(labels)}")
        if home.setdefault(near_key(row.text), row.split) != row.split:
            raise BuildError(f"{path}: line {number}: nearly the same text is in another split")
        counts[row.split][row.label] += 1
        digests[row.split].update(f"{row.label}\0{row.text}\0".encode())
    for name, found in counts.items():
        for label in labels:
            if not found[label]:
                raise BuildError(f"{path}: split {name} has no row labelled {label!r}")
    shutil.copyfile(path, out / ROWS)
    write_json(
        out / "data.json",
        {
            "sha256": file_digest(path),
            "rows": len(rows),
            "splits": {name: dict(found) for name, found in counts.items()},
            "split_sha256": {name: digest.hexdigest() for name, digest in digests.items()},
        },
    )
