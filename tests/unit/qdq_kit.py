"""A small static INT8 model with ranges as a test wants them, and its manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serving.registry.manifest import File, Manifest, Postprocess, Signature, TensorSpec

#: Two activations are quantized: the input to ±range, what the first layer gives to [0, range].
INPUT, HIDDEN = "x", "hidden"


def write_model(folder: Path, *, range_: float = 4.0, hidden_range: float = 4.0, name: str = "model.onnx") -> Path:
    """x [-1, 4] -> Q/DQ -> times 1 -> Q/DQ -> logits [-1, 4]; 8 bits over ±`range_` and over [0, `hidden_range`]."""
    constants = {
        "x_scale": np.float32(range_ / 127), "x_zero": np.int8(0),
        "h_scale": np.float32(hidden_range / 255), "h_zero": np.uint8(0),
        "w8": (np.eye(4) * 127).astype(np.int8), "w_scale": np.float32(1 / 127), "w_zero": np.int8(0),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "x_scale", "x_zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w8", "w_scale", "w_zero"], ["w"]),
        helper.make_node("MatMul", ["xd", "w"], ["hidden"]),
        helper.make_node("QuantizeLinear", ["hidden", "h_scale", "h_zero"], ["h8"]),
        helper.make_node("DequantizeLinear", ["h8", "h_scale", "h_zero"], ["logits"]),
    ]
    shape = ["n", 4]
    graph = helper.make_graph(
        nodes, "qdq",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.array(value), key) for key, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, folder / name)
    return folder / name


def manifest(**changes: object) -> Manifest:
    signature = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("logits", "FP32", (-1, 4)),))
    given: dict[str, object] = {
        "model": "m", "variant": "int8", "revision": 1, "version": 2, "created_at": "", "format": "onnx",
        "entry": "model.onnx", "files": {"model.onnx": File("0" * 64, 0)}, "signature": signature,
        "session": signature, "postprocess": Postprocess(), "quantization": {"method": "static QDQ"},
    }  # fmt: skip
    return Manifest(**{**given, **changes})  # type: ignore[arg-type]
