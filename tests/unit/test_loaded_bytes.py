"""What is loaded is what was verified, although somebody writes in the registry between the two."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import qdq_kit
from onnx import TensorProto, helper, numpy_helper

from serving.build.training import save_module
from serving.clock import FakeClock
from serving.config_monitoring import GuardsConfig, SaturationGuard
from serving.errors import RegistryError
from serving.gateway.auditor import auditor_of
from serving.registry.manifest import Manifest, Signature, TensorSpec
from serving.registry.store import Registry
from serving.runtimes import pipeline
from serving.runtimes.base import open_session
from serving.runtimes.modules import CLASSES
from serving.runtimes.pipeline import Pipeline
from tests.support import tiny

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("logits", "FP32", (-1, 4)),))
ROW = np.array([[1.0, -2.0, 0.5, 0.25]], np.float32)


def swap(path: Path, content: bytes) -> None:
    """Another file under that name, as whoever may write in the folder can put there."""
    other = path.with_name(".other")
    other.write_bytes(content)
    os.replace(other, path)


def registered(folder: Path, **files: Path) -> tuple[Manifest, Path]:
    """`m/a:1` of files by the stem of their names, opened."""
    registry = Registry(folder / "registry", FakeClock())
    named = {path.name: path for path in files.values()}
    entry = files["model"].name
    registry.register(
        "m",
        "a",
        named,
        format="onnx" if entry.endswith(".onnx") else "torch",
        entry=entry,
        signature=SIGNATURE,
        session=SIGNATURE,
        quantization={"method": "static QDQ"},
    )
    return registry.open("m/a:1")


def test_a_model_that_was_swapped_after_it_was_verified_is_not_loaded(tmp_path: Path) -> None:
    manifest, folder = registered(tmp_path, model=qdq_kit.write_model(tmp_path))
    open_session(manifest, folder, runtime="onnxruntime", threads=1).run({"x": ROW})
    swap(folder / "model.onnx", qdq_kit.write_model(tmp_path, range_=1.0, name="other.onnx").read_bytes())
    with pytest.raises(RegistryError, match=r"m/a:1: model\.onnx is damaged: expected sha256 .* when it was loaded"):
        open_session(manifest, folder, runtime="onnxruntime", threads=1)


def test_weights_that_were_swapped_after_they_were_verified_are_not_loaded(tmp_path: Path) -> None:
    arguments = {"vocabulary": 8, "classes": 2, "width": 4, "hidden": 4}
    for name in ("model", "other"):
        save_module(
            tmp_path / f"{name}.safetensors", CLASSES["mean-embedding"](**arguments), "mean-embedding", arguments
        )
    manifest, folder = registered(tmp_path, model=tmp_path / "model.safetensors")
    open_session(manifest, folder, runtime="torch", threads=1)
    swap(folder / "model.safetensors", (tmp_path / "other.safetensors").read_bytes())
    with pytest.raises(RegistryError, match=r"m/a:1: model\.safetensors is damaged"):
        open_session(manifest, folder, runtime="torch", threads=1)


def test_a_tokenizer_that_was_swapped_after_it_was_verified_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_TOKENIZERS", {})
    tiny.build(tmp_path, {"teacher": tiny.graph()})
    manifest, folder = Registry(tmp_path).open("tiny/teacher:1")
    path = folder / "tokenizer.json"
    original = path.read_bytes()
    swap(path, original.replace(b'"spam"', b'"spat"'))
    with pytest.raises(RegistryError, match=r"tiny/teacher:1: tokenizer\.json is damaged"):
        Pipeline(manifest, folder)
    swap(path, original)
    Pipeline(manifest, folder)


def test_a_model_that_was_swapped_is_not_audited(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest, folder = registered(tmp_path, model=qdq_kit.write_model(tmp_path))
    guards = GuardsConfig(saturation=SaturationGuard(every_s=1.0))
    auditors = [auditor_of(manifest, folder, guards, FakeClock()) for _ in range(2)]
    for auditor, audits in zip(auditors, (1, 0), strict=True):
        assert auditor is not None
        auditor._start = lambda work: work()  # at once
        with caplog.at_level(logging.WARNING):
            auditor.offer({"x": ROW})
        assert len(auditor.take()) == audits
        swap(folder / "model.onnx", qdq_kit.write_model(tmp_path, range_=1.0, name="other.onnx").read_bytes())
    assert "no row is audited: m/a:1: model.onnx is damaged" in caplog.text


def with_weights_beside(folder: Path) -> dict[str, Path]:
    """A model that multiplies by 2, its weights in `weights.bin`."""
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32) * 2, "w")
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "logits")]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"])], "g", tensors[:1], tensors[1:], [weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    return {"model": folder / "model.onnx", "weights": folder / "weights.bin"}


def test_weights_in_a_file_of_their_own_are_those_that_were_verified(tmp_path: Path) -> None:
    manifest, folder = registered(tmp_path, **with_weights_beside(tmp_path))
    session = open_session(manifest, folder, runtime="onnxruntime", threads=1)
    assert session.run({"x": ROW})["logits"].tolist() == (2 * ROW).tolist()
    path = folder / "weights.bin"
    path.chmod(0o644)
    with path.open("r+b") as stream:  # in place, where a runtime that maps the file would see it
        stream.write(bytes(64))
    assert session.run({"x": ROW})["logits"].tolist() == (2 * ROW).tolist()
    with pytest.raises(RegistryError, match=r"m/a:1: weights\.bin is damaged"):
        open_session(manifest, folder, runtime="onnxruntime", threads=1)
