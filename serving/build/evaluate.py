"""How good, how calibrated, how large and how fast a variant is: measured through the serving code itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from serving.build import metrics
from serving.build.cache import BuildError, Tick, write_json
from serving.build.cpu import cpu_info
from serving.build.data import ROWS, Split, read_split
from serving.build.manifests import draft
from serving.clock import SystemClock
from serving.registry.manifest import Manifest
from serving.runtimes.base import Session, open_session
from serving.runtimes.pipeline import Pipeline

_BATCH = 16
_now_ns = SystemClock().monotonic_ns
_RUNTIMES = {"onnx": "onnxruntime", "torch": "torch"}


def _open(
    needs: Mapping[str, Path], parameters: Mapping[str, Any], temperature: float
) -> tuple[Manifest, Pipeline, Session]:
    """Pipeline and session over a step's files, as the server would open them, with one thread."""
    manifest = draft(parameters, temperature)
    folder = needs["model"]
    session = open_session(manifest, folder, runtime=_RUNTIMES[manifest.format], threads=1)
    return manifest, Pipeline(manifest, needs["tokenizer"]), session


def _infer(pipeline: Pipeline, session: Session, split: Split) -> np.ndarray:
    """Logits float32 [n, C], in batches; every batch must pass the server's own check."""
    texts, parts = split.blob, []
    for at in range(0, len(texts), _BATCH):
        batch = texts[at : at + _BATCH]
        outputs = session.run(pipeline.preprocess({"text": batch}))
        fault = pipeline.check(outputs, len(batch))
        if fault:
            raise BuildError(f"rows {at} to {at + len(batch) - 1}: {fault}")
        parts.append(outputs["logits"])
    return np.concatenate(parts)


def calibrate(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Fit the temperature on the calibration split; write `calibration.json` and `probabilities.npy`.

    `needs["teacher"]`, where given, is the teacher's own calibration: what it makes of the variant's answers goes into
    the reliability map, to which the monitor holds the variant later.
    """
    _, pipeline, session = _open(needs, parameters, 1.0)
    split = read_split(needs["data"] / ROWS, "calibration", parameters["labels"])
    logits = _infer(pipeline, session, split)
    temperature = metrics.fit_temperature(logits, split.classes)
    probabilities = metrics.softmax(logits, temperature)
    np.save(out / "probabilities.npy", probabilities)
    answers = logits.argmax(axis=1)
    row = np.arange(len(answers))
    teacher = np.load(needs["teacher"] / "probabilities.npy")[row, answers] if "teacher" in needs else None
    write_json(
        out / "calibration.json",
        {
            "split": "calibration",
            "rows": len(split.texts),
            "temperature": temperature,
            "nll_before": metrics.negative_log_likelihood(logits, split.classes),
            "nll_after": metrics.negative_log_likelihood(logits, split.classes, temperature),
            "reliability": metrics.reliability_map(probabilities[row, answers], answers == split.classes, teacher),
        },
    )


def evaluate(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Measure on the test split; write `evaluation.json` and `logits.npy`.

    `needs["teacher"]`, where given, is the teacher's own evaluation, against which answers are compared.
    """
    temperature = msgspec.json.decode((needs["calibration"] / "calibration.json").read_bytes())["temperature"]
    manifest, pipeline, session = _open(needs, parameters, temperature)
    split = read_split(needs["data"] / ROWS, "test", parameters["labels"])
    logits = _infer(pipeline, session, split)
    tick(1, 4, "latency")
    np.save(out / "logits.npy", logits)
    probabilities = pipeline.probabilities(logits)
    answers = logits.argmax(axis=1)
    right = answers == split.classes
    confidence = probabilities.max(axis=1)
    n = len(answers)
    ece, ece_if_perfect = metrics.ece(confidence, right), metrics.null_ece(confidence)
    teacher = np.load(needs["teacher"] / "logits.npy").argmax(axis=1) if "teacher" in needs else answers
    flips = int((answers != teacher).sum())
    negative = int(((teacher == split.classes) & ~right).sum())
    evaluation = {
        "split": "test",
        "rows": n,
        "correct": int(right.sum()),
        "accuracy": float(right.mean()),
        "accuracy_ci": metrics.wilson(int(right.sum()), n),
        "recall": {
            label: float(right[split.classes == index].mean()) for index, label in enumerate(parameters["labels"])
        },
        "teacher_disagreement": flips / n,
        "teacher_disagreement_ci": metrics.wilson(flips, n),
        "teacher_flips": flips,
        "negative_flips": negative,
        "negative_flip_upper": metrics.clopper_pearson_upper(negative, n),
        "ece": ece,
        "ece_if_perfect": ece_if_perfect,
        "ece_debiased": max(0.0, ece - ece_if_perfect),
        "brier": metrics.brier(probabilities, split.classes),
        "nll": metrics.negative_log_likelihood(logits, split.classes, temperature),
        "batch_neighbour_delta": _neighbour_delta(pipeline, session, split, logits),
        "latency_ms": _latency(pipeline, session, split, tick),
        "bytes": sum(
            path.stat().st_size for path in (needs["model"] / manifest.entry, needs["tokenizer"] / "tokenizer.json")
        ),
        "model_bytes": (needs["model"] / manifest.entry).stat().st_size,
        "cpu": cpu_info(),
    }
    write_json(out / "evaluation.json", evaluation)


def _neighbour_delta(pipeline: Pipeline, session: Session, split: Split, logits: np.ndarray) -> float:
    """Largest difference of a logit between a row answered alone and in its batch, over 64 rows."""
    alone = [
        session.run(pipeline.preprocess({"text": split.blob[at : at + 1]}))["logits"]
        for at in range(min(64, len(logits)))
    ]
    return float(np.abs(np.concatenate(alone) - logits[: len(alone)]).max())


def _latency(pipeline: Pipeline, session: Session, split: Split, tick: Tick) -> dict[str, Any]:
    """Milliseconds of one thread: the session alone, and with pre- and postprocessing."""
    measured: dict[str, Any] = {"threads": 1}
    texts = split.blob
    for step, size in enumerate((1, 16)):
        batches = [texts[at : at + size] for at in range(0, len(texts) - size + 1, size)][:64]
        ready = [pipeline.preprocess({"text": batch}) for batch in batches]
        runs = 200 if size == 1 else 64

        def whole(index: int, batches: list[np.ndarray] = batches) -> None:
            pipeline.postprocess(session.run(pipeline.preprocess({"text": batches[index % len(batches)]})))

        def bare(index: int, ready: list[dict[str, np.ndarray]] = ready) -> None:
            session.run(ready[index % len(ready)])

        measured[f"batch_{size}"] = _percentiles(bare, runs)
        measured[f"batch_{size}_with_text"] = _percentiles(whole, runs)
        tick(2 + step, 4, "latency")
    return measured


def _percentiles(call: Callable[[int], None], runs: int) -> dict[str, float]:
    for index in range(8):
        call(index)
    spent = []
    for index in range(runs):
        started = _now_ns()
        call(index)
        spent.append((_now_ns() - started) / 1e6)
    p50, p95, p99 = np.percentile(spent, (50, 95, 99))
    return {"p50": round(float(p50), 4), "p95": round(float(p95), 4), "p99": round(float(p99), 4)}
