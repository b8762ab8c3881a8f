"""A search measures its candidates on validation, takes one by a stated rule, and shows what none beats."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import build_kit
import numpy as np
import pytest
from onnxruntime.quantization import quantize_static

from serving.build.evaluate import infer
from serving.build.examples import Examples, read_examples
from serving.build.metrics import mean_kl
from serving.build.rows import spread
from serving.build.runner import BuildResult, build
from serving.build.search import sensitivity
from serving.build.search.choose import Trial, bounded, choose, front, refusal
from serving.build.search.plot import Point, pareto
from serving.build.search.recipe import QuantizeSearch, StudentSearch
from serving.build.text.interface import text_interface
from serving.build.text.recipe import TextRecipe
from serving.registry.store import Registry

# ---------------------------------------------------------------- the rule


def trial(name: str, accuracy: float, divergence: float, p50: float, size: int, refused: str = "") -> Trial:
    return Trial(name, 400, accuracy, divergence, p50, p50 * 2, size, refused)


TRIALS = [
    trial("minmax", 0.950, 0.004, 1.0, 100),
    trial("entropy", 0.955, 0.001, 1.2, 100),
    trial("small", 0.949, 0.009, 1.1, 40),
    trial("wrong", 0.900, 0.080, 0.2, 10),
    trial("dynamic", 0.956, 0.0001, 0.5, 50, "its answers depend on their batch neighbours"),
]


@pytest.mark.parametrize(("prefer", "name"), [("fidelity", "entropy"), ("size", "small"), ("speed", "minmax")])
def test_each_preference_takes_another_but_none_a_bad_or_refused_one(prefer: str, name: str) -> None:
    choice = choose(TRIALS, prefer)
    assert choice is not None
    assert choice.name == name


def test_nothing_is_taken_when_all_are_refused() -> None:
    assert choose([trial("one", 0.9, 0, 1, 1, "too slow")], "fidelity") is None


def test_a_budget_keeps_the_first_and_always_the_same_others() -> None:
    every = list(range(30))
    kept = bounded(every, 8)
    assert kept[0] == 0
    assert len(kept) == 8
    assert kept == sorted(kept) == bounded(every, 8)
    assert bounded(every, 99) == every


def test_settings_are_every_combination_by_name() -> None:
    search = QuantizeSearch(ranges=("minmax", "percentile-99.9"), per_channel=(True, False), float_layers=(0, 2))
    settings = {each["name"]: each for each in search.settings()}
    assert len(settings) == 8
    assert settings["percentile-99.9-per-tensor-float-2"]["quantize"] == {
        "ranges": "percentile",
        "percentile": 99.9,
        "per_channel": False,
    }


def test_students_are_every_combination_of_the_sizes_that_are_given_or_the_recipes() -> None:
    search = StudentSearch(temperature=(1.0, 2.0), alpha=(0.3,), width=(8, 16))
    assert [each["name"] for each in search.settings(4, 32)] == [
        "t1-a0.3-w8-h32", "t2-a0.3-w8-h32", "t1-a0.3-w16-h32", "t2-a0.3-w16-h32",
    ]  # fmt: skip
    assert StudentSearch().settings(4, 32)[0]["student"]["width"] == 4


def measured(**changes: Any) -> dict[str, Any]:
    good: dict[str, Any] = {
        "failed": "", "neighbour_change": 0.0, "accuracy": 0.95, "disagreement": 0.01,
        "slice": {"name": "class=spam", "accuracy": 0.9},
        "latency_ms": {"batch_1": {"p99": 3.0}},
    }  # fmt: skip
    return good | changes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"failed": "cannot run here: no such type"}, "cannot run here"),
        ({"neighbour_change": 0.15}, "batched serving is refused"),
        ({"accuracy": 0.8}, "accuracy_floor 0.9"),
        ({"disagreement": 0.2}, "disagreement_ceiling 0.1"),
        ({"latency_ms": {"batch_1": {"p99": 9.0}}}, "p99_ms_ceiling 5"),
        ({"slice": {"name": "class=spam", "accuracy": 0.7}}, "on slice class=spam is under slice_floor 0.85"),
        ({"slice": None}, "slice was not measured: no slice has 20 rows, and slice_floor 0.85 asks for it"),
    ],
)
def test_requirements_refuse_candidates(changes: dict[str, Any], reason: str) -> None:
    requirements = {"accuracy_floor": 0.9, "disagreement_ceiling": 0.1, "p99_ms_ceiling": 5.0, "slice_floor": 0.85}
    found = refusal(measured(**changes), requirements)
    assert reason in found
    assert bool(found) == bool(reason)


def test_the_front_holds_what_none_beats() -> None:
    assert front([(1, 3), (2, 2), (3, 1), (3, 3), (2, 2)]) == [True, True, True, False, True]


# ---------------------------------------------------------------- a whole search


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Registry, BuildResult, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("search")
    document = build_kit.recipe() | {
        "search": {
            "quantize": {"ranges": ["minmax", "percentile-99.9", "entropy"], "float_layers": [0, 1]},
            "candidates": 4,
            "formats": ["dynamic-int8", "fp16", "torch", "torch-bf16", "torchao-int8"],
            "students": {"temperature": [1, 4], "alpha": [0.5], "seeds": [1, 2]},
        },
        "ablations": True,
    }
    document["student"]["qad"] = {"epochs": 2, "batch": 16, "learning_rate": 0.01}
    recipe = build_kit.write(folder, document, build_kit.rows())
    registry = Registry(folder / "registry")
    result = build(recipe, registry, cache_dir=folder / "cache")
    return registry, result, json.loads(result.report_path.with_suffix(".json").read_text())["search"]


def test_every_candidate_is_measured_on_validation(searched: tuple[Registry, BuildResult, dict[str, Any]]) -> None:
    trials = searched[2]["trials"]
    assert len(trials) == 1 + 4 + 5
    assert searched[2]["left_out"] == 2
    for name, row in trials.items():
        assert row["split"] == "validation"
        if name == "torchao-int8" and not find_spec("torchao"):
            assert "torchao is not installed" in row["failed"]
            continue
        assert row["failed"] == "", name
        assert row["latency_ms"]["batch_1"]["p50"] > 0
        assert row["slice"]["name"]
        assert row["slice"]["accuracy"] <= row["accuracy"]
    assert trials["fp32"]["mean_kl"] == 0


def test_the_nearest_candidate_is_what_is_registered(searched: tuple[Registry, BuildResult, dict[str, Any]]) -> None:
    registry, _, found = searched
    allowed = {name: row for name, row in found["trials"].items() if name.startswith(("minmax", "perc", "entropy"))}
    assert found["chosen"] == min(allowed, key=lambda name: allowed[name]["mean_kl"])
    how = registry.resolve("tiny/int8").quantization
    assert found["chosen"].startswith(how["ranges"])


def test_layers_kept_in_float_are_those_that_suffer_most(
    searched: tuple[Registry, BuildResult, dict[str, Any]],
) -> None:
    steps = {step.name: step for step in searched[1].steps}
    layers = steps["int8-sensitivity"].read("sensitivity.json")["layers"]
    assert [each["mean_kl"] for each in layers] == sorted((each["mean_kl"] for each in layers), reverse=True)
    kept = [step for name, step in steps.items() if name.endswith("-float-1")]
    assert kept
    assert all(layers[0]["node"] in step.read("quantization.json")["kept_in_float"] for step in kept)


@pytest.mark.parametrize("reduced", [False, True])
def test_layers_are_ranked_by_the_rounding_that_is_shipped_on_rows_from_all_over_validation(
    searched: tuple[Registry, BuildResult, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reduced: bool,
) -> None:
    folders = {step.name: step.folder for step in searched[1].steps}
    recipe = TextRecipe.model_validate(build_kit.recipe() | {"quantize": {"rows": 16, "reduce_range": reduced}})
    parameters = {
        "labels": ["ham", "spam"],
        "variant": "int8",
        "format": "onnx",
        "interface": text_interface(recipe.labels, recipe.tokenizer).as_json(),
        "files": ["tokenizer.json"],
        "quantize": recipe.quantize.model_dump(mode="json"),
    }
    needs = {"data": folders["data"], "model": folders["teacher-onnx"], "ranges": folders["int8-minmax"]}
    how, asked = list[bool](), list[Any]()

    def quantize(*given: Any, **settings: Any) -> None:
        how.append(settings["reduce_range"])
        quantize_static(*given, **settings)

    def ask(pipeline: Any, session: Any, examples: Examples) -> np.ndarray:
        asked.append(examples.inputs["text"].tolist())
        return infer(pipeline, session, examples)

    monkeypatch.setattr("onnxruntime.quantization.quantize_static", quantize)
    monkeypatch.setattr(sensitivity, "infer", ask)
    monkeypatch.setattr(sensitivity, "_ROWS", 20)
    files = {"tokenizer.json": folders["tokenizer"] / "tokenizer.json"}
    sensitivity.rank_layers(tmp_path, needs | files, parameters, lambda done, total, note="": None)
    assert set(how) == {reduced}
    validation = read_examples(folders["data"], "validation", ["ham", "spam"])
    assert asked == [validation.at(spread(60, 20)).inputs["text"].tolist()] * (1 + len(how))


def document_of(searched: tuple[Registry, BuildResult, dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(searched[1].report_path.with_suffix(".json").read_text())
    return found


def test_students_are_searched_beside_a_control_of_their_size(
    searched: tuple[Registry, BuildResult, dict[str, Any]],
) -> None:
    found = document_of(searched)["student_search"]
    assert set(found["trials"]) == {"teacher", "t1-a0.5-w8-h8", "t4-a0.5-w8-h8", "control-w8-h8"}
    taken = {
        name: row["mean_kl"] for name, row in found["trials"].items() if name.startswith("t") and name != "teacher"
    }
    assert found["chosen"] == min(taken, key=lambda name: taken[name])
    how = searched[0].resolve("tiny/distilled").distillation
    assert found["chosen"].startswith(f"t{how['temperature']:g}-a{how['alpha']:g}")
    assert found["control"]["name"] == "control-w8-h8"
    assert "no gain of distillation is claimed" in searched[1].report_path.read_text()


def test_a_student_trained_with_rounding_is_registered_and_held_against_its_control(
    searched: tuple[Registry, BuildResult, dict[str, Any]],
) -> None:
    manifest = searched[0].resolve("tiny/distilled-qad")
    assert manifest.lineage.relation == "qad"
    assert {parent.role for parent in manifest.lineage.parents} == {"start", "teacher"}
    assert manifest.quantization["method"] == "static QDQ"
    assert manifest.distillation["quantization_aware"]["seed"] == 1
    control = document_of(searched)["qad"]["rows"]["its control"]  # in INT8 as it is, not the plain student's
    assert manifest.distillation["control"] == {"loss": "cross-entropy", "accuracy": control["accuracy"], "seed": 1}
    assert set(document_of(searched)["qad"]["against"]) == {"INT8 after training", "its control"}
    assert "## Quantization-aware distillation" in searched[1].report_path.read_text()


@pytest.mark.parametrize("variant", ["distilled", "distilled-torch", "distilled-qad"])
def test_divergence_from_the_teacher_is_that_of_the_variants_own_answers_to_the_test_rows(
    searched: tuple[Registry, BuildResult, dict[str, Any]], variant: str
) -> None:
    steps = {step.name: step.folder for step in searched[1].steps}
    teacher, own = (np.load(steps[f"{name}-evaluation"] / "logits.npy") for name in ("teacher", variant))
    how = searched[0].resolve(f"tiny/{variant}").distillation
    assert (how["split"], how["rows"]) == ("test", 60)
    assert how["mean_kl"] == mean_kl(teacher, own) > 0
    shown = "over the 60 rows of test, in nats at temperature 1: int8 "
    text = searched[1].report_path.read_text()
    assert shown in text
    assert f"{variant} {how['mean_kl']:.5f}" in text


def test_ablations_leave_out_what_the_recipe_has(searched: tuple[Registry, BuildResult, dict[str, Any]]) -> None:
    rows = document_of(searched)["ablations"]
    left_out = [f"{row['of']}: {row['without']}" for row in rows]
    assert left_out[0] == "int8: one scale for each channel"
    assert left_out[-1] == "distilled: the teacher (labels alone)"
    ranges = searched[0].resolve("tiny/int8").quantization["ranges"]  # what the search took, not what the recipe says
    assert (f"int8: ranges by {ranges}" in left_out) == (ranges != "minmax")
    for row in rows:
        assert 0 <= row["pair"]["p_value"] <= 1
        assert row["measured"]["accuracy_ci"][0] <= row["measured"]["accuracy"]
        evidence = searched[0].resolve(f"tiny/{row['of']}").evaluation["ablations"][row["without"]]
        assert (evidence["accuracy"], evidence["p_value"]) == (row["measured"]["accuracy"], row["pair"]["p_value"])


def test_the_report_shows_the_search_and_a_plot_that_parses(
    searched: tuple[Registry, BuildResult, dict[str, Any]],
) -> None:
    path = searched[1].report_path
    text = path.read_text()
    assert "## Search" in text
    assert "measured here on test. What was searched was chosen on validation." in text
    assert f"![Pareto plot of the variants]({path.stem}.svg)" in text
    words = "".join(ElementTree.parse(path.with_suffix(".svg")).getroot().itertext())
    for name in ("teacher", "int8", "distilled", "only tried"):
        assert name in words


def test_a_plot_of_points_on_one_spot_still_names_each() -> None:
    same = [Point(f"model {index}", 1.0, 0.9, 0.88, 0.92, 1000, front=True) for index in range(3)]
    root = ElementTree.fromstring(pareto("a < b", same))
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {f"model {index} · 1.0 kB" for index in range(3)} <= set(texts)
    places = [(element.get("x"), element.get("y")) for element in root.iter() if (element.text or "").startswith("mod")]
    assert len(set(places)) == 3


def test_a_recipe_without_a_search_has_a_plot_too(tmp_path: Path) -> None:
    recipe = build_kit.write(tmp_path, build_kit.recipe(), build_kit.rows())
    result = build(recipe, Registry(tmp_path / "registry"), cache_dir=tmp_path / "cache")
    assert "## Search" not in result.report_path.read_text()
    assert result.report_path.with_suffix(".svg").read_text().startswith("<svg")
