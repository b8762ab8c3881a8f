"""A registry of tiny text classifiers, some with real faults: ONNX graphs that raise, hang or give NaN.

They classify by one word: a text with "spam" in it is spam. A faulty one misbehaves on every text that
has its trigger word in it ("boom"), or always when `always` is given.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from serving.registry.manifest import Lineage, Manifest, Postprocess, Preprocess, Signature, TensorSpec
from serving.registry.store import Registry

WORDS = ["[PAD]", "[UNK]", "spam", "ham", "boom", "slow"]
TRIGGER = WORDS.index("boom")
FAULTS = ("raises", "hangs", "nan", "slow", "flips")

CLIENT = Signature(
    inputs=(TensorSpec("text", "BYTES", (-1,)),),
    outputs=(TensorSpec("probabilities", "FP32", (-1, 2)), TensorSpec("label", "BYTES", (-1,))),
)
SESSION = Signature(
    inputs=(TensorSpec("input_ids", "INT64", (-1, -1)),), outputs=(TensorSpec("logits", "FP32", (-1, 2)),)
)


def graph(fault: str = "", *, always: bool = True) -> onnx.ModelProto:
    """The classifier's graph.

    Args:
        fault: one of FAULTS, or "" for a healthy one.
        always: misbehave on every batch instead of only on those that hold the trigger word.
    """
    table = np.zeros((len(WORDS), 2), np.float32)
    table[WORDS.index("spam")] = (-4.0, 4.0)
    bias = np.array([1.0, -1.0], np.float32)
    initializers = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(bias, "bias"),
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
        numpy_helper.from_array(np.array(TRIGGER, np.int64), "trigger"),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"], axis=0),
        helper.make_node("ReduceSum", ["embedded", "axis"], ["summed"], keepdims=0),
        helper.make_node("Add", ["summed", "bias"], ["clean"]),
    ]
    if not fault:
        nodes.append(helper.make_node("Identity", ["clean"], ["logits"]))
    else:
        then = _branch("then", _fault_nodes(fault))
        otherwise = _branch("else", [helper.make_node("Identity", ["clean"], ["else_out"])])
        if always:
            initializers.append(numpy_helper.from_array(np.array(True), "faulty"))
        else:
            nodes += [
                helper.make_node("Equal", ["input_ids", "trigger"], ["hits"]),
                helper.make_node("Cast", ["hits"], ["hits_i"], to=TensorProto.INT32),
                helper.make_node("ReduceMax", ["hits_i"], ["hit"], keepdims=0),
                helper.make_node("Cast", ["hit"], ["faulty"], to=TensorProto.BOOL),
            ]
        nodes.append(helper.make_node("If", ["faulty"], ["logits"], then_branch=then, else_branch=otherwise))
    body = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "t"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        initializers,
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def build(
    root: Path, variants: dict[str, onnx.ModelProto], model: str = "tiny", beside: Mapping[str, Path] | None = None
) -> dict[str, Manifest]:
    """Register `variants` (name -> graph) in the registry at `root`; the first one is the teacher.

    `beside`: further files of each artifact, by name.
    """
    registry = Registry(root)
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    manifests: dict[str, Manifest] = {}
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder) / "tokenizer.json"
        tokenizer.save(str(words))
        for name, proto in variants.items():
            entry = Path(folder) / f"{name}.onnx"
            entry.write_bytes(proto.SerializeToString())
            manifests[name] = registry.register(
                model,
                name,
                {"model.onnx": entry, "tokenizer.json": words, **(beside or {})},
                format="onnx",
                entry="model.onnx",
                signature=CLIENT,
                session=SESSION,
                preprocess=Preprocess(kind="text", max_tokens=32, buckets=(8, 32)),
                postprocess=Postprocess(task="classification", labels=("ham", "spam")),
                lineage=Lineage("distilled" if manifests else "root"),
                evaluation={"teacher_disagreement": 0.0},
            )
    return manifests


def _branch(name: str, nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
    out = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, ["n", 2])
    return helper.make_graph(nodes, name, [], [out])


def _constant(name: str, value: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value, name))


def _fault_nodes(fault: str) -> list[onnx.NodeProto]:
    if fault == "flips":
        return [helper.make_node("Neg", ["clean"], ["then_out"])]
    if fault == "nan":
        return [
            _constant("nothing", np.array(np.nan, np.float32)),
            helper.make_node("Mul", ["clean", "nothing"], ["then_out"]),
        ]
    if fault == "raises":  # an index far outside the table: the runtime raises
        return [
            _constant("far", np.array(10**6, np.int64)),
            helper.make_node("Add", ["input_ids", "far"], ["outside"]),
            helper.make_node("Gather", ["table", "outside"], ["missing"], axis=0),
            helper.make_node("ReduceSum", ["missing", "axis"], ["then_out"], keepdims=0),
        ]
    rounds = {"hangs": 2**62, "slow": 150_000}[fault]
    loop = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["value"], ["value_out"])],
        "spin",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, ["n", 2]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value_out", TensorProto.FLOAT, ["n", 2]),
        ],
    )
    return [
        _constant("rounds", np.array(rounds, np.int64)),
        _constant("always_true", np.array(True)),
        helper.make_node("Loop", ["rounds", "always_true", "clean"], ["then_out"], body=loop),
    ]
