"""Calibration batches of rows of numbers for static INT8 quantization."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from serving.build.anomaly.data import read_table
from serving.build.cache import Tick
from serving.build.quantize import static_int8

_BATCH = 64


def quantize(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """See `static_int8`; the first rows of the calibration split, in full batches."""
    recipe = parameters["quantize"]
    rows = read_table(needs["data"], "calibration").features[: recipe["rows"]]
    size = min(_BATCH, len(rows))
    batches = [{"features": rows[at : at + size]} for at in range(0, len(rows) - size + 1, size)]
    digests = msgspec.json.decode((needs["data"] / "data.json").read_bytes())["split_sha256"]
    static_int8(
        out,
        needs["model"] / "model.onnx",
        batches,
        recipe,
        {"rows": size * len(batches), "data_sha256": digests["calibration"]},
    )
