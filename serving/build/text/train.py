"""One training loop for teacher, student and control."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from serving.build.cache import Tick, write_json
from serving.build.text.data import ROWS, read_split
from serving.build.training import prepare_torch, save_module

if TYPE_CHECKING:
    import torch


#: Batches that are sorted by length together.
_STRETCH = 32


class Words(NamedTuple):
    """Where a tokenizer's words begin: the id of unknown ones, and the last of those that mean something else."""

    unknown: int
    last_special: int


def words_of(folder: Path) -> Words:
    """Of the tokenizer in a folder."""
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"]: token["id"] for token in document["added_tokens"]}
    return Words(special[document["model"]["unk_token"]], max(special.values()))


def encode(folder: Path, texts: Sequence[str], max_chars: int) -> list[np.ndarray]:
    """Token ids of each text, as the pipeline of the server makes them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [np.array(row.ids, np.int64) for row in tokenizer.encode_batch_fast([text[:max_chars] for text in texts])]


def pad(rows: Sequence[np.ndarray]) -> torch.Tensor:
    """Rows of token ids as one int64 tensor [n, T], padded with 0."""
    import torch

    padded = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(padded)


def logits_of(module: torch.nn.Module, rows: Sequence[np.ndarray], batch: int = 64) -> np.ndarray:
    """Logits float32 [n, C] in evaluation mode."""
    import torch

    module.eval()
    with torch.inference_mode():
        parts = [module(pad(rows[at : at + batch])).numpy() for at in range(0, len(rows), batch)]
    return np.concatenate(parts)


def fit(
    module: torch.nn.Module,
    rows: Sequence[np.ndarray],
    classes: np.ndarray,
    recipe: Mapping[str, Any],
    *,
    words: Words,
    seed: int,
    tick: Tick,
    soft: tuple[np.ndarray, float, float] | None = None,
) -> list[float]:
    """Train a classifier in place.

    Args:
        rows: token ids of each text.
        classes: int64 [n].
        recipe: a `TrainRecipe` as a dictionary.
        words: what word dropout replaces, and by what.
        seed: of the order of the rows; dropout follows torch's own generator.
        soft: (teacher logits [n, C], temperature T, alpha) adds alpha · T² · KL(teacher ‖ student).

    Returns:
        the mean loss of each epoch.
    """
    import torch
    from torch.nn import functional

    size, epochs = recipe["batch"], recipe["epochs"]
    steps = epochs * -(-len(rows) // size)
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=recipe["learning_rate"], weight_decay=recipe["weight_decay"], foreach=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe["learning_rate"], total_steps=max(steps, 2), pct_start=0.15
    )
    targets = torch.from_numpy(classes)
    teacher, temperature, alpha = (torch.from_numpy(soft[0]), soft[1], soft[2]) if soft else (None, 1.0, 0.0)
    shuffle = random.Random(seed)
    order = list(range(len(rows)))
    losses, done = [], 0
    for epoch in range(epochs):
        module.train()
        shuffle.shuffle(order)
        batches = [order[at : at + size] for at in range(0, len(order), size)]
        if recipe["by_length"]:
            batches = _by_length(order, rows, size, shuffle)
        total = 0.0
        for chosen in batches:
            ids = pad([rows[index] for index in chosen])
            if recipe["word_dropout"]:
                hidden = (torch.rand(ids.shape) < recipe["word_dropout"]) & (ids > words.last_special)
                ids = ids.masked_fill(hidden, words.unknown)
            logits = module(ids)
            loss = functional.cross_entropy(logits, targets[chosen], label_smoothing=recipe["label_smoothing"])
            if teacher is not None:
                kl = functional.kl_div(
                    functional.log_softmax(logits / temperature, dim=1),
                    functional.log_softmax(teacher[chosen] / temperature, dim=1),
                    reduction="batchmean",
                    log_target=True,
                )
                loss = alpha * temperature**2 * kl + (1 - alpha) * loss
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(chosen)
            done += 1
            tick(done, steps, f"epoch {epoch + 1}/{epochs}  loss {float(loss.detach()):.3f}")
        losses.append(round(total / len(order), 5))
    module.eval()
    return losses


def _by_length(order: Sequence[int], rows: Sequence[np.ndarray], size: int, shuffle: random.Random) -> list[list[int]]:
    """Batches of like length, in random order: sorted within stretches of `_STRETCH` batches only, to stay random."""
    batches: list[list[int]] = []
    for at in range(0, len(order), _STRETCH * size):
        stretch = sorted(order[at : at + _STRETCH * size], key=lambda index: len(rows[index]))
        batches += [stretch[start : start + size] for start in range(0, len(stretch), size)]
    shuffle.shuffle(batches)
    return batches


def vocabulary_size(folder: Path) -> int:
    """Number of tokens of a trained tokenizer."""
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return len(document["model"]["vocab"])


def train_teacher(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Write `model.safetensors`, `history.json` and `train_logits.npy` (for distillation)."""
    from serving.runtimes.modules import CLASSES

    prepare_torch(parameters["seed"], parameters["threads"])
    recipe = dict(parameters["teacher"])
    arguments = {
        "vocabulary": vocabulary_size(needs["tokenizer"]),
        "classes": len(parameters["labels"]),
        "tokens": parameters["max_tokens"],
        **{key: recipe[key] for key in ("width", "layers", "heads", "feedforward", "dropout")},
    }
    split = read_split(needs["data"] / ROWS, "train", parameters["labels"])
    rows = encode(needs["tokenizer"], split.texts, parameters["max_chars"])
    module = CLASSES["transformer"](**arguments)
    words = words_of(needs["tokenizer"])
    losses = fit(module, rows, split.classes, recipe["train"], words=words, seed=parameters["seed"], tick=tick)
    save_module(out / "model.safetensors", module, "transformer", arguments)
    np.save(out / "train_logits.npy", logits_of(module, rows))
    write_json(out / "history.json", {"losses": losses, "parameters": sum(p.numel() for p in module.parameters())})
