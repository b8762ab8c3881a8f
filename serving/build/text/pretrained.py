"""A teacher that was trained elsewhere: its tokenizer as it is, its last layers and a new head trained here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serving.build.cache import BuildError, Tick, write_json
from serving.build.text.data import ROWS, read_split
from serving.build.text.train import encode, fit, logits_of, vocabulary_size, words_of
from serving.build.training import prepare_torch, save_module
from serving.registry.files import file_digest

#: Sizes of the architectures that a recipe may name, as arguments of the module of the same name.
SIZES = {"minilm": {"width": 384, "layers": 6, "heads": 12, "feedforward": 1536}}
_PAD = "[PAD]"


def adopt_tokenizer(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Write `tokenizer.json`: that of `needs["file"]`, cut to `max_tokens` and without padding.

    Raises:
        BuildError: it is not the file of the recipe's digest, or does not pad with id 0.
    """
    from tokenizers import Tokenizer

    _expect(needs["file"], parameters["sha256"])
    tokenizer = Tokenizer.from_file(str(needs["file"]))
    if tokenizer.token_to_id(_PAD) != 0:
        raise BuildError(f"{needs['file']}: {_PAD} must have id 0, with which batches are padded")
    tokenizer.no_padding()
    tokenizer.enable_truncation(parameters["max_tokens"])
    tokenizer.save(str(out / "tokenizer.json"))


def finetune_teacher(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Write `model.safetensors`, `history.json` and `train_logits.npy` (for distillation).

    Raises:
        BuildError: `needs["weights"]` is not the file of the recipe's digest, or not of this architecture.
    """
    from safetensors.torch import load_file

    from serving.runtimes.minilm import weights_of_bert
    from serving.runtimes.modules import CLASSES

    recipe = dict(parameters["pretrained"])
    prepare_torch(parameters["seed"], parameters["threads"])
    _expect(needs["weights"], recipe["weights_sha256"])
    size = SIZES[recipe["architecture"]]
    arguments = {
        "vocabulary": vocabulary_size(needs["tokenizer"]),
        "classes": len(parameters["labels"]),
        "tokens": parameters["max_tokens"],
        "dropout": recipe["dropout"],
        **size,
    }
    module: Any = CLASSES[recipe["architecture"]](**arguments)
    try:
        stored = weights_of_bert(load_file(needs["weights"]), size["layers"], parameters["max_tokens"])
        module.load_state_dict(stored | {f"head.{name}": value for name, value in module.head.state_dict().items()})
    except (KeyError, RuntimeError) as error:
        raise BuildError(f"{needs['weights']}: no {recipe['architecture']}: {error}") from error
    trained = [module.head, *list(module.layers)[size["layers"] - recipe["trained_layers"] :]]
    module.requires_grad_(False)
    for part in trained:
        part.requires_grad_(True)
    split = read_split(needs["data"] / ROWS, "train", parameters["labels"])
    rows = encode(needs["tokenizer"], split.texts, parameters["max_chars"])
    words = words_of(needs["tokenizer"])
    losses = fit(module, rows, split.classes, recipe["train"], words=words, seed=parameters["seed"], tick=tick)
    save_module(out / "model.safetensors", module, recipe["architecture"], arguments)
    np.save(out / "train_logits.npy", logits_of(module, rows))
    write_json(
        out / "history.json",
        {
            "losses": losses,
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
            "trained": sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad),
        },
    )


def _expect(path: Path, sha256: str) -> None:
    found = file_digest(path)
    if found != sha256:
        raise BuildError(f"{path} has SHA-256 {found}, the recipe asks for {sha256}")
