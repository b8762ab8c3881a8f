"""A recipe of an anomaly detector and data so small that a whole build takes seconds."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import yaml

COLUMNS = ("pressure", "flow", "current")


def rows() -> list[list[str]]:
    """Normal rows lie near a line through the space, one in ten lies off it; one of each split is labelled wrongly."""
    chance = np.random.default_rng(9)
    made = []
    for split, count in (("train", 300), ("calibration", 150), ("validation", 60), ("test", 200)):
        for index in range(count):
            at = chance.normal()
            values = np.array([at, 2 * at, -at]) + chance.normal(0, 0.05, 3)
            if index % 10 == 3:
                values += chance.choice([-1.0, 1.0], 3) * chance.uniform(1, 3, 3)
            made.append(
                [*(f"{value:.4f}" for value in values), "anomaly" if index % 10 == 3 or index == 7 else "normal", split]
            )
    return made


def recipe() -> dict[str, Any]:
    return {
        "apiVersion": "canarium/recipe/v1",
        "kind": "anomaly",
        "model": "pump",
        "labels": ["normal", "anomaly"],
        "threads": 1,
        "data": {"file": "rows.csv.gz", "source": "made up", "licence": "CC0-1.0", "pii": "none"},
        "columns": list(COLUMNS),
        "teacher": {"hidden": [16, 1], "train": {"epochs": 60, "batch": 64, "learning_rate": 0.01}},
        "student": {"hidden": 4, "seeds": [1, 2], "train": {"epochs": 60, "batch": 64, "learning_rate": 0.02}},
        "quantize": {"rows": 64, "operators": ["Gemm"]},
        "bootstrap_draws": 100,
    }


def write(folder: Path, document: dict[str, Any], data: list[list[str]]) -> Path:
    """Write recipe and data; gives the recipe's path."""
    text = io.StringIO()
    csv.writer(text).writerows([[*COLUMNS, "label", "split"], *data])
    (folder / "rows.csv.gz").write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path
