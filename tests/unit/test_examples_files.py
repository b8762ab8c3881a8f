"""The examples' shipped files are what their recipes, configurations and documents say."""

from __future__ import annotations

import csv
import gzip
import hashlib
import importlib.util
import re
import wave
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from serving.build.imported.recipe import ImportedRecipe
from serving.build.kinds import load_recipe
from serving.build.text.data import near_key
from serving.commands import tensors
from serving.config import load_config

EXAMPLES = Path(__file__).parents[2] / "deployments" / "examples"


@pytest.mark.parametrize("name", ["iot", "voice", "sentiment"])
def test_recipe_and_configuration_are_valid_and_meet(name: str) -> None:
    recipe = load_recipe(EXAMPLES / name / "recipe.yaml")
    models = load_config(EXAMPLES / name / "canarium.yaml").models
    assert list(models) == [recipe.model] == [name]


@pytest.mark.parametrize("folder", ["quickstart", "examples/iot", "examples/voice", "examples/sentiment"])
def test_the_shipped_report_holds_every_variant_that_is_served(folder: str) -> None:
    report = (EXAMPLES.parent / folder / "REPORT.md").read_text()
    ((_, model),) = load_config(EXAMPLES.parent / folder / "canarium.yaml").models.items()
    for variant in model.variants:
        assert f"| {variant} |" in report
    for plot in re.findall(r"!\[[^]]*\]\(([^)]+)\)", report):
        assert (EXAMPLES.parent / folder / plot).is_file()


def test_the_readings_are_those_of_the_documents_table_and_equal_ones_share_a_split() -> None:
    with gzip.open(EXAMPLES / "iot" / "data" / "shuttle.csv.gz", "rt") as file:
        rows = list(csv.reader(file))[1:]
    counts = Counter((row[-1], row[-2]) for row in rows)
    document = (EXAMPLES / "iot" / "README.md").read_text()
    for split in ("train", "calibration", "validation", "test"):
        assert f"| {split} | {counts[split, 'normal']:,} | {counts[split, 'anomaly']:,} |" in document
    homes: dict[tuple[str, ...], str] = {}
    assert all(homes.setdefault(tuple(row[:9]), row[-1]) == row[-1] for row in rows)


def test_the_voice_model_and_its_licence_are_there() -> None:
    recipe = load_recipe(EXAMPLES / "voice" / "recipe.yaml")
    assert isinstance(recipe, ImportedRecipe)
    model = EXAMPLES / "voice" / recipe.source.file
    assert hashlib.sha256(model.read_bytes()).hexdigest() == recipe.source.sha256
    assert "MIT License" in (model.parent / "LICENSE").read_text()
    with np.load(EXAMPLES / "voice" / "data" / "speech.npz") as data:
        clips = {split: data[f"{split}-classes"].shape for split in ("calibration", "test")}
    assert clips == {"calibration": (12, 80), "test": (40, 80)}


def test_the_voice_documents_files_are_what_its_commands_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = re.search(r"<<'END'\n(.*?)^END$", (EXAMPLES / "voice" / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    (tmp_path / "deployments").symlink_to(EXAMPLES.parent)
    monkeypatch.chdir(tmp_path)
    exec(compile(found[1], "README.md", "exec"), {})
    recipe = load_recipe(EXAMPLES / "voice" / "recipe.yaml")
    assert isinstance(recipe, ImportedRecipe)
    wanted = [tensors.Given(spec.name, spec.datatype, tuple(spec.shape)) for spec in recipe.inputs]
    values = tensors.fit(tensors.read("@windows.npz"), wanted, {"stateN": "state"})
    asked = list(tensors.steps(values, wanted))
    assert {step["input"].shape for step in asked} == {(1, 576)}
    with wave.open("speech.wav") as sound:
        assert (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (16_000, 1, 2)
        assert sound.getnframes() == len(asked) * 512


def _prepare(name: str = "iot") -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_prepare", EXAMPLES / name / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_preparing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    prepare = _prepare()
    source = "f1,f2,f3,f4,f5,f6,f7,f8,f9,anomaly\n50,21,77,0,28,0,27,48,22,1\n53,0,82,0,52,-5,29,30,2,0\n"
    packed = gzip.compress(source.encode())
    for name in ("one", "two"):
        prepare.write(tmp_path / name, prepare.rows(packed))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    lines = gzip.decompress((tmp_path / "one").read_bytes()).decode().splitlines()
    assert lines[0].endswith("f9,label,split")
    assert re.fullmatch(r"50,21,77,0,28,0,27,48,22,anomaly,(train|calibration|validation|test)", lines[1])


def test_snippets_are_labelled_by_sign_and_repeated_or_undecided_ones_left_out(tmp_path: Path) -> None:
    prepare = _prepare("sentiment")
    rated = "1\t2.5\tSuch  a joy.\r\n2\t-1.0\tTedious\r\n3\t0.0\tIt is a film\r\n4\t0.4\tSuch a joy!\r\n5\t1\t...\r\n"
    found = list(prepare.rows(rated))
    assert [(row["text"], row["label"]) for row in found] == [("Such a joy.", "positive"), ("Tedious", "negative")]
    for name in ("one", "two"):
        prepare.write(tmp_path / name, prepare.rows(rated))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    for row in found:
        assert near_key(row["text"]) == prepare.key_of(row["text"])  # what the build compares across splits


def test_no_weights_are_shipped_with_the_sentiment_example() -> None:
    ignored = (EXAMPLES.parents[1] / ".gitignore").read_text().splitlines()
    for folder in ("data", "models"):
        assert f"/deployments/examples/sentiment/{folder}/" in ignored
