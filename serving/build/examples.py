"""The rows of a split as a client would send them, whatever kind of data it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.build.anomaly.data import TABLE, read_table
from serving.build.text.data import ROWS, read_split


@dataclass(frozen=True)
class Examples:
    """`inputs`: client tensors whose first axis has n rows; `classes`: int64 [n]."""

    inputs: Mapping[str, np.ndarray]
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.classes)

    def at(self, rows: np.ndarray) -> Examples:
        """The rows with these indices."""
        return Examples({name: array[rows] for name, array in self.inputs.items()}, self.classes[rows])

    def take(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """The inputs of some rows."""
        return {name: array[start:stop] for name, array in self.inputs.items()}


def read_examples(folder: Path, split: str, labels: Sequence[str]) -> Examples:
    """A split from the folder of the step that checked the data."""
    if (folder / TABLE).is_file():
        table = read_table(folder, split)
        return Examples({"features": table.features}, table.classes)
    texts = read_split(folder / ROWS, split, labels)
    return Examples({"text": texts.blob}, texts.classes)
