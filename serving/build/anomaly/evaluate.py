"""A detector's evaluation: that of any classifier, and how well its score ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from serving.build.anomaly.data import read_table
from serving.build.anomaly.ranking import Ranked, mean_difference, ranked, resamples
from serving.build.cache import Tick, write_json
from serving.build.evaluate import evaluate


def evaluate_detector(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Write what `evaluate` writes, with average precision, ROC AUC and their intervals in `evaluation.json`."""
    evaluate(out, needs, parameters, tick)
    path = out / "evaluation.json"
    found = msgspec.json.decode(path.read_bytes())
    logits = np.load(out / "logits.npy")
    classes = read_table(needs["data"], "test").classes
    weights = resamples(classes, parameters["draws"], parameters["seed"])
    write_json(path, {**found, **ranked(logits[:, 1] - logits[:, 0], classes, weights).summary()})


def compare_students(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Write `comparison.json`: every run's ranking, and the mean differences of students, controls and teacher.

    All come from the same resamples of the test split.
    """
    classes = read_table(needs["data"], "test").classes
    weights = resamples(classes, parameters["draws"], parameters["seed"])
    logits = np.load(needs["teacher"] / "logits.npy")
    teacher = [ranked(logits[:, 1] - logits[:, 0], classes, weights)]
    with np.load(needs["students"] / "scores.npz") as stored:
        scores = {name: stored[name] for name in stored.files}
    kinds: dict[str, list[Ranked]] = {"distilled": [], "control": []}
    runs = []
    for number, (name, values) in enumerate(scores.items()):
        tick(number, len(scores), name)
        kind, _, seed = name.partition("-")
        kinds[kind].append(ranked(values, classes, weights))
        runs.append({"kind": kind, "seed": int(seed), **kinds[kind][-1].summary()})
    pairs = {
        "distilled_minus_control": (kinds["distilled"], kinds["control"]),
        "distilled_minus_teacher": (kinds["distilled"], teacher),
        "control_minus_teacher": (kinds["control"], teacher),
    }
    write_json(
        out / "comparison.json",
        {
            "runs": runs,
            "draws": parameters["draws"],
            "pairs": {
                name: mean_difference(ours, theirs, parameters["seed"]) for name, (ours, theirs) in pairs.items()
            },
        },
    )
