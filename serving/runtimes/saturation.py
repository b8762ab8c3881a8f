"""Activations that leave the ranges a static INT8 model was calibrated for, and what its rounding costs within them.

Such a model carries its ranges: each QuantizeLinear of an activation has a scale and a zero point, so that x becomes
round(x / scale) + zero point, clipped to what 8 bits hold. A value saturates if it is clipped by more than rounding
would have changed it. A range that begins at zero is watched at its upper end only: there the clipping does the work
of a ReLU that the quantizer has taken out.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

_HALF = 0.5
#: The least and the most that an integer type holds, by its name in ONNX.
_LIMITS = {"UINT8": (0, 255), "INT8": (-128, 127), "UINT16": (0, 65_535), "INT16": (-32_768, 32_767)}


class Range(NamedTuple):
    """What a quantized tensor holds, as real numbers; `low` is -inf where nothing is watched.

    `step` is the distance of two neighbours, `floor` and `ceiling` are the least and the greatest of them.
    """

    name: str
    low: float
    high: float
    step: float
    floor: float
    ceiling: float

    def meant(self, values: np.ndarray) -> np.ndarray:
        """The values that 8 bits stand for: without those below zero where the clipping does the work of a ReLU."""
        return np.maximum(values, 0) if self.low == -np.inf else values

    def held(self, values: np.ndarray) -> np.ndarray:
        """What 8 bits make of them (ONNX, `QuantizeLinear`: half to even)."""
        rounded: np.ndarray = np.clip(np.rint(values / self.step) * self.step, self.floor, self.ceiling)
        return rounded


#: More decibels than any quantization has: of a tensor that happens to be held exactly.
MOST_DB = 100.0


def sqnr_db(exact: np.ndarray, held: np.ndarray) -> float:
    """Signal-to-quantization-noise ratio, 10 log10(sum x^2 / sum (x - y)^2), decibels, at most `MOST_DB`.

    NaN where there is no signal, or a value is no number.

    >>> round(sqnr_db(np.array([3.0, 4.0]), np.array([3.0, 4.5])), 2)
    20.0
    """
    signal = float(np.square(exact, dtype=np.float64).sum())
    noise = float(np.square(exact - held, dtype=np.float64).sum())
    return decibels(signal, noise) if signal > 0 and math.isfinite(signal + noise) else math.nan


def decibels(signal: float, noise: float) -> float:
    """The ratio of two powers; `signal` > 0, `noise` >= 0."""
    return min(MOST_DB, 10 * math.log10(signal / noise)) if noise else MOST_DB


def outside(values: np.ndarray, low: float, high: float) -> float:
    """The share of the values that are not within the range; what is no number is not.

    >>> outside(np.array([0.0, 1.0, 2.0, np.nan]), -1.0, 1.5)
    0.5
    """
    if not values.size:
        return 0.0
    return 1.0 - float(np.count_nonzero((values >= low) & (values <= high))) / values.size


def ranges_of(model: Any) -> list[Range]:
    """The ranges of every activation of an ONNX model that is quantized by a fixed scale, each tensor once."""
    from onnx import TensorProto, numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants.update((node.output[0], part.t) for part in node.attribute if part.name == "value")
    found: dict[str, Range] = {}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] in constants or node.input[1] not in constants:
            continue
        scale = numpy_helper.to_array(constants[node.input[1]])
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        if scale.size != 1 or (len(node.input) > 2 and zero is None):
            continue  # by channel, or a zero point that is worked out
        kind = TensorProto.DataType.Name(zero.data_type) if zero is not None else "UINT8"
        if kind not in _LIMITS:
            continue
        (least, most), point = _LIMITS[kind], int(numpy_helper.to_array(zero).item()) if zero is not None else 0
        step, name = float(scale.item()), node.input[0]
        low = -np.inf if point == least else (least - point - _HALF) * step
        floor, ceiling = (least - point) * step, (most - point) * step
        found.setdefault(name, Range(name, low, ceiling + _HALF * step, step, floor, ceiling))
    return list(found.values())
