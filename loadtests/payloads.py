"""Requests for text models, made from rows of a data set."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.transport import Request


@dataclass(frozen=True, slots=True)
class Row:
    """One text with its true label."""

    text: str
    label: str


def read_rows(path: Path, split: str | None = "test") -> list[Row]:
    """Rows of a `.jsonl` or `.jsonl.gz` file, or of every such file of a folder.

    Args:
        path: each line is an object with `text`, `label` and `split`.
        split: only rows of this split; None for all.

    Raises:
        ValueError: there are none, or a line is not such an object.
    """
    files = sorted((*path.glob("*.jsonl"), *path.glob("*.jsonl.gz"))) if path.is_dir() else [path]
    rows = [row for file in files for row in _rows(file, split)]
    if not rows:
        raise ValueError(f"{path}: no rows{f' of split {split!r}' if split else ''} in .jsonl or .jsonl.gz files")
    return rows


def infer_requests(
    model: str,
    rows: Sequence[Row],
    *,
    users: int = 5000,
    seed: int = 0,
    prefix: str = "load",
    headers: tuple[tuple[str, str], ...] = (),
    input_name: str = "text",
) -> Iterator[Request]:
    """Endless inference requests in the protocol's JSON form, over the rows in a shuffled order.

    Each carries the id `PREFIX-N` and a sticky user drawn from `users` many; `tag` is its `Row`.
    """
    draw = random.Random(seed)
    path = f"/v2/models/{model}/infer"
    order = list(rows)
    number = 0
    while True:
        draw.shuffle(order)
        for row in order:
            number += 1
            tensor = {"name": input_name, "datatype": "BYTES", "shape": [1], "data": [row.text]}
            yield Request(
                path=path,
                body=json.dumps({"id": f"{prefix}-{number}", "inputs": [tensor]}).encode(),
                headers=(
                    ("Content-Type", "application/json"),
                    ("x-user-id", f"user-{draw.randrange(users)}"),
                    *headers,
                ),
                tag=(f"{prefix}-{number}", row),
            )


def feedback_request(model: str, request_id: str, label: str) -> Request:
    """The truth about an earlier request."""
    return Request(
        path=f"/v2/models/{model}/feedback",
        body=json.dumps({"id": request_id, "label": label}).encode(),
        headers=(("Content-Type", "application/json"),),
    )


def _rows(path: Path, split: str | None) -> Iterator[Row]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                found = json.loads(line)
                if split is None or found.get("split") == split:
                    yield Row(str(found["text"]), str(found["label"]))
            except (ValueError, KeyError, AttributeError):
                raise ValueError(f"{path}:{number}: expected an object with text, label and split") from None
