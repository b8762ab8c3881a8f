"""Quantization-aware distillation: the student goes on learning from its teacher while it is rounded to INT8.

Its control goes on from the same student with the same rounding, rows and seed, by the labels alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serving.build.cache import Made, Tick, write_json
from serving.build.text.data import ROWS, read_split
from serving.build.text.paired import paired
from serving.build.text.train import encode, fit, words_of
from serving.build.training import prepare_torch, write_weights

KINDS = ("qad", "control")


def train_rounded(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Write `model.safetensors`, `control.safetensors` and `qad.json`.

    Args:
        needs: `data`, `tokenizer`, `teacher` (its `train_logits.npy`), `student` (where both start).
        parameters: `student` (a `StudentRecipe` with `qad`), `reduce_range`.
    """
    from safetensors import safe_open

    from serving.build.qat import REDUCED_STEPS, STEPS, rounding
    from serving.runtimes.torch import load_module

    student, source = parameters["student"], needs["student"] / "model.safetensors"
    split = read_split(needs["data"] / ROWS, "train", parameters["labels"])
    rows = encode(needs["tokenizer"], split.texts, parameters["max_chars"])
    words, seed = words_of(needs["tokenizer"]), student["seeds"][0]
    soft = (np.load(needs["teacher"] / "train_logits.npy"), student["temperature"], student["alpha"])
    with safe_open(source, framework="pt") as stored:
        metadata = stored.metadata()
    losses: dict[str, list[float]] = {}
    for number, kind in enumerate(KINDS):
        prepare_torch(seed, parameters["threads"])
        module = load_module(source, "student")

        def report(done: float, total: float, note: str = "", number: int = number, kind: str = kind) -> None:
            tick(number + done / total, len(KINDS), f"{kind}, {note}")

        with rounding(module, REDUCED_STEPS if parameters["reduce_range"] else STEPS):
            losses[kind] = fit(
                module,
                rows,
                split.classes,
                student["qad"],
                words=words,
                seed=seed,
                tick=report,
                soft=soft if kind == "qad" else None,
            )
        write_weights(out / ("model.safetensors" if kind == "qad" else "control.safetensors"), module, metadata)
    write_json(out / "qad.json", {"seed": seed, "losses": losses, "reduce_range": parameters["reduce_range"]})


def compared(made: Mapping[str, Made], truth: np.ndarray) -> dict[str, Any]:
    """INT8 made after training, trained with rounding, and the control of that, on the test split.

    Returns:
        JSON values: `rows`, name -> what was measured of it; `against`, name -> the paired comparison of the student
        trained with rounding with that one.
    """
    names = {
        "INT8 after training": "distilled-int8",
        "trained with rounding": "distilled-qad",
        "its control": "qad-control",
    }
    right = {
        name: np.load(made[f"{step}-evaluation"].folder / "logits.npy").argmax(axis=1) == truth
        for name, step in names.items()
    }
    ours = right.pop("trained with rounding")
    keys = ("accuracy", "accuracy_ci", "teacher_disagreement", "model_bytes")
    return {
        "rows": {
            name: {key: made[f"{step}-evaluation"].read("evaluation.json")[key] for key in keys}
            for name, step in names.items()
        },
        "against": {name: paired(ours, theirs) for name, theirs in right.items()},
    }
