"""A teacher from elsewhere: its weights arrive where they belong, its tokenizer is used as it is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import build_kit
import numpy as np
import pytest
import torch
from built_kit import Built, built_in
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from serving.build.cache import BuildError
from serving.build.interface import draft
from serving.build.kinds import load_recipe
from serving.build.text import pretrained
from serving.build.text.interface import text_interface
from serving.build.text.recipe import TokenizerRecipe
from serving.errors import ConfigError
from serving.runtimes.minilm import MiniLMClassifier, weights_of_bert
from serving.runtimes.pipeline import Pipeline

SIZE = {"width": 16, "layers": 2, "heads": 2, "feedforward": 32}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def bert(vocabulary: int) -> dict[str, torch.Tensor]:
    """Random weights by the names of Hugging Face's `BertModel`."""
    generator = torch.Generator().manual_seed(3)
    width, inner = SIZE["width"], SIZE["feedforward"]

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    found = {
        "embeddings.word_embeddings.weight": matrix(vocabulary, width),
        "embeddings.position_embeddings.weight": matrix(64, width),
        "embeddings.token_type_embeddings.weight": matrix(2, width),
    }
    linear = {"attention.self.query": (width, width), "attention.self.key": (width, width),
              "attention.self.value": (width, width), "attention.output.dense": (width, width),
              "intermediate.dense": (inner, width), "output.dense": (width, inner)}  # fmt: skip
    norms = ["embeddings.LayerNorm"]
    for index in range(SIZE["layers"]):
        layer = f"encoder.layer.{index}"
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
        for name, shape in linear.items():
            found[f"{layer}.{name}.weight"], found[f"{layer}.{name}.bias"] = matrix(*shape), matrix(shape[0])
    for name in norms:
        found[f"{name}.weight"], found[f"{name}.bias"] = 1 + matrix(width), matrix(width)
    return found


def by_the_book(table: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """BERT's encoder without padding, straight from the paper: hidden states [n, T, width]."""
    functional, width = torch.nn.functional, SIZE["width"]

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, table[f"{name}.weight"], table[f"{name}.bias"])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, (width,), table[f"{name}.weight"], table[f"{name}.bias"], 1e-12)

    x = table["embeddings.word_embeddings.weight"][ids]
    x = x + table["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm("embeddings.LayerNorm", x + table["embeddings.token_type_embeddings.weight"][0])
    for index in range(SIZE["layers"]):
        layer = f"encoder.layer.{index}"
        q, k, v = (
            linear(f"{layer}.attention.self.{part}", x).unflatten(2, (SIZE["heads"], -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = norm(f"{layer}.attention.output.LayerNorm", x + linear(f"{layer}.attention.output.dense", mixed))
        inner = functional.gelu(linear(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", inner))
    return x


def test_the_encoder_computes_what_bert_does_whatever_the_padding() -> None:
    table = bert(40)
    module = MiniLMClassifier(40, 2, tokens=32, dropout=0.0, **SIZE).eval()
    head = {f"head.{name}": value for name, value in module.head.state_dict().items()}
    module.load_state_dict(weights_of_bert(table, SIZE["layers"], 32) | head)
    ids = torch.tensor([[2, 9, 17, 30, 3]])
    with torch.inference_mode():
        expected = module.head(by_the_book(table, ids).mean(dim=1))
        assert torch.allclose(module(ids), expected, atol=1e-5)
        assert torch.allclose(module(torch.nn.functional.pad(ids, (0, 6))), expected, atol=1e-5)


def test_tokenizers_of_two_builds_in_one_process_are_kept_apart(tmp_path: Path) -> None:
    labels = ["ham", "spam"]
    interface = text_interface(labels, TokenizerRecipe(max_tokens=16, buckets=(16,))).as_json()
    parameters = {"variant": "any", "format": "onnx", "interface": interface, "files": ["tokenizer.json"]}
    found = []
    for name, words in (("one", ["free"]), ("two", ["money", "free"])):
        (tmp_path / name).mkdir()
        vocabulary = {word: at for at, word in enumerate([*SPECIAL, *words])}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
        pipeline = Pipeline(draft(parameters, 1.0), tmp_path / name)
        ids = pipeline.preprocess({"text": np.array([b"free"], dtype=object)})["input_ids"]
        found.append(int(ids[0, 0]))
    assert found == [4, 5]


# ---------------------------------------------------------------- a whole build


def wordpiece(path: Path) -> int:
    """A WordPiece tokenizer of the kit's words, as model hubs store one; gives its vocabulary's size."""
    words = [*SPECIAL, *build_kit.HAM, *build_kit.SPAM, *build_kit.SHARED]
    tokenizer = Tokenizer(models.WordPiece({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=128)
    tokenizer.save(str(path))
    return tokenizer.get_vocab_size()


def recipe_in(folder: Path) -> dict[str, Any]:
    """The kit's recipe with a tiny encoder as its teacher."""
    save_file(bert(wordpiece(folder / "words.json")), folder / "bert.safetensors")
    document = build_kit.recipe()
    train = document.pop("teacher")["train"]
    del document["tokenizer"]["vocabulary"]
    digests = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("bert.safetensors", "words.json")
    }
    document["pretrained"] = {
        "architecture": "minilm", "weights": "bert.safetensors", "weights_sha256": digests["bert.safetensors"],
        "tokenizer": "words.json", "tokenizer_sha256": digests["words.json"], "source": "made up",
        "licence": "CC0-1.0", "trained_layers": 1, "train": train,
    }  # fmt: skip
    return document


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pretrained.SIZES, "minilm", SIZE)
        return built_in(folder, build_kit.write(folder, recipe_in(folder), build_kit.rows()))


def test_only_the_last_layers_and_the_head_are_trained(built: Built) -> None:
    from serving.runtimes.torch import load_module

    steps = {step.name: step for step in built.result.steps}
    module = load_module(steps["teacher"].folder / "model.safetensors", "teacher")
    before = weights_of_bert(bert(module.get_submodule("embedding").weight.shape[0]), SIZE["layers"], 16)
    changed = {name for name, value in module.state_dict().items() if name in before and not value.equal(before[name])}
    assert changed
    assert all(name.startswith("layers.1.") for name in changed)


def test_the_manifest_says_where_the_teacher_comes_from(built: Built) -> None:
    teacher, student = built.registry.resolve("tiny/teacher"), built.registry.resolve("tiny/distilled")
    assert teacher.lineage.relation == "finetuned"
    assert teacher.data["pretrained"]["source"] == "made up"
    assert student.lineage.parents[0].role == "teacher"
    assert "Pre-trained weights: made up (CC0-1.0)" in built.result.report_path.read_text()


def test_every_variant_reads_with_the_encoders_own_tokenizer(built: Built) -> None:
    manifest, folder = built.registry.open("tiny/distilled-int8")
    document = json.loads((folder / "tokenizer.json").read_text())
    assert document["model"]["type"] == "WordPiece"
    assert document["padding"] is None
    assert document["truncation"]["max_length"] == manifest.preprocess.max_tokens == 16


def test_other_weights_than_the_recipes_are_refused(built: Built, tmp_path: Path) -> None:
    document = recipe_in(tmp_path)
    document["pretrained"]["tokenizer_sha256"] = "0" * 64
    recipe = build_kit.write(tmp_path, document, build_kit.rows())
    with pytest.raises(BuildError, match=r"words\.json has SHA-256 [0-9a-f]{64}, the recipe asks for 0{64}"):
        built_in(tmp_path, recipe)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pretrained": None}, "give either teacher (trained from scratch) or pretrained"),
        ({"tokenizer": {"vocabulary": 100, "max_tokens": 16, "buckets": [16]}}, "brings its own vocabulary"),
    ],
)
def test_a_recipe_has_one_teacher_and_one_vocabulary(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(build_kit.write(tmp_path, recipe_in(tmp_path) | change, []))
    assert message in str(caught.value)
