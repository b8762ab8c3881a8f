"""How good, how calibrated, how large and how fast a variant is: measured through the serving code itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from serving.build import metrics
from serving.build.cache import BuildError, Tick, write_json
from serving.build.cpu import cpu_info
from serving.build.evidence.flips import paired_flips
from serving.build.examples import Examples, read_examples
from serving.build.interface import draft
from serving.build.rows import filled, spread
from serving.clock import SystemClock
from serving.registry.manifest import Manifest
from serving.runtimes.base import Session, open_session
from serving.runtimes.pipeline import Pipeline

_BATCH = 16
#: Batch sizes whose latency is measured, and how often.
SIZES = {1: 200, 4: 96, 16: 64, 32: 32}
_now_ns = SystemClock().monotonic_ns
_RUNTIMES = {"onnx": "onnxruntime", "torch": "torch"}
_HERE = Path(__file__).parent
_RUNTIME = ("answers", "attention", "base", "detectors", "minilm", "modules", "onnx", "pipeline", "torch")
#: Sources that every step depends on that measures through the serving code.
MEASURING = (
    *(_HERE.parent / name for name in ("packing.py", "core/arrays.py", "protocol/tensors.py", "protocol/types.py")),
    *(_HERE.parent / name for name in ("decoding.py", "registry/onnx_file.py", "registry/verified.py")),
    *(_HERE.parent / "runtimes" / f"{name}.py" for name in _RUNTIME),
    *(_HERE / name for name in ("evaluate.py", "cpu.py", "metrics.py", "interface.py", "examples.py", "rows.py")),
    *(_HERE / name for name in ("anomaly/data.py", "evidence/flips.py", "text/data.py")),
)


def open_variant(
    needs: Mapping[str, Path], parameters: Mapping[str, Any], temperature: float
) -> tuple[Manifest, Pipeline, Session]:
    """Pipeline and session over a step's files, as the server would open them, with one thread."""
    manifest = draft(parameters, temperature)
    folder = needs["model"]
    session = open_session(manifest, folder, runtime=_RUNTIMES[manifest.format], threads=1)
    return manifest, Pipeline(manifest, needs.get("files", folder)), session


def infer(pipeline: Pipeline, session: Session, examples: Examples) -> np.ndarray:
    """Logits float32 [n, C], in batches; every batch must pass the server's own check."""
    parts, n = [], len(examples)
    for at in range(0, n, _BATCH):
        end = min(at + _BATCH, n)
        outputs = session.run(pipeline.preprocess(examples.take(at, end)))
        fault = pipeline.check(outputs, end - at)
        if fault:
            raise BuildError(f"rows {at} to {end - 1}: {fault}")
        parts.append(outputs["logits"])
    return np.concatenate(parts)


def calibrate(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Fit the temperature on the calibration split; write `calibration.json` and `probabilities.npy`.

    `needs["teacher"]`, where given, is the teacher's own calibration: what it makes of the variant's answers goes into
    the reliability map, to which the monitor holds the variant later.
    """
    _, pipeline, session = open_variant(needs, parameters, 1.0)
    examples = read_examples(needs["data"], "calibration", parameters["labels"])
    logits = infer(pipeline, session, examples)
    temperature = metrics.fit_temperature(logits, examples.classes)
    probabilities = metrics.softmax(logits, temperature)
    np.save(out / "probabilities.npy", probabilities)
    answers = logits.argmax(axis=1)
    row = np.arange(len(answers))
    teacher = np.load(needs["teacher"] / "probabilities.npy")[row, answers] if "teacher" in needs else None
    write_json(
        out / "calibration.json",
        {
            "split": "calibration",
            "rows": len(examples),
            "temperature": temperature,
            "nll_before": metrics.negative_log_likelihood(logits, examples.classes),
            "nll_after": metrics.negative_log_likelihood(logits, examples.classes, temperature),
            "reliability": metrics.reliability_map(probabilities[row, answers], answers == examples.classes, teacher),
        },
    )


def evaluate(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Measure on the test split; write `evaluation.json` and `logits.npy`.

    `needs["teacher"]`, where given, is the teacher's own evaluation, against which answers are compared.
    """
    temperature = msgspec.json.decode((needs["calibration"] / "calibration.json").read_bytes())["temperature"]
    manifest, pipeline, session = open_variant(needs, parameters, temperature)
    examples = read_examples(needs["data"], "test", parameters["labels"])
    logits = infer(pipeline, session, examples)
    tick(1, 2 + len(SIZES), "latency")
    np.save(out / "logits.npy", logits)
    probabilities = pipeline.postprocess({"logits": logits})["probabilities"]
    judge = np.load(needs["teacher"] / "logits.npy").argmax(axis=1) if "teacher" in needs else None
    evaluation = {
        "split": "test",
        **quality(probabilities, logits.argmax(axis=1), examples.classes, judge, parameters["labels"]),
        "nll": metrics.negative_log_likelihood(logits, examples.classes, temperature),
        "batch_neighbour_delta": neighbour_delta(pipeline, session, examples, logits),
        "latency_ms": _latency(pipeline, session, examples, tick),
        "bytes": sum(
            (needs["model"] / name if name == manifest.entry else needs["files"] / name).stat().st_size
            for name in manifest.files
        ),
        "model_bytes": (needs["model"] / manifest.entry).stat().st_size,
        "cpu": cpu_info(),
    }
    write_json(out / "evaluation.json", evaluation)


def quality(
    probabilities: np.ndarray,
    answers: np.ndarray,
    classes: np.ndarray,
    judge: np.ndarray | None,
    labels: Sequence[str],
) -> dict[str, Any]:
    """What an evaluation says of a classifier's answers.

    Args:
        probabilities: float32 [n, C].
        answers: class indices [n].
        classes: the truth [n].
        judge: the teacher's answers [n]; None if this is the teacher.
        labels: class names.
    """
    n, right = len(answers), answers == classes
    confidence = probabilities[np.arange(n), answers]  # of the class named: a threshold may name the less likely one
    ece, ece_if_perfect = metrics.ece(confidence, right), metrics.null_ece(confidence)
    teacher = answers if judge is None else judge
    return {
        "rows": n,
        "correct": int(right.sum()),
        "accuracy": float(right.mean()),
        "accuracy_ci": metrics.wilson(int(right.sum()), n),
        "recall": {label: float(right[classes == index].mean()) for index, label in enumerate(labels)},
        **paired_flips(answers, teacher, classes),
        "ece": ece,
        "ece_if_perfect": ece_if_perfect,
        "ece_debiased": max(0.0, ece - ece_if_perfect),
        "brier": metrics.brier(probabilities, classes),
    }


def neighbour_delta(pipeline: Pipeline, session: Session, examples: Examples, logits: np.ndarray) -> float:
    """Largest difference of a logit between a row answered alone and in its batch, over 64 rows."""
    chosen = spread(len(logits), 64)
    alone = [session.run(pipeline.preprocess(examples.take(at, at + 1)))["logits"] for at in chosen.tolist()]
    return float(np.abs(np.concatenate(alone) - logits[chosen]).max())


def mixed_batches(examples: Examples, size: int, most: int) -> list[dict[str, np.ndarray]]:
    """At most so many batches of `size` rows, the rows of each from all over the split, as those of traffic are.

    Where the split has fewer rows than one batch they are repeated.
    """
    count = max(1, min(most, len(examples) // size))
    rows = filled(len(examples), size * count)
    return [dict(examples.at(rows[at::count]).inputs) for at in range(count)]


def _latency(pipeline: Pipeline, session: Session, examples: Examples, tick: Tick) -> dict[str, Any]:
    """Milliseconds of one thread: the session alone, and with pre- and postprocessing."""
    measured: dict[str, Any] = {"threads": 1}
    for step, (size, runs) in enumerate(SIZES.items()):
        batches = mixed_batches(examples, size, min(64, runs))
        ready = [pipeline.preprocess(batch) for batch in batches]

        def whole(index: int, batches: list[dict[str, np.ndarray]] = batches) -> None:
            pipeline.postprocess(session.run(pipeline.preprocess(batches[index % len(batches)])))

        def bare(index: int, ready: list[dict[str, np.ndarray]] = ready) -> None:
            session.run(ready[index % len(ready)])

        measured[f"batch_{size}"] = percentiles(bare, runs)
        measured[f"batch_{size}_whole"] = percentiles(whole, runs)
        tick(2 + step, 2 + len(SIZES), "latency")
    return measured


def percentiles(call: Callable[[int], object], runs: int) -> dict[str, float]:
    """Milliseconds of `runs` calls, after eight that do not count."""
    for index in range(8):
        call(index)
    spent = []
    for index in range(runs):
        started = _now_ns()
        call(index)
        spent.append((_now_ns() - started) / 1e6)
    p50, p95, p99 = np.percentile(spent, (50, 95, 99))
    return {"p50": round(float(p50), 4), "p95": round(float(p95), 4), "p99": round(float(p99), 4)}
