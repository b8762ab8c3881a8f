"""Teacher, students and controls of an anomaly detector.

Every model gives one score a row, then logits (0, scale · score + offset) whose scale and offset are fitted on the
calibration split (Platt, 1999), so that its probabilities mean something and one threshold, 0.5, fits all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from serving.build.anomaly.data import read_table
from serving.build.cache import Tick, write_json
from serving.build.training import prepare_torch, save_module

if TYPE_CHECKING:
    import torch

TEACHER, STUDENT = "autoencoder-detector", "score-detector"


def train_autoencoder(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Learn to rebuild the train split's normal rows; write `model.safetensors`, `history.json`, `train_scores.npy`."""
    import torch
    from torch.nn import functional

    from serving.runtimes.modules import CLASSES

    prepare_torch(parameters["seed"], parameters["threads"])
    recipe = parameters["teacher"]
    train = read_table(needs["data"], "train")
    arguments = {"columns": train.features.shape[1], "hidden": list(recipe["hidden"]), "clip": recipe["clip"]}
    module: Any = CLASSES[TEACHER](**arguments)
    normal = train.features[train.classes == 0]
    module.standardize(normal)
    rows = torch.from_numpy(normal)

    def loss(chosen: torch.Tensor) -> torch.Tensor:
        scaled = module.scaled(rows[chosen])
        return functional.mse_loss(module.rebuilt(scaled), scaled)

    losses = _fit(module, len(rows), loss, recipe["train"], parameters["seed"], tick)
    scores = scores_of(module, train.features)
    _calibrate(module, needs)
    save_module(out / "model.safetensors", module, TEACHER, arguments)
    np.save(out / "train_scores.npy", scores)
    write_json(out / "history.json", {"losses": losses, "parameters": _size(module)})


def train_students(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Train a student and a control for each seed.

    Write `model.safetensors` (the student of the first seed), `control.safetensors`, `students.json`, and
    `scores.npz`: the test scores of every run, by KIND-SEED.
    """
    import torch
    from torch.nn import functional

    from serving.runtimes.modules import CLASSES

    recipe = parameters["student"]
    train, test = read_table(needs["data"], "train"), read_table(needs["data"], "test")
    teacher = np.load(needs["teacher"] / "train_scores.npy")
    # The units of the score are the teacher's own; a network learns best what varies by about one.
    targets = torch.from_numpy((teacher - teacher.mean()) / teacher.std())
    labels = torch.from_numpy(train.classes.astype(np.float32))
    rows = torch.from_numpy(train.features)
    arguments = {"columns": train.features.shape[1], "hidden": recipe["hidden"], "clip": parameters["clip"]}
    runs: list[dict[str, Any]] = []
    scores: dict[str, np.ndarray] = {}
    total = 2 * len(recipe["seeds"])
    for number, seed in enumerate(recipe["seeds"]):
        for kind in ("distilled", "control"):
            prepare_torch(seed, parameters["threads"])
            module: Any = CLASSES[STUDENT](**arguments)
            module.standardize(train.features[train.classes == 0])

            def loss(chosen: torch.Tensor, module: Any = module, kind: str = kind) -> torch.Tensor:
                score = module.score(rows[chosen])
                if kind == "distilled":
                    return functional.mse_loss(score, targets[chosen])
                return functional.binary_cross_entropy_with_logits(score, labels[chosen])

            report = _part(tick, len(runs), total, kind)
            losses = _fit(module, len(rows), loss, recipe["train"], seed, report)
            scores[f"{kind}-{seed}"] = scores_of(module, test.features)
            runs.append({"kind": kind, "seed": seed, "losses": losses})
            if number == 0:
                _calibrate(module, needs)
                name = "model.safetensors" if kind == "distilled" else "control.safetensors"
                save_module(out / name, module, STUDENT, arguments)
    np.savez(out / "scores.npz", allow_pickle=False, **scores)
    write_json(out / "students.json", {"runs": runs, "parameters": _size(module), "threads": torch.get_num_threads()})


def scores_of(module: Any, features: np.ndarray) -> np.ndarray:
    """Scores float32 [n] of rows float32 [n, columns], higher for what is less normal."""
    import torch

    module.eval()
    with torch.inference_mode():
        return np.asarray(module.score(torch.from_numpy(features)).numpy())


def _fit(module: Any, count: int, loss: Any, recipe: Mapping[str, Any], seed: int, tick: Tick) -> list[float]:
    """Minimize `loss` of random mini-batches in place; gives the mean loss of each epoch."""
    import torch

    size, epochs = recipe["batch"], recipe["epochs"]
    steps = epochs * -(-count // size)
    optimizer = torch.optim.Adam(module.parameters(), lr=recipe["learning_rate"], foreach=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe["learning_rate"], total_steps=max(steps, 2))
    generator = torch.Generator().manual_seed(seed)
    losses, done = [], 0
    module.train()
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.split(torch.randperm(count, generator=generator), size):
            value = loss(chosen)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            total += float(value.detach()) * len(chosen)
            done += 1
        losses.append(round(total / count, 6))
        tick(done, steps, f"epoch {epoch + 1}/{epochs}  loss {losses[-1]:.4f}")
    module.eval()
    return losses


def _part(tick: Tick, part: int, parts: int, kind: str) -> Tick:
    """The progress of one run as a part of all."""

    def report(done: float, total: float, note: str = "") -> None:
        tick(part + done / total, parts, f"{kind}, {note}")

    return report


def _calibrate(module: Any, needs: Mapping[str, Path]) -> None:
    """Fit the step from score to logit on the calibration split."""
    from sklearn.linear_model import LogisticRegression

    calibration = read_table(needs["data"], "calibration")
    scores = scores_of(module, calibration.features)
    spread = float(scores.std()) or 1.0
    line = LogisticRegression(C=1e4).fit(((scores - scores.mean()) / spread)[:, None], calibration.classes)
    scale = float(line.coef_[0, 0]) / spread
    module.set_line(scale, float(line.intercept_[0]) - scale * float(scores.mean()))


def _size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
