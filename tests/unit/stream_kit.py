"""A streaming model so small that a test can make it: loud is speech, and its state comes back with each answer."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def graph() -> onnx.ModelProto:
    """Loud is speech: sigmoid of the mean square of a convolution, smoothed by a state [1, n, 1] that is given back."""
    chance = np.random.default_rng(2)
    kernel = np.zeros((32, 1, 33), np.float32)
    kernel[:, 0, 16] = 1
    kernel += chance.normal(0, 0.001, kernel.shape).astype(np.float32)
    constants = {
        "kernel": kernel,
        "channel": np.array([1], np.int64),
        "first": np.array([0], np.int64),
        "gain": np.array(60.0, np.float32),
        "offset": np.array(-4.0, np.float32),
        "keep": np.array(0.1, np.float32),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["input", "channel"], ["x"]),
        helper.make_node("Conv", ["x", "kernel"], ["y"]),
        helper.make_node("Mul", ["y", "y"], ["power"]),
        helper.make_node("ReduceMean", ["power"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "channel"], ["now"]),
        helper.make_node("Squeeze", ["state", "first"], ["before"]),
        helper.make_node("Mul", ["before", "keep"], ["kept"]),
        helper.make_node("Add", ["now", "kept"], ["level"]),
        helper.make_node("Unsqueeze", ["level", "first"], ["stateN"]),
        helper.make_node("Mul", ["level", "gain"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["output"]),
    ]
    body = helper.make_graph(
        nodes,
        "loud",
        [
            helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", "t"]),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, "n", 1]),
            helper.make_tensor_value_info("sr", TensorProto.INT64, []),
        ],
        [
            helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 1]),
            helper.make_tensor_value_info("stateN", TensorProto.FLOAT, [1, "n", 1]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model
