"""What a variant does where it matters beyond the mean: slices, perturbed and hostile inputs, memory, overflow.

The kind of a recipe says what its rows, slices and perturbations are (`Subject`); all the rest is the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from serving.build import metrics
from serving.build.cache import Tick, write_json
from serving.build.evaluate import infer
from serving.build.evidence import adversarial, memory, perturb, saturation, slices
from serving.build.examples import Examples
from serving.build.rows import filled
from serving.registry.manifest import Manifest
from serving.runtimes.base import Session, open_session
from serving.runtimes.pipeline import Pipeline

#: Perturbed rows at most: enough for rates to within a few percent, little enough for a quick build.
ROWS = 400
#: Tries of the random search for a perturbation that turns a right answer wrong.
TRIES = 6
_BATCH = 16
_RUNTIMES = {"onnx": "onnxruntime", "torch": "torch"}

Inputs = dict[str, np.ndarray]


class Subject(NamedTuple):
    """The test rows, as a request would carry them.

    `inputs`: client tensors [n, …]; `truth`: class indices [n]; `masks`: slice -> bool [n]; `chosen`: indices of the
    rows that are perturbed; `perturbed`: name -> client tensors of those rows; `hostile`: `TRIES` further perturbations
    of the same rows; `target`: what an attacker is set on, for rows of numbers.
    """

    inputs: Inputs
    truth: np.ndarray
    masks: dict[str, np.ndarray]
    chosen: np.ndarray
    perturbed: dict[str, Inputs]
    hostile: list[Inputs]
    target: adversarial.Target | None = None


def examine(
    subject: Subject,
    manifest: Manifest,
    pipeline: Pipeline,
    out: Path,
    needs: Mapping[str, Path],
    tick: Tick,
) -> None:
    """Write `evidence.json`, `answers.npy` (class indices, one row for each perturbation and try) and `distances.npy`.

    Args:
        needs: `model`, the folder of the artifact; `evaluation`, its own (`logits.npy`); for a variant that stands
            in for another, `teacher`, the evaluation, and `teacher_evidence`, the examination, of that one; and for one
            that was made of another in the same format, `source`, the folder of that.
    """
    runtime = _RUNTIMES[manifest.format]
    session = open_session(manifest, needs["model"], runtime=runtime, threads=1)
    logits = np.load(needs["evaluation"] / "logits.npy")
    answers = logits.argmax(axis=1)
    teacher = np.load(needs.get("teacher", needs["evaluation"]) / "logits.npy").argmax(axis=1)
    total = len(subject.perturbed) + len(subject.hostile) + 1
    shaken = []
    for number, inputs in enumerate((*subject.perturbed.values(), *subject.hostile)):
        tick(number, total, "perturbed rows")
        shaken.append(infer(pipeline, session, Examples(inputs, subject.truth[subject.chosen])).argmax(axis=1))
    tick(total - 1, total, "attack")
    moved = _attacked(subject, pipeline, session, logits.shape[1])
    np.save(out / "distances.npy", moved)
    session.close()
    ours = np.array(shaken, np.int64).reshape(len(shaken), -1)
    np.save(out / "answers.npy", ours)
    before = needs.get("teacher_evidence")
    theirs, theirs_moved = (
        (np.load(before / "answers.npy"), np.load(before / "distances.npy")) if before is not None else (ours, moved)
    )
    tick(total - 1, total, "memory")
    ready = pipeline.preprocess(_batch(subject))
    taken = memory.measure(manifest, needs["model"], runtime=runtime, inputs=ready, scratch=out)
    write_json(
        out / "evidence.json",
        {
            "slices": slices.compare_slices(subject.masks, answers == subject.truth, teacher == subject.truth),
            **_robustness(subject, answers, ours, teacher, theirs),
            "adversarial": adversarial.compare(moved, theirs_moved) if len(moved) else None,
            "uncalibrated": _reliability(logits, subject.truth, 1.0),
            "memory": msgspec.to_builtins(taken) if taken else None,
            "saturation": saturation.audit(needs["model"] / manifest.entry) if manifest.format == "onnx" else None,
            "activations": saturation.activations(
                needs["model"] / manifest.entry, pipeline, subject.inputs, _source(needs, manifest.entry)
            )
            if manifest.format == "onnx"
            else None,
        },
    )


def _batch(subject: Subject) -> Inputs:
    """A full batch, however few rows there are: its memory is held against that of other models."""
    rows = filled(len(subject.truth), _BATCH)
    return {name: values[rows] for name, values in subject.inputs.items()}


def _source(needs: Mapping[str, Path], entry: str) -> Path | None:
    return needs["source"] / entry if "source" in needs else None


def _attacked(subject: Subject, pipeline: Pipeline, session: Session, classes: int) -> np.ndarray:
    """See `adversarial.distances`; of no rows where nothing can be attacked, or the library is not installed."""
    target = subject.target
    if target is None or adversarial.library() is None:
        return np.empty(0)
    name = target.input

    def answers(rows: np.ndarray) -> np.ndarray:
        logits = infer(pipeline, session, Examples({name: rows}, np.zeros(len(rows), np.int64)))
        return np.asarray(logits.argmax(axis=1))

    return adversarial.distances(answers, classes, target)


def _robustness(
    subject: Subject, answers: np.ndarray, ours: np.ndarray, teacher: np.ndarray, theirs: np.ndarray
) -> dict[str, Any]:
    """`perturbations` by name, and `hostile`: right answers that one of the tries turned wrong."""
    rows = len(subject.chosen)
    clean, before, truth = (values[subject.chosen] for values in (answers, teacher, subject.truth))
    perturbations = {
        name: perturb.divergence(clean, ours[number], before, theirs[number])
        for number, name in enumerate(subject.perturbed)
    }
    first = len(subject.perturbed)
    if not subject.hostile:
        return {"perturbations": perturbations, "hostile": None}
    held = [(flat == truth).all(axis=0) for flat in (ours[first:], theirs[first:])]
    fallen, fallen_teacher = (clean == truth) & ~held[0], (before == truth) & ~held[1]
    return {
        "perturbations": perturbations,
        "hostile": {
            "tries": len(subject.hostile),
            "rows": rows,
            "broken_rate": float(fallen.mean()),
            "broken_rate_ci": metrics.wilson(int(fallen.sum()), rows),
            "teacher_broken_rate": float(fallen_teacher.mean()),
            "p_value": metrics.sign_test(int((fallen & ~fallen_teacher).sum()), int((~fallen & fallen_teacher).sum())),
        },
    }


def _reliability(logits: np.ndarray, truth: np.ndarray, temperature: float) -> dict[str, float]:
    """Calibration of softmax(logits / temperature) on these rows; see `metrics` for each number."""
    probabilities = metrics.softmax(logits, temperature)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    error = metrics.ece(confidence, right)
    return {
        "ece": error,
        "ece_debiased": max(0.0, error - metrics.null_ece(confidence)),
        "brier": metrics.brier(probabilities, truth),
        "nll": metrics.negative_log_likelihood(logits, truth, temperature),
    }
