"""The tensors of a batch: which requests fit together, putting them together, giving each its own rows."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

Arrays = Mapping[str, np.ndarray]
#: Axis of the rows of those tensors for which it is not axis 0; None: one value for all rows of a batch.
Axes = Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a model's tensors have their rows.

    Attributes:
        pad: inputs whose axis 1 may be filled up with zeros to match its batch mates; their rows are on axis 0.
        inputs, outputs: those tensors whose rows are not on axis 0.
    """

    pad: frozenset[str] = frozenset()
    inputs: Axes = field(default_factory=dict)
    outputs: Axes = field(default_factory=dict)


PLAIN = Layout()


class Shape(NamedTuple):
    """What the policy needs to know of a request's arrays."""

    signature: Hashable | None  # None: not batchable, some input has other rows or none has any
    bytes: int
    width: int  # longest paddable axis; 0 = none


def bytes_of(array: np.ndarray) -> int:
    """What an array's values take on the wire."""
    return sum(len(item) + 4 for item in array.flat) if array.dtype.hasobject else array.nbytes


def shape_of(inputs: Arrays, rows: int, layout: Layout = PLAIN) -> Shape:
    """Describe a request's arrays. Two may share a batch if their signatures are equal.

    Args:
        inputs: arrays with `rows` rows each.
    """
    parts: list[Hashable] = []
    total = width = 0
    batchable, counted = True, False
    for name in inputs if len(inputs) == 1 else sorted(inputs):
        array = inputs[name]
        dtype, shape = array.dtype, array.shape
        total += bytes_of(array)
        axis = layout.inputs.get(name, 0) if layout.inputs else 0
        counted = counted or axis is not None
        if axis is None:  # one value for all: only requests with the same one
            parts.append((name, dtype.str, shape, tuple(array.flat) if dtype.hasobject else array.tobytes()))
        elif len(shape) <= axis or shape[axis] != rows:
            batchable = False
        elif axis:
            parts.append((name, dtype.str, shape[:axis], shape[axis + 1 :]))
        elif name in layout.pad and len(shape) > 1 and not dtype.hasobject:
            width = max(width, shape[1])
            parts.append((name, dtype.str, -1, shape[2:]))
        else:
            parts.append((name, dtype.str, shape[1:]))
    return Shape(tuple(parts) if batchable and counted else None, total, width)


def chunk_rows(rows: int, size: int, max_batch: int, max_bytes: int) -> int:
    """Rows of each chunk of a request of `rows` rows and `size` bytes; at least 1."""
    by_bytes = rows if size <= max_bytes else max(1, max_bytes * rows // size)
    return max(1, min(max_batch, by_bytes))


def rows_of(arrays: Arrays, start: int, stop: int, axes: Axes) -> dict[str, np.ndarray]:
    """Rows `start` to `stop` of each array, as views."""
    return {name: _rows(array, axes.get(name, 0) if axes else 0, start, stop) for name, array in arrays.items()}


def merge(parts: Sequence[Arrays], axes: Axes = PLAIN.inputs) -> dict[str, np.ndarray]:
    """Stack the inputs of one batch on their row axes; shorter paddable inputs are filled with zeros."""
    if len(parts) == 1:
        return dict(parts[0])
    return {name: _stack([part[name] for part in parts], axes.get(name, 0) if axes else 0) for name in parts[0]}


def join(parts: Sequence[Arrays], axes: Axes = PLAIN.outputs) -> dict[str, np.ndarray]:
    """Put the outputs of a request that ran in several batches together again.

    Raises:
        KeyError, ValueError: they do not fit.
    """
    joined = {}
    for name, first in parts[0].items():
        axis = axes.get(name, 0)
        joined[name] = first if axis is None else np.concatenate([part[name] for part in parts], axis)
    return joined


def split(outputs: Arrays, rows: Sequence[int], axes: Axes = PLAIN.outputs) -> list[dict[str, np.ndarray]] | None:
    """Each entry's own rows of a batch's outputs, as views.

    Returns None if some output does not have one row for each row of the batch. A batch of
    one entry gets its outputs whole, whatever their shape: judging them is not our business.
    """
    if len(rows) == 1:
        return [dict(outputs)]
    total = sum(rows)
    for name, array in outputs.items():
        axis = axes.get(name, 0) if axes else 0
        if axis is not None and (len(array.shape) <= axis or array.shape[axis] != total):
            return None
    shares, at = [], 0
    for count in rows:
        shares.append(rows_of(outputs, at, at + count, axes))
        at += count
    return shares


def _rows(array: np.ndarray, axis: int | None, start: int, stop: int) -> np.ndarray:
    if axis is None:
        return array
    return array[start:stop] if axis == 0 else array[(*(slice(None),) * axis, slice(start, stop))]


def _stack(arrays: list[np.ndarray], axis: int | None) -> np.ndarray:
    first = arrays[0]
    if axis is None:
        return first
    if axis or all(array.shape[1:] == first.shape[1:] for array in arrays):
        return np.concatenate(arrays, axis)
    width = max(array.shape[1] for array in arrays)
    stacked = np.zeros((sum(len(array) for array in arrays), width, *first.shape[2:]), first.dtype)
    at = 0
    for array in arrays:
        stacked[at : at + len(array), : array.shape[1]] = array
        at += len(array)
    return stacked
