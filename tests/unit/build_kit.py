"""A recipe and data so small that a whole build takes seconds."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import yaml

HAM = "meeting notes patch kernel thanks review list build release tomorrow".split()  # noqa: SIM905
SPAM = "free money winner click offer cash prize viagra guarantee unsubscribe".split()  # noqa: SIM905
SHARED = "the a to you and of in for is on with please today here this".split()  # noqa: SIM905


def rows() -> list[dict[str, str]]:
    """Synthetic mails, half of them spam, told apart by their words; one in twenty is labelled wrongly."""
    chance = random.Random(5)
    made = []
    for split, count in (("train", 160), ("calibration", 24), ("validation", 60), ("test", 60)):
        for index in range(count):
            label, own = (("ham", HAM), ("spam", SPAM))[index % 2]
            words = chance.choices(own, k=6) + chance.choices(SHARED, k=8)
            chance.shuffle(words)
            if index % 20 == 3:  # nobody could get these right
                label = "ham"
            made.append({"text": " ".join(words), "label": label, "split": split})
    return made


def recipe() -> dict[str, Any]:
    train = {"epochs": 4, "batch": 16, "learning_rate": 0.02}
    return {
        "apiVersion": "canarium/recipe/v1",
        "model": "tiny",
        "labels": ["ham", "spam"],
        "threads": 1,
        "data": {"file": "rows.jsonl.gz", "source": "made up", "licence": "CC0-1.0", "pii": "none"},
        "tokenizer": {"vocabulary": 100, "max_tokens": 16, "max_chars": 200, "buckets": [8, 16]},
        "teacher": {"width": 16, "layers": 1, "heads": 2, "feedforward": 16, "dropout": 0.0, "train": train},
        "student": {"width": 8, "hidden": 8, "dropout": 0.0, "seeds": [1], "train": train},
        "quantize": {"rows": 16},
        "damage": {"target_disagreement": 0.4, "least_disagreement": 0.25},
    }


def write(folder: Path, document: dict[str, Any], data: list[dict[str, str]]) -> Path:
    """Write recipe and data; gives the recipe's path."""
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, data)).encode(), mtime=0))
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path
