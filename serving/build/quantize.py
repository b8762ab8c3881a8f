"""Static QDQ quantization to INT8 by ONNX Runtime, with ranges from the calibration split only.

Static, because dynamic quantization takes its ranges from the batch, so that an answer would depend on its
neighbours. ONNX Runtime's own calibration cache is neither byte-stable nor bound to the weights it was
made with: here its keys are sorted, and the key of the step that calls this binds it to model and data.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.build.cache import write_json
from serving.build.cpu import has_vnni
from serving.registry.files import file_digest

#: With fewer bins ONNX Runtime's entropy method often falls back to the extremes.
_BINS = 2048


class _Reader:
    """Batches one after the other, as the calibrator asks for them."""

    def __init__(self, batches: Iterable[Mapping[str, np.ndarray]]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        return next(self._batches, None)


def reduces_range(recipe: Mapping[str, Any]) -> bool:
    """Whether weights get 7 bits by a `QuantizeRecipe` as a dictionary: `auto` asks for it where the CPU lacks VNNI."""
    return not has_vnni() if recipe["reduce_range"] == "auto" else bool(recipe["reduce_range"])


def static_int8(
    out: Path,
    source: Path,
    batches: Iterable[Mapping[str, np.ndarray]],
    recipe: Mapping[str, Any],
    calibration: Mapping[str, Any],
) -> None:
    """Write `model.onnx` (INT8), `ranges.json` (sorted) and `quantization.json` (how it was done).

    Args:
        source: the ONNX file.
        batches: session inputs of the calibration split; the histogram methods need them all of one shape.
        recipe: a `QuantizeRecipe` as a dictionary.
        calibration: what the batches were made of, for `quantization.json`.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.getLogger().setLevel(logging.ERROR)  # the quantizer logs to the root logger
    method = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }[recipe["ranges"]]
    prepared, ranges = out / "prepared.onnx", out / "ranges.json"
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    options: dict[str, Any] = {"symmetric": False}
    if recipe["ranges"] != "minmax":
        options["num_bins"] = _BINS
    if recipe["ranges"] == "percentile":
        options["percentile"] = recipe["percentile"]
    calibrator = create_calibrator(
        prepared,
        list(recipe["operators"]),
        augmented_model_path=str(out / "augmented.onnx"),
        calibrate_method=method,
        extra_options=options,
    )
    calibrator.collect_data(_Reader(batches))
    save_tensors_data(calibrator.compute_data(), ranges)
    ranges.write_text(json.dumps(json.loads(ranges.read_text()), sort_keys=True, indent=1) + "\n")

    without = sorted({*_weightless(prepared, recipe["operators"]), *recipe.get("exclude", ())})
    reduce_range = reduces_range(recipe)
    quantize_static(
        prepared,
        out / "model.onnx",
        None,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(recipe["operators"]),
        nodes_to_exclude=without,
        per_channel=recipe["per_channel"],
        reduce_range=reduce_range,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=method,
        calibration_cache_path=ranges,
        # A product that stays in float needs no rounding before the addition that follows it.
        extra_options={"OpTypesToExcludeOutputQuantization": list(recipe["operators"])},
    )
    for name in ("prepared.onnx", "augmented.onnx"):
        (out / name).unlink(missing_ok=True)
    write_json(
        out / "quantization.json",
        {
            "method": "static QDQ",
            "tool": "onnxruntime.quantization",
            "weights": "QInt8",
            "activations": "QUInt8",
            "per_channel": recipe["per_channel"],
            "reduce_range": reduce_range,
            "operators": list(recipe["operators"]),
            "kept_in_float": without,
            "ranges": recipe["ranges"],
            "percentile": recipe["percentile"] if recipe["ranges"] == "percentile" else None,
            "calibration": {
                "split": "calibration",
                **calibration,
                "cache_sha256": file_digest(ranges),
                "model_sha256": file_digest(source),
            },
        },
    )


def _weightless(path: Path, operators: Sequence[str]) -> list[str]:
    """Names of the nodes without weights, such as attention scores: rounding them costs more than it saves."""
    import onnx

    graph = onnx.load(path).graph
    weights = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    return [node.name for node in graph.node if node.op_type in operators and not weights.intersection(node.input)]
