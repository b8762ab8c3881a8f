"""The check of rows of numbers as they are stored: what differs as text, or is finite, may not be so as float32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serving.build.anomaly.data import check_table, read_table
from serving.build.cache import BuildError, Tick
from serving.build.text.data import SPLITS


def check_stored(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Do what `check_table` does, and check what it stored.

    Raises:
        BuildError: see `check_table`; a number that float32 cannot hold, a row that as float32 is one of another split.
    """
    with np.errstate(over="ignore"):
        check_table(out, needs, parameters, tick)
    home: dict[tuple[float, ...], str] = {}
    for split in SPLITS:
        features = read_table(out, split).features
        for number, (row, finite) in enumerate(zip(features.tolist(), np.isfinite(features), strict=True), start=1):
            place = f"{needs['file']}: row {number} of split {split}"
            if not finite.all():
                raise BuildError(f"{place}: {parameters['columns'][finite.argmin()]} is too large for float32")
            if (other := home.setdefault(tuple(row), split)) != split:
                raise BuildError(f"{place}: as float32 the same row is in split {other}")
