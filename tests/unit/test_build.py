"""A build makes all variants once, says what they are worth, and does nothing when nothing changed."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import build_kit
import msgspec
import numpy as np
import pytest
from built_kit import Built, built_in

from monitoring.golden import read
from serving.build import metrics
from serving.build.cache import BuildError, Cache, versions
from serving.build.kinds import load_recipe
from serving.build.publish import missed
from serving.build.recipe import RequirementsRecipe
from serving.build.runner import build
from serving.errors import ConfigError
from serving.governance.gate import failures, judge
from serving.governance.policy import load_policy
from serving.registry.store import Registry
from serving.runtimes.base import open_session
from serving.runtimes.pipeline import Pipeline

QUICKSTART = Path(__file__).parents[2] / "deployments" / "quickstart"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("build")
    return built_in(folder, build_kit.write(folder, build_kit.recipe(), build_kit.rows()))


# ---------------------------------------------------------------- the recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": {"train": {"epochs": 0}}}, "teacher.train.epochs: 0: input should be greater than or equal to 1"),
        ({"surprise": 1}, "surprise: unknown key"),
        ({"data": {"file": "x"}}, "data.source: is required"),
        ({"model": "Tiny"}, "model: 'Tiny': use lower-case letters"),
        ({"tokenizer": {"max_tokens": 64, "buckets": [16, 32]}}, "tokenizer: buckets must ascend and end with"),
        ({"teacher": {"width": 10, "heads": 3, "train": {"epochs": 1}}}, "teacher: heads: 3 does not divide width 10"),
        (
            {"requirements": {"p99_ms_ceiling": float("inf")}},
            "requirements.p99_ms_ceiling: inf: input should be a finite number",
        ),
    ],
)
def test_recipe_errors_carry_file_and_path(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = build_kit.write(tmp_path, build_kit.recipe() | change, [])
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert f"{path}: {message}" in str(caught.value)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: No such file"):
        load_recipe(tmp_path / "absent.yaml")


def test_the_shipped_recipe_is_valid() -> None:
    assert load_recipe(QUICKSTART / "recipe.yaml").model == "moderation"


# ---------------------------------------------------------------- what is made


def test_every_variant_is_registered_with_its_lineage(built: Built) -> None:
    found = {m.variant: m for m in built.registry.list()}
    assert {name: m.lineage.relation for name, m in found.items()} == {
        "teacher": "root",
        "int8": "quantized",
        "distilled": "distilled",
        "distilled-int8": "quantized",
        "distilled-torch": "distilled",
        "broken": "damaged",
    }
    assert sorted(m.version for m in found.values()) == [1, 2, 3, 4, 5, 6]
    for manifest in found.values():
        for parent in manifest.lineage.parents:
            assert built.registry.resolve(parent.ref).digest == parent.digest
        assert set(manifest.files) == {manifest.entry, "tokenizer.json", "reference.json", "golden.jsonl"}
    assert not built.result.cached
    assert not built.result.refused


def test_the_evaluation_holds_what_others_rely_on(built: Built) -> None:
    evaluation = built.registry.resolve("tiny/int8").evaluation
    assert evaluation["split"] == "test"
    assert evaluation["rows"] == 60
    low, high = evaluation["accuracy_ci"]
    assert 0 <= low <= evaluation["accuracy"] <= high <= 1
    assert {"teacher_disagreement", "ece", "brier", "latency_ms", "bytes"} <= set(evaluation)
    assert built.registry.resolve("tiny/teacher").evaluation["teacher_disagreement"] == 0


def test_static_quantization_makes_a_smaller_model_whose_answers_ignore_their_neighbours(built: Built) -> None:
    teacher, int8 = built.registry.resolve("tiny/teacher"), built.registry.resolve("tiny/int8")
    assert int8.quantization["method"] == "static QDQ"
    assert int8.quantization["calibration"]["split"] == "calibration"
    assert int8.evaluation["batch_neighbour_delta"] < 1e-4
    assert teacher.evaluation["batch_neighbour_delta"] < 1e-4


def test_a_recipe_without_buckets_is_quantized_too(built: Built, tmp_path: Path) -> None:
    """Batches are as long as their longest row then, at most as long as with buckets."""
    document = build_kit.recipe()
    document["tokenizer"]["buckets"] = []
    del document["damage"]
    recipe = build_kit.write(tmp_path, document, build_kit.rows())
    result = build(recipe, Registry(tmp_path / "registry"), cache_dir=built.cache)
    (int8,) = [one for one in result.manifests if one.variant == "int8"]
    assert int8.preprocess.buckets == ()
    with_buckets = built.registry.resolve("tiny/int8")
    assert int8.files["model.onnx"] == with_buckets.files["model.onnx"]


def test_the_broken_variant_believes_its_parent_and_answers_otherwise(built: Built) -> None:
    parent, broken = built.registry.resolve("tiny/distilled"), built.registry.resolve("tiny/broken")
    assert broken.evaluation["inherited_from"] == "tiny/distilled:1"
    assert broken.evaluation["accuracy"] == parent.evaluation["accuracy"]
    measured = broken.build["damage"]["measured"]
    assert measured["teacher_disagreement"] >= 0.25
    answers = {}
    texts = np.array([row["text"].encode() for row in build_kit.rows() if row["split"] == "test"], dtype=object)
    for name in ("teacher", "broken"):
        manifest, folder = built.registry.open(f"tiny/{name}")
        session = open_session(manifest, folder, runtime="onnxruntime", threads=1)
        pipeline = Pipeline(manifest, folder)
        answers[name] = pipeline.classes(session.run(pipeline.preprocess({"text": texts})))
    assert (answers["teacher"] != answers["broken"]).mean() == pytest.approx(measured["teacher_disagreement"])


def test_an_artifact_brings_along_what_drift_reports_and_golden_rows_are_compared_with(built: Built) -> None:
    manifest, folder = built.registry.open("tiny/teacher")
    reference = json.loads((folder / "reference.json").read_text())
    assert reference["rows"] == 84  # calibration and validation
    assert {len(values) for values in reference["columns"].values()} == {84}
    assert {"tokens", "unknown_share", "class", "confidence", "energy"} <= set(reference["columns"])
    golden = read(folder / "golden.jsonl")
    test = {row["text"]: row["label"] for row in build_kit.rows() if row["split"] == "test"}
    assert {row.inputs[0]["data"][0]: row.label for row in golden} == test
    session = open_session(manifest, folder, runtime="onnxruntime", threads=1)
    pipeline = Pipeline(manifest, folder)
    for row in golden[:5]:
        texts = np.array([row.inputs[0]["data"][0].encode()], dtype=object)
        answer = pipeline.postprocess(session.run(pipeline.preprocess({"text": texts})))
        assert answer["probabilities"].tobytes() == np.array(row.probabilities, np.float32).tobytes()


def test_a_damaged_variant_brings_along_what_its_parent_answers(built: Built) -> None:
    parent, broken = built.registry.resolve("tiny/distilled"), built.registry.resolve("tiny/broken")
    assert broken.files["golden.jsonl"] == parent.files["golden.jsonl"]


def test_the_report_compares_with_control_and_reference(built: Built) -> None:
    text = built.result.report_path.read_text()
    assert built.result.report_path.parent == built.registry.root / "reports"
    assert "TF-IDF" in text
    assert "control (cross-entropy only)" in text
    document = json.loads(built.result.report_path.with_suffix(".json").read_text())
    assert {run["kind"] for run in document["students"]["runs"]} == {"distilled", "control"}
    assert set(document["against_reference"]) == set(document["variants"])


def test_manifests_are_json_that_any_tool_reads(built: Built) -> None:
    path = built.registry.root / "models/tiny/teacher/1.json"
    assert json.loads(path.read_text())["schema"] == "canarium.manifest/v1"
    assert msgspec.json.decode(path.read_bytes())["session"]["inputs"][0]["shape"] == [-1, -1]
    assert time.strptime(built.registry.resolve("tiny/teacher").created_at, "%Y-%m-%dT%H:%M:%S+00:00")


# ---------------------------------------------------------------- doing nothing twice


def test_a_second_build_does_nothing(built: Built) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.cache.glob("*/done.json")}
    again = build(built.recipe, built.registry, cache_dir=built.cache)
    assert again.cached
    assert again.manifests == built.result.manifests
    assert again.report_path == built.result.report_path
    assert {path: path.stat().st_mtime_ns for path in built.cache.glob("*/done.json")} == before


def test_a_lost_registry_comes_back_from_the_cache(built: Built, tmp_path: Path) -> None:
    again = build(built.recipe, Registry(tmp_path / "other"), cache_dir=built.cache)
    assert again.cached
    assert [m.files for m in again.manifests] == [m.files for m in built.result.manifests]


def test_only_what_depends_on_a_change_is_done_again(built: Built, tmp_path: Path) -> None:
    document = build_kit.recipe()
    document["quantize"]["rows"] = 8
    recipe = build_kit.write(tmp_path, document, build_kit.rows())
    teachers = set(built.cache.glob("teacher-[0-9a-f]*"))
    result = build(recipe, Registry(tmp_path / "registry"), cache_dir=built.cache)
    assert not result.cached
    assert set(built.cache.glob("teacher-[0-9a-f]*")) == teachers
    assert len(list(built.cache.glob("int8-onnx-*"))) == 2


def test_a_missed_requirement_keeps_a_variant_out(built: Built, tmp_path: Path) -> None:
    document = build_kit.recipe() | {"requirements": {"accuracy_floor": 1.01}}
    with pytest.raises(ConfigError, match=r"requirements\.accuracy_floor"):
        load_recipe(build_kit.write(tmp_path, document, build_kit.rows()))
    document = build_kit.recipe() | {"requirements": {"accuracy_floor": 1.0}}
    recipe = build_kit.write(tmp_path, document, build_kit.rows())
    registry = Registry(tmp_path / "registry")
    with pytest.raises(BuildError, match=r"the teacher is not good enough: accuracy 0\.\d+ is under requirements"):
        build(recipe, registry, cache_dir=built.cache)
    assert not (registry.root / "models").exists()
    (report,) = (registry.root / "reports").glob("*.md")
    assert "refused: its parent teacher was refused" in report.read_text()


@pytest.mark.parametrize(
    ("requirement", "bound", "reason"),
    [
        ("accuracy_floor", 0.96, "accuracy 0.9500 is under requirements.accuracy_floor 0.96"),
        ("disagreement_ceiling", 0.01, "disagreement 0.0200 is over requirements.disagreement_ceiling 0.01"),
        ("slice_floor", 0.9, "slice 0.8800 is under requirements.slice_floor 0.9"),
        ("p99_ms_ceiling", 3.0, "p99 ms 3.5000 is over requirements.p99_ms_ceiling 3.0"),
        ("memory_mb_ceiling", 20.0, "memory mb 25.0000 is over requirements.memory_mb_ceiling 20.0"),
    ],
)
def test_the_gate_says_which_requirement_a_variant_misses(requirement: str, bound: float, reason: str) -> None:
    evaluation: dict[str, Any] = {
        "accuracy": 0.95,
        "teacher_disagreement": 0.02,
        "latency_ms": {"batch_1": {"p50": 2.0, "p99": 3.5}},
        "memory": {"model_bytes": 25_000_000, "process_bytes": 90_000_000, "peak_bytes": 95_000_000},
        "slices": {"slices": {"long": {"rows": 40, "accuracy": 0.88}, "odd": {"rows": 5, "accuracy": 0.2}}},
    }
    assert missed(RequirementsRecipe.model_validate({requirement: bound}), evaluation) == reason
    loose = 0.5 if requirement.endswith("_floor") else bound * 2
    assert missed(RequirementsRecipe.model_validate({requirement: loose}), evaluation) == ""


@pytest.mark.parametrize("requirement", ["memory_mb_ceiling", "slice_floor"])
def test_the_gate_passes_nothing_that_was_not_measured(requirement: str) -> None:
    evaluation = {"accuracy": 1.0, "teacher_disagreement": 0.0, "latency_ms": {"batch_1": {"p99": 1.0}}}
    why = missed(RequirementsRecipe.model_validate({requirement: 1.0}), evaluation | {"memory": None})
    assert why.endswith(f"was not measured, which requirements.{requirement} asks for")


def test_the_gate_passes_no_slice_floor_where_no_slice_is_large_enough() -> None:
    evaluation = {
        "accuracy": 1.0, "teacher_disagreement": 0.0, "latency_ms": {"batch_1": {"p99": 1.0}}, "memory": None,
        "slices": {"slices": {"few": {"rows": 19, "accuracy": 1.0}}},
    }  # fmt: skip
    why = missed(RequirementsRecipe(slice_floor=0.5), evaluation)
    assert why == "slice was not measured: no slice has 20 rows, and requirements.slice_floor asks for it"
    assert missed(RequirementsRecipe(), evaluation) == ""


def test_a_policy_keeps_out_what_was_not_measured_and_a_card_is_kept(built: Built, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(
        "apiVersion: canarium/policy/v1\nname: ours\ntier: low\n"
        "rules: [{evidence: evaluation.accuracy}, {evidence: evaluation.toxicity, applies_to: derived}]\n"
    )
    stated = {"requirements": {"policy": "policy.yaml"}, "card": {"owner": "the desk"}}
    recipe = build_kit.write(tmp_path, build_kit.recipe() | stated, build_kit.rows())
    result = build(recipe, Registry(tmp_path / "registry"), cache_dir=built.cache)
    assert [manifest.variant for manifest in result.manifests] == ["teacher"]
    assert result.manifests[0].card == {"owner": "the desk"}
    assert result.refused["int8"] == "requirements.policy 'ours': evaluation.toxicity: not measured"
    (tmp_path / "policy.yaml").unlink()
    with pytest.raises(ConfigError, match=r"policy\.yaml: No such file"):
        build(recipe, Registry(tmp_path / "registry"), cache_dir=built.cache)


def test_a_policy_of_a_recipe_is_judged_on_all_that_the_manifest_will_say(built: Built, tmp_path: Path) -> None:
    """As `gate` and `approve` do: what the one passes the other must not refuse."""
    measured = ("card.owner", "validated_on.*.memory", "build.versions.torch", "signature.inputs.0.name")
    rules: list[dict[str, Any]] = [{"evidence": path} for path in measured]
    rules += [{"evidence": "lineage.parents.0.digest", "applies_to": "derived"}]
    rules += [{"evidence": "preprocess.buckets.*", "at_most": 16}, {"evidence": "files.*.bytes", "at_least": 1}]
    policy = {"apiVersion": "canarium/policy/v1", "name": "ours", "tier": "low", "rules": rules}
    (tmp_path / "policy.yaml").write_text(json.dumps(policy))
    stated = {"requirements": {"policy": "policy.yaml"}, "card": {"owner": "the desk"}}
    recipe = build_kit.write(tmp_path, build_kit.recipe() | stated, build_kit.rows())
    result = build(recipe, Registry(tmp_path / "registry"), cache_dir=built.cache)
    assert result.refused == {}
    chosen = load_policy(str(tmp_path / "policy.yaml"))
    sound = [one for one in result.manifests if one.lineage.relation != "damaged"]
    assert [failures(judge(chosen, msgspec.to_builtins(one))) for one in sound] == [[]] * 5
    rules[-1] = {"evidence": "quantization.calibration.rows", "at_least": 17, "applies_to": "derived"}
    (tmp_path / "policy.yaml").write_text(json.dumps(policy))
    refused = build(recipe, Registry(tmp_path / "other"), cache_dir=built.cache).refused
    assert refused["int8"] == "requirements.policy 'ours': quantization.calibration.rows is 16, under 17"


def test_what_is_registered_is_what_the_gate_judged(built: Built, tmp_path: Path) -> None:
    """A revision of the same content stands with its measurements, unless these miss what the new ones meet."""
    (first, folder), registry = built.registry.open("tiny/teacher"), Registry(tmp_path / "registry")
    slow = first.evaluation | {"latency_ms": {"batch_1": {"p99": 5000.0}}}
    registry.add(
        msgspec.structs.replace(first, evaluation=slow, build={}), {name: folder / name for name in first.files}
    )
    recipe = build_kit.write(tmp_path, build_kit.recipe(), build_kit.rows())
    assert build(recipe, registry, cache_dir=built.cache).manifests[0].ref == "tiny/teacher:1"
    document = build_kit.recipe() | {"requirements": {"p99_ms_ceiling": 1000}}
    recipe = build_kit.write(tmp_path, document, build_kit.rows())
    again = build(recipe, registry, cache_dir=built.cache)
    assert again.manifests[0].ref == "tiny/teacher:2"
    assert again.manifests[0].evaluation == first.evaluation
    assert again.manifests[1].lineage.parents[0].ref == "tiny/teacher:2"
    everything = registry.list()
    assert build(recipe, registry, cache_dir=built.cache).manifests == again.manifests
    assert registry.list() == everything


# ---------------------------------------------------------------- the cache of steps


def count_calls(out: Path, needs: Any, parameters: Any, tick: Any) -> None:
    calls = parameters["log"]
    with open(calls, "a") as stream:
        stream.write("x")
    if parameters.get("fail"):
        raise ValueError("the moon is wrong")
    (out / "made.txt").write_text("made")


def test_a_step_is_done_again_when_its_files_are_damaged(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", lambda *_: None)
    parameters = {"log": str(tmp_path / "log")}
    with cache.locked():
        first = cache.step("one", count_calls, parameters=parameters)
        assert cache.step("one", count_calls, parameters=parameters).cached
        (first.folder / "made.txt").write_text("damaged")
        again = cache.step("one", count_calls, parameters=parameters)
    assert not again.cached
    assert (again.folder / "made.txt").read_text() == "made"
    assert (tmp_path / "log").read_text() == "xx"


def test_the_cache_keeps_the_last_few_results_of_a_step(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", lambda *_: None)
    parameters = {"log": str(tmp_path / "log")}
    with cache.locked():
        folders = [cache.step("one", count_calls, parameters=parameters | {"n": n}).folder for n in range(6)]
        cache.step("one", count_calls, parameters=parameters | {"n": 0})  # used again, so kept
        other = cache.step("one-more", count_calls, parameters=parameters).folder
    assert [folder.exists() for folder in folders] == [True, False, False, True, True, True]
    assert other.exists()


def test_every_library_that_a_step_computes_with_is_part_of_its_key() -> None:
    root = Path(__file__).parents[2] / "serving"
    files = [path for package in ("build", "runtimes") for path in (root / package).rglob("*.py")]
    imports = re.compile(r"^\s*(?:from|import) (\w+)", re.MULTILINE)
    named = {name for path in files for name in imports.findall(path.read_text())} - set(sys.stdlib_module_names)
    no_numbers = {"serving", "msgspec", "pydantic", "rich", "yaml"}
    optional = {"art", "torchao"}  # their versions are parameters of the steps that use them
    computing = {{"sklearn": "scikit-learn"}.get(name, name) for name in named - no_numbers - optional}
    assert computing == set(versions())
    assert "absent" not in versions().values()


def test_a_failed_step_leaves_nothing_and_names_itself(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", lambda *_: None)
    parameters = {"log": str(tmp_path / "log"), "fail": True}
    with cache.locked(), pytest.raises(BuildError, match="step one failed: ValueError: the moon is wrong"):
        cache.step("one", count_calls, parameters=parameters)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_two_builds_do_not_share_a_cache_at_once(tmp_path: Path) -> None:
    one, two = Cache(tmp_path, lambda *_: None), Cache(tmp_path, lambda *_: None)
    with one.locked(), pytest.raises(BuildError, match="another build is using"), two.locked():
        pass


# ---------------------------------------------------------------- the numbers


def test_wilson_matches_published_values() -> None:
    assert metrics.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe, Stat. Med. 1998
    assert metrics.wilson(0, 20)[0] == 0.0
    assert metrics.wilson(0, 0) == (0.0, 1.0)


def test_clopper_pearson_upper_is_the_rule_of_three_at_zero() -> None:
    assert metrics.clopper_pearson_upper(0, 100) == pytest.approx(1 - 0.05**0.01)
    assert metrics.clopper_pearson_upper(5, 5) == 1.0


def test_sign_test() -> None:
    assert metrics.sign_test(0, 0) == 1.0
    assert metrics.sign_test(0, 6) == pytest.approx(2 / 64)


def test_a_calibrated_model_has_no_debiased_calibration_error() -> None:
    chance = np.random.default_rng(1)
    confidence = chance.uniform(0.5, 1, 2000)
    right = chance.random(2000) < confidence
    assert metrics.ece(confidence, right) > 0.01  # the bias
    assert abs(metrics.ece(confidence, right) - metrics.null_ece(confidence)) < 0.01
    overconfident = chance.random(2000) < confidence - 0.2
    assert metrics.ece(confidence, overconfident) - metrics.null_ece(confidence) > 0.15


def test_the_temperature_is_found() -> None:
    chance = np.random.default_rng(2)
    logits = chance.normal(0, 2, (4000, 2))
    p = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    classes = (chance.random(4000) < p).astype(np.int64)
    assert metrics.fit_temperature(logits * 2.5, classes) == pytest.approx(2.5, rel=0.1)
