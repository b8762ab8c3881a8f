"""Calibration batches of rows of numbers for static INT8 quantization."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from serving.build.anomaly.data import read_table
from serving.build.cache import Tick
from serving.build.quantize import static_int8
from serving.build.rows import spread

_BATCH = 64


def quantize(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """See `static_int8`; evenly spread rows of the calibration split."""
    recipe = parameters["quantize"]
    features = read_table(needs["data"], "calibration").features
    rows = features[spread(len(features), recipe["rows"])]
    size = min(_BATCH, len(rows))
    # The histogram methods need full batches: the first rows fill the last one up.
    full = rows[np.arange(-(-len(rows) // size) * size) % len(rows)]
    batches = [{"features": full[at : at + size]} for at in range(0, len(full), size)]
    digests = msgspec.json.decode((needs["data"] / "data.json").read_bytes())["split_sha256"]
    static_int8(
        out,
        needs["model"] / "model.onnx",
        batches,
        recipe,
        {"rows": len(rows), "data_sha256": digests["calibration"]},
    )
