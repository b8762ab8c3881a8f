"""Calibration batches of text for static INT8 quantization."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from serving.build.cache import Tick
from serving.build.quantize import static_int8
from serving.build.rows import spread
from serving.build.text.data import ROWS, read_split
from serving.build.text.train import encode
from serving.registry.files import file_digest

_BATCH = 16


def quantize(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """See `static_int8`; evenly spread rows of the calibration split, in the shape the server sends them."""
    recipe = parameters["quantize"]
    split = read_split(needs["data"] / ROWS, "calibration", parameters["labels"])
    chosen = spread(len(split.texts), recipe["rows"]).tolist()
    rows = encode(needs["tokenizer"], [split.texts[at] for at in chosen], parameters["max_chars"])
    digests = msgspec.json.decode((needs["data"] / "data.json").read_bytes())["split_sha256"]
    static_int8(
        out,
        needs["model"] / "model.onnx",
        _batches(rows, parameters["max_tokens"]),
        recipe,
        {
            "rows": len(rows),
            "tokenizer_sha256": file_digest(needs["tokenizer"] / "tokenizer.json"),
            "data_sha256": digests["calibration"],
        },
    )


def _batches(rows: Sequence[np.ndarray], width: int) -> Iterator[dict[str, np.ndarray]]:
    for at in range(0, len(rows), _BATCH):
        # The histogram methods stack what they collect, which needs full batches of one width.
        batch = [*rows[at : at + _BATCH], *rows[: _BATCH - len(rows[at : at + _BATCH])]]
        padded = np.zeros((_BATCH, width), np.int64)
        for target, row in zip(padded, batch, strict=False):
            target[: len(row)] = row
        yield {"input_ids": padded}
