"""A small family of real models on the quickstart's mails, some damaged for real, and what each of them answers.

The baseline is a network on word frequencies, the candidate a smaller one taught by it and quantized to INT8 by ONNX
Runtime. Every damaged sibling is an edit of that INT8 graph, or the same network quantized with ranges that are not its
own; nothing about their answers is made up. It takes seconds, so nothing is kept.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from monitoring.config import ReliabilityMap
from serving.build.metrics import ece, reliability_map
from serving.build.text.data import read_rows
from serving.runtimes.inside import Inside
from serving.runtimes.saturation import ranges_of

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DATA = Path(__file__).resolve().parents[2] / "deployments" / "quickstart" / "data" / "mails.jsonl.gz"
LABELS = ("ham", "spam")
WORDS = 3000
BASELINE_LAYERS, CANDIDATE_LAYERS = (64, 32), (32, 16)
HEALTHY = "healthy"
#: Logits are multiplied by so much: the same classes, more certain of them.
TEMPERATURES = (1.25, 1.5, 2.0)
#: One weight scale in so many is wrong, by this factor.
ONE_IN, SCALES = 4, (2.0, 4.0, 8.0)
#: The range of the first hidden layer is too short by this factor: what is beyond it saturates.
SATURATIONS = (4.0, 8.0, 16.0)
#: The slice that a single-slice failure strikes: the shortest mails.
SHORT = 0.1


class Recorded(NamedTuple):
    """Real answers to real rows.

    Attributes:
        classes: true class of each row, int64 [n].
        short: whether the row is in the slice "short", bool [n].
        baseline: the baseline's probability of each class, float64 [n, 2].
        answers: the same of the candidate, by name; `HEALTHY` is the sound one.
        differs: share of rows of the *validation* split on which the sound one differs from the baseline, which is
            what a manifest would say; the rows above are the test split.
        reliability: how calibrated the sound one is on the validation split, which a manifest says too.
        outside: share of the activations of each row that are outside their ranges, by name, float64 [n].
        saturation: the mean of that of the sound one, on the validation split.
        facts: one sentence about each variant.
    """

    classes: Ints
    short: npt.NDArray[np.bool_]
    baseline: Floats
    answers: dict[str, Floats]
    differs: float
    reliability: ReliabilityMap
    outside: dict[str, Floats]
    saturation: float
    facts: dict[str, str]


def record(seed: int = 7) -> Recorded:
    """Train, quantize, damage, and answer every row of the test split."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    rows = read_rows(DATA)
    texts = {split: [row.text for row in rows if row.split == split] for split in {row.split for row in rows}}
    classes = {
        split: np.array([LABELS.index(row.label) for row in rows if row.split == split], np.int64) for split in texts
    }
    words = TfidfVectorizer(max_features=WORDS, sublinear_tf=True).fit(texts["train"])
    inputs = {split: words.transform(texts[split]).toarray().astype(np.float32) for split in texts}
    counts = _counts(words, texts["calibration"])
    baseline = _network(BASELINE_LAYERS, inputs["train"], classes["train"], seed)
    taught = _predicted(baseline, inputs["train"])
    candidate = _network(CANDIDATE_LAYERS, inputs["train"], taught, seed + 1)
    with tempfile.TemporaryDirectory() as folder:
        paths = _variants(Path(folder), candidate, inputs["calibration"], counts)
        logits = {name: _run(path, inputs["test"]) for name, path in paths.items()}
        validation = _run(paths[HEALTHY], inputs["validation"])
        saturated = {name: _outside(path, inputs["test"]) for name, path in paths.items()}
        saturation = float(_outside(paths[HEALTHY], inputs["validation"]).mean())
    theirs = _probabilities(_logits(baseline, inputs["test"]))
    answers = {name: _probabilities(values) for name, values in logits.items()}
    lengths = np.array([len(text) for text in texts["test"]])
    return Recorded(
        classes["test"],
        lengths <= np.quantile(lengths, SHORT),
        theirs,
        answers,
        float(np.mean((validation > 0) != (_logits(baseline, inputs["validation"]) > 0))),
        reliability(
            classes["validation"],
            _probabilities(_logits(baseline, inputs["validation"])),
            _probabilities(validation),
        ),
        saturated,
        saturation,
        {name: _fact(classes["test"], theirs, found) for name, found in answers.items()},
    )


def reliability(classes: Ints, baseline: Floats, answers: Floats) -> ReliabilityMap:
    """How calibrated answers are, by the truth and by the baseline, as the build measures it."""
    guess, row = answers.argmax(axis=1), np.arange(len(classes))
    return msgspec.convert(reliability_map(answers[row, guess], guess == classes, baseline[row, guess]), ReliabilityMap)


def _counts(words: Any, texts: list[str]) -> npt.NDArray[np.float32]:
    """The same words by another pre-processing: plain counts, not weighted, not normalized."""
    from sklearn.feature_extraction.text import CountVectorizer

    plain = CountVectorizer(vocabulary=words.vocabulary_)
    found: npt.NDArray[np.float32] = plain.transform(texts).toarray().astype(np.float32)
    return found


def _network(layers: tuple[int, ...], inputs: npt.NDArray[np.float32], classes: Ints, seed: int) -> Any:
    from sklearn.neural_network import MLPClassifier

    network = MLPClassifier(layers, alpha=1e-3, max_iter=8, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it could go on, and says so
        return network.fit(inputs, classes)


def _logits(network: Any, inputs: npt.NDArray[np.float32]) -> Floats:
    """Log odds of the second class, float64 [n]."""
    values = inputs.astype(np.float64)
    last = len(network.coefs_) - 1
    for number, (weights, bias) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        values = values @ weights + bias
        if number < last:
            values = np.maximum(values, 0.0)
    found: Floats = values[:, 0]
    return found


def _predicted(network: Any, inputs: npt.NDArray[np.float32]) -> Ints:
    return (_logits(network, inputs) > 0).astype(np.int64)


def _probabilities(logits: Floats) -> Floats:
    second = 1.0 / (1.0 + np.exp(-np.clip(logits, -500.0, 500.0)))
    return np.stack([1.0 - second, second], axis=1)


def _graph(network: Any, path: Path) -> None:
    """The network as ONNX: Gemm and Relu by turns; the output is the log odds, [n, 1]."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, last = [], [], "x"
    for number, (matrix, bias) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        weights += [numpy_helper.from_array(matrix.astype(np.float32), f"w{number}")]
        weights += [numpy_helper.from_array(bias.astype(np.float32), f"b{number}")]
        final = number == len(network.coefs_) - 1
        out = "logit" if final else f"a{number}"
        nodes.append(helper.make_node("Gemm", [last, f"w{number}", f"b{number}"], [out], name=f"gemm{number}"))
        if not final:
            nodes.append(helper.make_node("Relu", [out], [f"h{number}"], name=f"relu{number}"))
            last = f"h{number}"
    graph = helper.make_graph(
        nodes,
        "mails",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WORDS])],
        [helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["n", 1])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)


class _Reader:
    """Calibration batches, as ONNX Runtime asks for them."""

    def __init__(self, rows: npt.NDArray[np.float32]) -> None:
        self._batches: Iterator[npt.NDArray[np.float32]] = iter(np.array_split(rows, max(1, len(rows) // 64)))

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"x": batch}


def _quantized(source: Path, target: Path, rows: npt.NDArray[np.float32]) -> Path:
    """Static INT8 with ranges from these rows, which may be somebody else's."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    logging.getLogger().setLevel(logging.ERROR)  # the quantizer logs to the root logger
    quantize_static(
        source,
        target,
        _Reader(rows),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )
    return target


def _variants(
    folder: Path, network: Any, own: npt.NDArray[np.float32], others: npt.NDArray[np.float32]
) -> dict[str, Path]:
    plain = folder / "plain.onnx"
    _graph(network, plain)
    paths = {HEALTHY: _quantized(plain, folder / "int8.onnx", own)}
    paths["wrong cache"] = _quantized(plain, folder / "cache.onnx", others)
    edits: dict[str, Callable[[Any], None]] = {}
    edits |= {f"temperature {by:g}": lambda graph, by=by: _sharpen(graph, by) for by in TEMPERATURES}
    edits |= {f"scale ×{by:g}": lambda graph, by=by: _wrong_scale(graph, by) for by in SCALES}
    edits |= {f"saturated ×{by:g}": lambda graph, by=by: _saturate(graph, by) for by in SATURATIONS}
    for number, (name, edit) in enumerate(edits.items()):
        paths[name] = _edited(paths[HEALTHY], folder / f"edited{number}.onnx", edit)
    return paths


def _edited(source: Path, target: Path, edit: Callable[[Any], None]) -> Path:
    import onnx

    model = onnx.load(source)
    edit(model.graph)
    onnx.save(model, target)
    return target


def _change(graph: Any, name: str, change: Callable[[Any], Any]) -> None:
    """Replace one stored tensor. Raises `LookupError` if the quantizer names it otherwise."""
    from onnx import numpy_helper

    for tensor in graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))
            return
    raise LookupError(f"no tensor {name!r} among {sorted(tensor.name for tensor in graph.initializer)}")


def _wrong_scale(graph: Any, by: float) -> None:
    def change(scales: Any) -> Any:
        scales[::ONE_IN] *= np.float32(by)
        return scales

    _change(graph, "w0_scale", change)


def _saturate(graph: Any, by: float) -> None:
    _change(graph, "h0_scale", lambda scale: (scale / np.float32(by)).astype(np.float32))


def _sharpen(graph: Any, by: float) -> None:
    from onnx import helper, numpy_helper

    for node in graph.node:
        node.output[:] = ["blunt" if name == "logit" else name for name in node.output]
        node.input[:] = ["blunt" if name == "logit" else name for name in node.input]
    graph.initializer.append(numpy_helper.from_array(np.float32(by), "by"))
    graph.node.append(helper.make_node("Mul", ["blunt", "by"], ["logit"], name="sharpen"))


def _run(path: Path, inputs: npt.NDArray[np.float32]) -> Floats:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found: Floats = session.run(["logit"], {"x": inputs})[0][:, 0].astype(np.float64)
    return found


def _outside(path: Path, inputs: npt.NDArray[np.float32]) -> Floats:
    """Share of each row's activations that are outside their ranges, averaged over the tensors, float64 [n]."""
    import onnx

    model = onnx.load(path)
    ranges = ranges_of(model)
    shown = Inside(model, [one.name for one in ranges]).run({"x": inputs})
    beyond = [(shown[one.name] < one.low) | (shown[one.name] > one.high) for one in ranges]
    shares: Floats = np.mean([each.reshape(len(inputs), -1).mean(axis=1) for each in beyond], axis=0)
    return shares


def _fact(classes: Ints, baseline: Floats, found: Floats) -> str:
    guess, theirs = found.argmax(axis=1), baseline.argmax(axis=1)
    sure, right = found.max(axis=1), guess == classes
    return (
        f"differs on {np.mean(guess != theirs):.1%}, wrong where the baseline is right on "
        f"{np.mean((theirs == classes) & ~right):.1%}, accuracy {right.mean():.1%}, ECE {ece(sure, right):.3f}"
    )
