"""Windows of sound as a model's inputs, each window with the state that the one before it left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from serving.runtimes.base import NUMPY_TYPES

Arrays = dict[str, np.ndarray]


def feeds(
    windows: np.ndarray, stream: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Arrays, Arrays]]:
    """The inputs of each step, clips side by side as rows.

    Args:
        windows: float32 [clips, steps, samples].
        stream: a `StreamRecipe` as a dictionary.
        inputs: `TensorRecipe`s as dictionaries.

    Yields:
        inputs, and a dictionary into which the caller puts the outputs before it asks for the next step.
    """
    rows = len(windows)
    types = {spec["name"]: NUMPY_TYPES[spec["datatype"]] for spec in inputs}
    states = {
        spec["name"]: np.zeros([rows if size == -1 else size for size in spec["shape"]], types[spec["name"]])
        for spec in inputs
        if spec["name"] in stream["states"].values()
    }
    fixed = {
        spec["name"]: np.full(spec["shape"], stream["constants"][spec["name"]], types[spec["name"]])
        for spec in inputs
        if spec["name"] in stream["constants"]
    }
    for step in range(windows.shape[1]):
        answer: Arrays = {}
        yield {stream["input"]: np.ascontiguousarray(windows[:, step]), **fixed, **states}, answer
        states = {name: answer[output] for output, name in stream["states"].items()}
