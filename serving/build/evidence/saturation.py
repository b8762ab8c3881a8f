"""Where 8 bits are not enough: products that overflow without VNNI, activations outside their ranges, rounding.

Before VNNI, x86 multiplies eight unsigned activations with signed weights by VPMADDUBSW, which adds two neighbouring
products in a signed 16-bit number and clips what does not fit (Intel Intrinsics Guide, `_mm256_maddubs_epi16`). With
activations up to 255, a pair of weights of one sign can clip as soon as their sum exceeds 128. Weights within ±64
(`reduce_range`) never do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.build.rows import spread
from serving.runtimes.audit import RowAudit
from serving.runtimes.inside import Inside
from serving.runtimes.pipeline import Pipeline
from serving.runtimes.saturation import Range, decibels

#: Rows whose activations are looked at: one at a time, as the audits of a running variant are.
AUDITED = 200
_MOST, _LEAST, _ACTIVATION = 32767, -32768, 255


def clipping_pairs(weights: np.ndarray) -> tuple[int, int]:
    """How many pairs of neighbouring weights can clip, and how many pairs there are.

    Args:
        weights: int8 [K, N]; pairs are (0, 1), (2, 3), … along K, as the kernels read them; an odd last row is
            paired with zero.
    """
    k, n = weights.shape
    padded = np.zeros((k + k % 2, n), np.int64)
    padded[:k] = weights
    pairs = padded.reshape(-1, 2, n)
    highest = np.maximum(pairs, 0).sum(axis=1) * _ACTIVATION
    lowest = np.minimum(pairs, 0).sum(axis=1) * _ACTIVATION
    return int(((highest > _MOST) | (lowest < _LEAST)).sum()), pairs.shape[0] * n


def audit(path: Path) -> dict[str, Any]:
    """Count, over an INT8 ONNX model, the pairs of weights that could clip without VNNI.

    Counts what could happen for some activation, not what does for the rows seen: 0 is a proof, more is a warning.

    Returns:
        JSON values: `possible` and `pairs` in all, and `layers`: the same for each weight that has any.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    #: A dequantized weight -> the 8-bit tensor it comes from.
    origin = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in weights
    }
    layers, possible, total = {}, 0, 0
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv", "MatMulInteger", "DynamicQuantizeMatMul"):
            continue
        for position, name in enumerate(node.input[:2]):
            name = origin.get(name, name)
            if name not in weights:
                continue
            values = numpy_helper.to_array(weights[name])
            flat = _as_columns(values, node, position)
            clipping, pairs = clipping_pairs(flat)
            possible, total = possible + clipping, total + pairs
            if clipping:
                layers[name] = {"possible": clipping, "pairs": pairs}
    return {"possible": possible, "pairs": total, "layers": layers}


def activations(
    path: Path, pipeline: Pipeline, inputs: Mapping[str, np.ndarray], source: Path | None = None
) -> dict[str, Any] | None:
    """What the guard `saturation` starts from: how much saturates on rows that the ranges were not made of.

    Args:
        inputs: client tensors; `AUDITED` evenly spread rows are looked at.
        source: the ONNX file that was quantized.

    Returns:
        JSON values: `rows`, `tensors`, `share` (mean over the rows of `Audit.share`), `worst` (the highest share of one
        tensor on one row), `sqnr_db` (mean of `Audit.sqnr_db`: each tensor's own rounding), and `layers`: for each
        quantized tensor that the source has too, its signal-to-quantization-noise ratio in decibels against the
        source's, with all that was rounded before it. None for a model without fixed ranges.
    """
    try:
        audit = RowAudit(path)
    except ValueError:
        return None
    chosen = spread(len(next(iter(inputs.values()))), AUDITED).tolist()
    rows = len(chosen)
    ready = [pipeline.preprocess({name: values[at : at + 1] for name, values in inputs.items()}) for at in chosen]
    found = [audit.run(row) for row in ready]
    ratios = [one.sqnr_db for one in found if not math.isnan(one.sqnr_db)]
    return {
        "rows": rows,
        "tensors": len(audit.ranges),
        "share": sum(one.share for one in found) / rows if rows else 0.0,
        "worst": max((one.worst for one in found), default=0.0),
        "sqnr_db": sum(ratios) / len(ratios) if ratios else None,
        "layers": _against_source(path, source, audit.ranges, ready) if source is not None else {},
    }


def _against_source(
    path: Path, source: Path, ranges: Sequence[Range], rows: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """Tensor -> decibels over all rows together; those without a signal are left out."""
    import onnx

    before, after = onnx.load(source), onnx.load(path)
    there = {name for node in before.graph.node for name in node.output}
    shared = [one for one in ranges if one.name in there]
    if not shared:
        return {}
    names = [one.name for one in shared]
    exact, rounded = Inside(before, names), Inside(after, names)
    signal, noise = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for row in rows:
        truth, served = exact.run(row), rounded.run(row)
        for one in shared:
            meant = one.meant(truth[one.name]).astype(np.float64)
            signal[one.name] += float(np.square(meant).sum())
            noise[one.name] += float(np.square(meant - one.held(served[one.name])).sum())
    return {name: decibels(signal[name], noise[name]) for name in names if signal[name] > 0}


def _as_columns(values: np.ndarray, node: Any, position: int) -> np.ndarray:
    """A weight as [K, N]: what is summed over goes first."""
    if node.op_type == "Conv":
        return values.reshape(values.shape[0], -1).T
    flat = values.reshape(-1, values.shape[-1]) if values.ndim != 2 else values
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return flat.T if (transposed and position == 1) or position == 0 else flat
