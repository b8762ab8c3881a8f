"""Which layers suffer most from rounding: each quantized alone, and what that does to the answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serving.build import metrics
from serving.build.cache import Tick, write_json
from serving.build.evaluate import infer
from serving.build.examples import read_examples
from serving.build.interface import draft, pipeline_folder
from serving.build.quantize import reduces_range
from serving.build.rows import spread
from serving.runtimes.base import open_session
from serving.runtimes.pipeline import Pipeline

#: Rows of the validation split: the order of the layers is clear long before their exact cost is.
_ROWS = 128


def rank_layers(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Write `sensitivity.json`: `layers`, most sensitive first, each with its node's name and the mean KL in nats.

    Args:
        needs: `data`, `model` (fp32 ONNX), `ranges` (a quantize step, whose `ranges.json` is used), the further files.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.getLogger().setLevel(logging.ERROR)  # the quantizer logs to the root logger
    recipe, manifest = parameters["quantize"], draft(parameters, 1.0)
    pipeline = Pipeline(manifest, pipeline_folder(manifest, needs))
    validation = read_examples(needs["data"], "validation", parameters["labels"])
    examples = validation.at(spread(len(validation), _ROWS))
    prepared, alone = out / "prepared.onnx", out / manifest.entry
    quant_pre_process(needs["model"] / "model.onnx", prepared, skip_symbolic_shape=True)
    graph = onnx.load(prepared).graph
    weights = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    nodes = [
        node.name for node in graph.node if node.op_type in recipe["operators"] and weights.intersection(node.input)
    ]

    def answers(folder: Path) -> np.ndarray:
        return infer(pipeline, open_session(manifest, folder, runtime="onnxruntime", threads=1), examples)

    whole, layers = answers(needs["model"]), []
    for number, name in enumerate(nodes):
        tick(number, len(nodes), name)
        quantize_static(
            prepared,
            alone,
            None,
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=[name],
            op_types_to_quantize=list(recipe["operators"]),
            per_channel=recipe["per_channel"],
            reduce_range=reduces_range(recipe),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibration_cache_path=needs["ranges"] / "ranges.json",
            extra_options={"OpTypesToExcludeOutputQuantization": list(recipe["operators"])},
        )
        layers.append({"node": name, "mean_kl": metrics.mean_kl(whole, answers(out))})
    for path in (prepared, alone):
        path.unlink(missing_ok=True)
    layers.sort(key=lambda each: (-each["mean_kl"], each["node"]))
    write_json(out / "sensitivity.json", {"split": "validation", "rows": len(examples), "layers": layers})
