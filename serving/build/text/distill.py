"""The student, taught by the teacher, and its control, taught by the labels alone.

Without the control the gain of distillation is not known: both start from the same seeds, see the same
batches and differ only in the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serving.build.cache import Tick, write_json
from serving.build.text.data import ROWS, read_split
from serving.build.text.train import encode, fit, logits_of, vocabulary_size, words_of
from serving.build.training import prepare_torch, save_module


def train_students(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Write `model.safetensors` (the student of the first seed), `control.safetensors` and `students.json`.

    `students.json` holds, for each seed, test accuracy and disagreement with the teacher of student and control.
    """
    import torch

    from serving.runtimes.modules import CLASSES
    from serving.runtimes.torch import load_module

    recipe = dict(parameters["student"])
    path, labels = needs["data"] / ROWS, parameters["labels"]
    train, test = read_split(path, "train", labels), read_split(path, "test", labels)
    rows = encode(needs["tokenizer"], train.texts, parameters["max_chars"])
    test_rows = encode(needs["tokenizer"], test.texts, parameters["max_chars"])
    teacher_train = np.load(needs["teacher"] / "train_logits.npy")
    teacher_test = logits_of(load_module(needs["teacher"] / "model.safetensors", "teacher"), test_rows).argmax(axis=1)
    arguments = {
        "vocabulary": vocabulary_size(needs["tokenizer"]),
        "classes": len(labels),
        **{key: recipe[key] for key in ("width", "hidden", "dropout")},
    }
    words = words_of(needs["tokenizer"])
    runs: list[dict[str, Any]] = []
    seeds = recipe["seeds"]
    for number, seed in enumerate(seeds):
        for kind in ("distilled", "control"):
            prepare_torch(seed, parameters["threads"])
            module = CLASSES["mean-embedding"](**arguments)
            soft = (teacher_train, recipe["temperature"], recipe["alpha"]) if kind == "distilled" else None
            part = len(runs)

            def report(done: float, total: float, note: str = "", part: int = part, kind: str = kind) -> None:
                tick(part + done / total, 2 * len(seeds), f"{kind}, {note}")

            losses = fit(module, rows, train.classes, recipe["train"], words=words, seed=seed, tick=report, soft=soft)
            answers = logits_of(module, test_rows).argmax(axis=1)
            runs.append(
                {
                    "kind": kind,
                    "seed": seed,
                    "accuracy": float((answers == test.classes).mean()),
                    "teacher_disagreement": float((answers != teacher_test).mean()),
                    "train_kl": _mean_kl(teacher_train, logits_of(module, rows)),
                    "losses": losses,
                }
            )
            if number == 0:
                name = "model.safetensors" if kind == "distilled" else "control.safetensors"
                save_module(out / name, module, "mean-embedding", arguments)
    size = sum(parameter.numel() for parameter in module.parameters())
    write_json(out / "students.json", {"runs": runs, "parameters": size, "threads": torch.get_num_threads()})


def train_candidate(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Train one candidate of a search with each seed; alpha 0 makes it a control.

    Write `model.safetensors` (the first seed's) and `candidate.json`: `runs`, each with its seed and its accuracy on
    the validation split, and `parameters`.
    """
    from serving.runtimes.modules import CLASSES

    recipe = dict(parameters["student"])
    path, labels = needs["data"] / ROWS, parameters["labels"]
    train, validation = read_split(path, "train", labels), read_split(path, "validation", labels)
    rows, held = (encode(needs["tokenizer"], split.texts, parameters["max_chars"]) for split in (train, validation))
    words = words_of(needs["tokenizer"])
    arguments = {
        "vocabulary": vocabulary_size(needs["tokenizer"]),
        "classes": len(labels),
        **{key: recipe[key] for key in ("width", "hidden", "dropout")},
    }
    soft = (np.load(needs["teacher"] / "train_logits.npy"), recipe["temperature"], recipe["alpha"])
    runs: list[dict[str, Any]] = []
    for number, seed in enumerate(recipe["seeds"]):
        prepare_torch(seed, parameters["threads"])
        module = CLASSES["mean-embedding"](**arguments)

        def report(done: float, total: float, note: str = "", number: int = number) -> None:
            tick(number + done / total, len(recipe["seeds"]), note)

        given = soft if recipe["alpha"] else None
        fit(module, rows, train.classes, recipe["train"], words=words, seed=seed, tick=report, soft=given)
        answers = logits_of(module, held).argmax(axis=1)
        runs.append({"seed": seed, "accuracy": float((answers == validation.classes).mean())})
        if number == 0:
            save_module(out / "model.safetensors", module, "mean-embedding", arguments)
    size = sum(parameter.numel() for parameter in module.parameters())
    write_json(out / "candidate.json", {"runs": runs, "parameters": size})


def _mean_kl(teacher: np.ndarray, student: np.ndarray) -> float:
    """Mean KL(teacher ‖ student) in nats at temperature 1."""
    p, q = _log_softmax(teacher), _log_softmax(student)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
