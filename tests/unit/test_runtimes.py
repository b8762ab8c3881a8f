"""Sessions load what they should and refuse the rest; the pipeline around them keeps its promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from serving.build.export import export_onnx
from serving.build.interface import draft
from serving.build.text.interface import GRAPH, text_interface
from serving.build.text.recipe import TokenizerRecipe
from serving.build.training import save_module
from serving.errors import ErrorKind, RegistryError, RequestError
from serving.registry.manifest import File, Manifest, Postprocess, Signature, TensorSpec
from serving.runtimes.answers import Classification
from serving.runtimes.base import open_session
from serving.runtimes.modules import CLASSES
from serving.runtimes.onnx import OnnxSession
from serving.runtimes.pipeline import Pipeline

WORDS = ["[PAD]", "[UNK]", "[CLS]", "free", "money", "kernel", "patch", "grüße"]
TOKENIZER = TokenizerRecipe(max_tokens=12, buckets=(4, 8, 12), max_chars=60)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "transformer": {"width": 8, "layers": 1, "heads": 2, "feedforward": 8, "tokens": 12},
    "mean-embedding": {"width": 4, "hidden": 4},
}


def manifest(format: str = "onnx", temperature: float = 2.0, **changes: Any) -> Manifest:
    interface = text_interface(["ham", "spam"], TOKENIZER).as_json()
    parameters = {"variant": "v", "format": format, "interface": interface, "files": ["tokenizer.json"]}
    made = msgspec.structs.replace(draft(parameters, temperature), **changes)
    return msgspec.structs.replace(made, files={made.entry: File("0" * 64, 0)} | made.files)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [3e38, 1e300])
def test_finite_logits_have_probabilities_however_large_they_are(dtype: type, temperature: float, size: float) -> None:
    size = min(size, float(np.finfo(dtype).max) * 0.9)
    post = Postprocess("classification", logits="logits", labels=("ham", "spam"), temperature=temperature)
    answer = Classification(post).probabilities(np.array([[size, -size], [size, size], [1.0, 2.0]], dtype))
    odds = np.exp(1.0 / temperature)
    assert answer.dtype == np.float32
    assert answer == pytest.approx(np.array([[1, 0], [0.5, 0.5], [1 / (1 + odds), odds / (1 + odds)]]), abs=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, and for each class its weights (CLASS.safetensors) and graph (CLASS.onnx)."""
    folder = tmp_path_factory.mktemp("artifact")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, arguments in ARGUMENTS.items():
        torch.manual_seed(3)
        full = {"vocabulary": len(WORDS), "classes": 2, **arguments}
        save_module(folder / f"{name}.safetensors", CLASSES[name](**full).eval(), name, full)
        out = folder / name
        out.mkdir()
        export_onnx(out, {"module": folder}, {"weights": f"{name}.safetensors", **GRAPH}, lambda *_: None)
        (out / "model.onnx").rename(folder / f"{name}.onnx")
    return folder


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return Pipeline(manifest(), folder)


def text(*rows: bytes | str) -> dict[str, np.ndarray]:
    return {"text": np.array([row.encode() if isinstance(row, str) else row for row in rows], dtype=object)}


# ---------------------------------------------------------------- sessions


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_onnx_and_torch_agree_and_padding_changes_nothing(folder: Path, name: str) -> None:
    onnx_session = open_session(manifest(entry=f"{name}.onnx"), folder, runtime="onnxruntime", threads=1)
    torch_session = open_session(manifest("torch", entry=f"{name}.safetensors"), folder, runtime="torch", threads=1)
    ids = np.array([[2, 3, 4, 5, 6], [2, 7, 0, 0, 0]], np.int64)
    one, two = onnx_session.run({"input_ids": ids}), torch_session.run({"input_ids": ids})
    np.testing.assert_allclose(one["logits"], two["logits"], rtol=1e-4, atol=1e-5)
    for session in (onnx_session, torch_session):
        wide = session.run({"input_ids": np.pad(ids, ((0, 0), (0, 7)))})
        alone = session.run({"input_ids": ids[1:, :2]})
        np.testing.assert_allclose(wide["logits"], one["logits"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(alone["logits"][0], one["logits"][1], rtol=1e-4, atol=1e-5)
        assert np.isfinite(session.run({"input_ids": np.zeros((1, 4), np.int64)})["logits"]).all()


def test_a_session_takes_exactly_its_inputs_and_nothing_after_it_is_closed(folder: Path) -> None:
    for format, runtime, entry in (
        ("onnx", "onnxruntime", "transformer.onnx"),
        ("torch", "torch", "transformer.safetensors"),
    ):
        session = open_session(manifest(format, entry=entry), folder, runtime=runtime, threads=1)
        with pytest.raises(ValueError, match="the session takes input_ids; got other"):
            session.run({"other": np.zeros((1, 4), np.int64)})
        session.close()
        session.close()
        with pytest.raises(RuntimeError, match="is closed"):
            session.run({"input_ids": np.zeros((1, 4), np.int64)})


def test_a_run_that_fails_is_a_runtime_error(folder: Path) -> None:
    session = open_session(manifest(entry="transformer.onnx"), folder, runtime="onnxruntime", threads=1)
    with pytest.raises(RuntimeError, match="ONNX Runtime failed"):
        session.run({"input_ids": np.zeros((1, 4), np.float32)})


def test_runtime_and_format_must_fit(folder: Path) -> None:
    with pytest.raises(RegistryError, match="is a torch artifact, which runtime 'onnxruntime' cannot load; use"):
        open_session(manifest("torch"), folder, runtime="onnxruntime", threads=1)
    with pytest.raises(RegistryError, match="unknown runtime 'magic', use one of onnxruntime, torch"):
        open_session(manifest(), folder, runtime="magic", threads=1)


def test_a_graph_that_is_not_what_the_manifest_says_is_refused(folder: Path) -> None:
    other = Signature((TensorSpec("input_ids", "INT64", (-1, -1)),), (TensorSpec("scores", "FP32", (-1, 2)),))
    with pytest.raises(RegistryError, match=r"outputs are \{'logits': 'FP32'\}, the manifest says \{'scores'"):
        OnnxSession(manifest(entry="transformer.onnx", session=other), folder)


def test_files_that_cannot_be_loaded_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(RegistryError, match=r"ONNX Runtime cannot load model\.onnx"):
        OnnxSession(manifest(), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(RegistryError, match=r"PyTorch cannot load model\.safetensors"):
        open_session(manifest("torch"), tmp_path, runtime="torch", threads=1)
    save_module(tmp_path / "model.safetensors", torch.nn.Linear(1, 1), "os.system", {})
    with pytest.raises(
        RegistryError, match=r"names class 'os\.system'; registered are .*mean-embedding.*, transformer"
    ):
        open_session(manifest("torch"), tmp_path, runtime="torch", threads=1)
    with pytest.raises(RegistryError, match=r"cannot load tokenizer\.json"):
        Pipeline(manifest(), tmp_path)


# ---------------------------------------------------------------- before the session


def test_text_is_padded_to_the_smallest_bucket_that_holds_the_longest_row(pipeline: Pipeline) -> None:
    ids = pipeline.preprocess(text("free money", "patch"))["input_ids"]
    assert ids.dtype == np.int64
    assert ids.tolist() == [[2, 3, 4, 0], [2, 6, 0, 0]]
    assert pipeline.preprocess(text("free " * 4))["input_ids"].shape == (1, 8)
    assert pipeline.preprocess(text("a " * 500))["input_ids"].shape == (1, 12)
    assert pipeline.preprocess(text(""))["input_ids"].tolist() == [[2, 0, 0, 0]]
    assert pipeline.preprocess(text())["input_ids"].shape == (0, 4)


def test_invalid_utf8_names_the_input_the_row_and_the_byte(pipeline: Pipeline) -> None:
    with pytest.raises(RequestError) as caught:
        pipeline.preprocess(text("fine", "fine", "fine", b"\xffbad"))
    assert caught.value.kind is ErrorKind.BAD_REQUEST
    assert caught.value.message == 'input "text" row 3: not valid UTF-8 (byte 0xff at offset 0)'
    with pytest.raises(RequestError, match=r"row 0: .*0xc3 at offset 4"):
        pipeline.preprocess(text(b"free\xc3"))


@pytest.mark.parametrize("shift", range(5))
def test_a_long_text_is_cut_without_harm_to_its_characters(pipeline: Pipeline, shift: int) -> None:
    long = "x" * shift + "€🎉ü" * 1000
    assert pipeline.preprocess(text(long))["input_ids"].tolist() == [[2, 1, 0, 0]]


def test_other_tensors_pass_unchanged(folder: Path) -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),))
    plain = Pipeline(
        manifest(
            signature=signature,
            session=signature,
            preprocess=msgspec.structs.replace(manifest().preprocess, kind="none"),
            postprocess=Postprocess(),
        ),
        folder,
    )
    given = {"x": np.ones((3, 2), np.float32)}
    assert plain.preprocess(given) is given
    outputs = {"y": np.ones((3, 2), np.float32)}
    assert plain.postprocess(outputs) is outputs
    assert plain.check(outputs, 3) is None
    assert plain.classes(outputs).tolist() == [-1, -1, -1]
    assert plain.summary(outputs).cls == -1


# ---------------------------------------------------------------- after the session


def test_logits_become_probabilities_and_labels(pipeline: Pipeline) -> None:
    logits = np.array([[0.0, 2.0], [3.0, 1.0], [1000.0, -1000.0]], np.float32)
    answer = pipeline.postprocess({"logits": logits})
    assert answer["probabilities"].dtype == np.float32
    np.testing.assert_allclose(answer["probabilities"].sum(axis=1), 1, rtol=1e-6)
    assert answer["probabilities"][0, 1] == pytest.approx(1 / (1 + np.exp(-2.0 / 2.0)))  # temperature 2
    assert answer["label"].tolist() == [b"spam", b"ham", b"ham"]
    assert answer["label"].dtype == object
    assert pipeline.classes({"logits": logits}).tolist() == [1, 0, 0]


def test_the_summary_is_row_zero(pipeline: Pipeline) -> None:
    logits = np.array([[1.0, 4.0], [9.0, 0.0]], np.float32)
    summary = pipeline.summary({"logits": logits})
    p = pipeline.postprocess({"logits": logits})["probabilities"][0]
    assert summary.cls == 1
    assert summary.prob == pytest.approx(p[1], rel=1e-6)
    assert summary.margin == pytest.approx(p[1] - p[0], rel=1e-6)
    assert summary.energy == pytest.approx(-np.log(np.exp(1.0) + np.exp(4.0)), rel=1e-6)


@pytest.mark.parametrize(
    ("outputs", "fault"),
    [
        ({"logits": np.zeros((2, 2), np.float32)}, None),
        ({"logits": np.full((2, 2), 3e38, np.float32)}, None),  # large, but every number is one
        ({"logits": np.array([[0, np.nan], [0, 0]], np.float32)}, "logits holds NaN"),
        ({"logits": np.array([[0, 0], [-np.inf, 0]], np.float32)}, "logits holds Inf"),
        ({"logits": np.array([[np.inf, 0], [-np.inf, 0]], np.float32)}, "logits holds Inf"),
        ({"logits": np.zeros((3, 2), np.float32)}, "logits has shape [3, 2] for a batch of 2"),
        ({"logits": np.zeros((2, 3), np.float32)}, "logits has shape [2, 3] instead of [2, 2]"),
        ({"logits": np.zeros(2, np.float32)}, "logits has shape [2] instead of [2, 2]"),
        ({"logits": np.zeros((2, 2), np.float64)}, "logits has type float64 instead of float32"),
        ({"scores": np.zeros((2, 2), np.float32)}, "outputs scores instead of logits"),
        ({}, "outputs none instead of logits"),
    ],
)
def test_check_says_what_is_wrong(pipeline: Pipeline, outputs: dict[str, np.ndarray], fault: str | None) -> None:
    assert pipeline.check(outputs, 2) == fault


def test_an_unknown_class_is_caught_even_if_the_signature_allows_any(folder: Path) -> None:
    loose = Signature(manifest().session.inputs, (TensorSpec("logits", "FP32", (-1, -1)),))
    pipeline = Pipeline(manifest(session=loose), folder)
    assert pipeline.check({"logits": np.zeros((1, 3), np.float32)}, 1) == "logits has 3 classes, the model knows 2"


def test_labels_are_found_by_name_or_index(pipeline: Pipeline) -> None:
    assert (pipeline.label_index("spam"), pipeline.label_index(0)) == (1, 0)
    for unknown in ("eggs", 2, -1, True):
        with pytest.raises(RequestError, match="known labels: ham, spam"):
            pipeline.label_index(unknown)


def test_a_batch_is_answered_like_its_rows(folder: Path, pipeline: Pipeline) -> None:
    session = open_session(manifest(entry="transformer.onnx"), folder, runtime="onnxruntime", threads=1)
    rows = ["free money", "kernel patch " * 4, "", "grüße"]
    together = session.run(pipeline.preprocess(text(*rows)))["logits"]
    for index, row in enumerate(rows):
        alone = session.run(pipeline.preprocess(text(row)))["logits"]
        np.testing.assert_allclose(alone[0], together[index], rtol=1e-4, atol=1e-5)


def test_terminate_ends_a_run_in_progress(tmp_path: Path) -> None:
    """A loop of a billion rounds stands for an operator that hangs."""
    import threading

    spec = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["keep"], ["keep_on"]), helper.make_node("Sin", ["a"], ["b"])],
        "body",
        [
            spec("round", TensorProto.INT64, []),
            spec("keep", TensorProto.BOOL, []),
            spec("a", TensorProto.FLOAT, [None]),
        ],
        [spec("keep_on", TensorProto.BOOL, []), spec("b", TensorProto.FLOAT, [None])],
    )
    constants = [
        helper.make_tensor("rounds", TensorProto.INT64, [], [10**9]),
        helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
    ]
    graph = helper.make_graph(
        [helper.make_node("Loop", ["rounds", "yes", "x"], ["y"], body=body)],
        "hangs",
        [spec("x", TensorProto.FLOAT, [None])],
        [spec("y", TensorProto.FLOAT, [None])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    signature = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
    session = OnnxSession(manifest(session=signature, files={"model.onnx": File("0" * 64, 0)}), tmp_path)
    failures: list[Exception] = []

    def work() -> None:
        try:
            session.run({"x": np.zeros(1, np.float32)})
        except RuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    for _ in range(1000):
        session.terminate()
        thread.join(0.02)
        if not thread.is_alive():
            break
    assert not thread.is_alive()
    assert "ONNX Runtime failed" in str(failures[0])


@pytest.mark.parametrize(
    ("format", "runtime", "entry"), [("onnx", "onnxruntime", "onnx"), ("torch", "torch", "safetensors")]
)
def test_sessions_that_share_weights_end_each_on_their_own(folder: Path, format: str, runtime: str, entry: str) -> None:
    first = open_session(manifest(format, entry=f"transformer.{entry}"), folder, runtime=runtime, threads=1)
    second = first.share()
    inputs = {"input_ids": np.ones((1, 4), np.int64)}
    want = first.run(inputs)
    first.close()
    for name, values in second.run(inputs).items():
        assert np.array_equal(values, want[name])
    second.close()
    with pytest.raises(RuntimeError, match="closed"):
        second.run(inputs)
