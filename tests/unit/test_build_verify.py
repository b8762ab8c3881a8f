"""A dry run tells what a build would do; a verification tells what a second build gives back, and why not more."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import build_kit
import numpy as np
import pytest
from built_kit import nudged
from registry_kit import copy_of, end_of, in_child

from serving.build.cache import Cache, Made, versions, write_json
from serving.build.clean import clean_folder
from serving.build.dry_run import dry_run
from serving.build.kinds import load_recipe, plan_of
from serving.build.metrics import softmax
from serving.build.rows import spread
from serving.build.runner import BuildResult, build
from serving.build.verify import Compared, compare, different_steps, registered
from serving.cli import main
from serving.commands.render_build import compared_json, compared_lines
from serving.errors import ConfigError
from serving.registry.files import file_digest
from serving.registry.store import Registry


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_kit.write(tmp_path_factory.mktemp("recipe"), build_kit.recipe(), build_kit.rows())


@pytest.fixture(scope="module")
def twice(recipe: Path) -> list[tuple[BuildResult, Registry]]:
    made = []
    for name in ("one", "two"):
        registry = Registry(recipe.parent / name / "registry")
        made.append((build(recipe, registry, cache_dir=recipe.parent / name / "cache"), registry))
    return made


# ---------------------------------------------------------------- dry run


def test_a_dry_run_names_every_step_of_the_build_and_does_nothing(
    recipe: Path, twice: list[tuple[BuildResult, Registry]]
) -> None:
    clean = recipe.parent / "clean"
    planned = dry_run(recipe, cache_dir=clean)
    assert not clean.exists()
    assert [step.name for step in planned.steps] == [step.name for step in twice[0][0].steps]
    assert planned.waits_for == ""
    assert not any(step.cached for step in planned.steps)
    assert planned.unknown == len(planned.steps)


def test_a_dry_run_over_a_finished_build_finds_all_of_it(
    recipe: Path, twice: list[tuple[BuildResult, Registry]]
) -> None:
    planned = dry_run(recipe, cache_dir=recipe.parent / "one" / "cache")
    assert all(step.cached for step in planned.steps)
    assert planned.seconds == 0


def test_a_dry_run_expects_what_a_step_took_the_last_time(
    tmp_path: Path, recipe: Path, twice: list[tuple[BuildResult, Registry]]
) -> None:
    document = build_kit.recipe()
    document["student"]["alpha"] = 0.7
    changed = build_kit.write(tmp_path, document, build_kit.rows())
    planned = dry_run(changed, cache_dir=recipe.parent / "one" / "cache")
    todo = {step.name: step.seconds for step in planned.steps if not step.cached}
    took = {step.name: step.seconds for step in twice[0][0].steps}
    assert "student" in todo
    assert "teacher" not in todo
    assert todo == {name: took[name] for name in todo}
    assert planned.seconds == pytest.approx(sum(todo.values()))


def test_a_dry_run_refuses_the_policy_that_a_build_would(tmp_path: Path) -> None:
    recipe = build_kit.write(tmp_path, build_kit.recipe() | {"requirements": {"policy": "policy.yaml"}}, [])
    with pytest.raises(ConfigError, match=r"policy\.yaml: No such file"):
        dry_run(recipe, cache_dir=tmp_path / "cache")
    (tmp_path / "policy.yaml").write_text("apiVersion: canarium/policy/v1\nname: ours\ntier: low\n")
    assert dry_run(recipe, cache_dir=tmp_path / "cache").steps


def test_the_command_says_how_long_it_will_take(
    recipe: Path, twice: list[tuple[BuildResult, Registry]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recipe.parent
    arguments = ["build", str(recipe), "--registry", str(folder / "x"), "--dry-run", "--cache"]
    assert main([*arguments, str(folder / "one" / "cache")]) == 0
    assert "nothing to do: all" in capsys.readouterr().out
    assert main([*arguments, str(folder / "nowhere")]) == 0
    assert "teacher                      to do, never done here" in capsys.readouterr().out
    assert not (folder / "x").exists()


# ---------------------------------------------------------------- verification


def compared(
    recipe: Path, registry: Registry, again: tuple[BuildResult, Registry], before: list[Made]
) -> dict[str, Compared]:
    """What is registered against what a build gave again, as the command compares it."""
    result, other = again
    plan = plan_of(load_recipe(recipe))(load_recipe(recipe), recipe.parent, Cache(recipe.parent, print, dry=True))
    data = next(made.folder for made in result.steps if made.name == "data")
    kept = registered(registry, "tiny", file_digest(recipe))
    found = compare(kept, registry, result, other, before, lambda manifest, folder: plan.golden(manifest, folder, data))
    return {each.variant: each for each in found}


def test_two_builds_of_one_recipe_on_one_thread_are_the_same_bytes(
    recipe: Path, twice: list[tuple[BuildResult, Registry]]
) -> None:
    found = compared(recipe, twice[0][1], twice[1], twice[0][0].steps)
    assert {name: each.tier for name, each in found.items()} == dict.fromkeys(
        ("teacher", "int8", "distilled", "distilled-int8", "distilled-torch", "broken"), "bytes"
    )
    assert compared_lines(list(found.values()))[-1] == "6 of 6 artifacts are the same bit for bit"


def test_golden_rows_are_from_all_over_the_test_split(
    recipe: Path, twice: list[tuple[BuildResult, Registry]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.build.plan.GOLDEN_ROWS", 20)
    result, registry = twice[0]
    folders = {made.name: made.folder for made in result.steps}
    plan = plan_of(load_recipe(recipe))(load_recipe(recipe), recipe.parent, Cache(recipe.parent, print, dry=True))
    answers = plan.golden(*registry.open("tiny/teacher"), folders["data"])
    logits = np.load(folders["teacher-evaluation"] / "logits.npy")[spread(60, 20)]
    assert answers.classes.tolist() == logits.argmax(axis=1).tolist()
    # Through another batch the numbers may end differently.
    confidence = softmax(logits, registry.resolve("tiny/teacher").calibration["temperature"])
    assert answers.probabilities == pytest.approx(confidence, abs=1e-4)


def test_what_is_not_the_same_is_measured_on_the_golden_rows(
    tmp_path: Path, twice: list[tuple[BuildResult, Registry]]
) -> None:
    document = build_kit.recipe() | {"seed": 8}
    recipe = build_kit.write(tmp_path, document, build_kit.rows())
    other = Registry(tmp_path / "registry")
    again = build(recipe, other, cache_dir=tmp_path / "cache")
    teacher = compared(recipe, twice[0][1], (again, other), [])["teacher"]
    assert teacher.tier in ("decisions", "none")
    assert teacher.largest_difference > 0
    assert teacher.cause == "the recipe has changed since"


@pytest.mark.parametrize(
    ("build", "cause"),
    [
        ({"versions": versions() | {"torch": "1.0"}}, f"other library versions: torch 1.0 → {versions()['torch']}"),
        ({"cpu": {"model": "an older one", "flags": ["asimddp"]}}, "another processor: registered on an older one"),
        ({}, "which step gave other bytes is not known, because the cache has no longer all that the first build left"),
    ],
)
def test_the_newest_registered_revision_is_what_is_compared_with_and_the_cause_is_read_from_it(
    tmp_path: Path, recipe: Path, twice: list[tuple[BuildResult, Registry]], build: dict[str, Any], cause: str
) -> None:
    registry = copy_of(twice[0][1], tmp_path / "registry")
    assert nudged(registry, "tiny/distilled", 1e-4, build).ref == "tiny/distilled:2"
    found = compared(recipe, registry, twice[1], [])  # the steps of the first build are no longer there
    distilled = found.pop("distilled")
    assert (distilled.ref, distilled.tier, distilled.flips) == ("tiny/distilled:2", "decisions", 0)
    assert 0 < distilled.largest_difference < 0.02
    assert distilled.cause == cause
    assert {each.tier for each in found.values()} == {"bytes"}


def test_what_was_made_only_once_is_named(
    tmp_path: Path, recipe: Path, twice: list[tuple[BuildResult, Registry]]
) -> None:
    registry = copy_of(twice[0][1], tmp_path / "registry")
    for path in (registry.root / "models" / "tiny" / "broken").iterdir():
        path.unlink()
    again, other = twice[1]
    left = again._replace(
        manifests=[made for made in again.manifests if made.variant != "int8"], refused={"int8": "p99 ms 9 is over"}
    )
    found = compared(recipe, registry, (left, other), [])
    assert found["int8"].tier == found["broken"].tier == "none"
    assert found["int8"].cause == "this time it was refused: p99 ms 9 is over"
    assert found["broken"].cause.startswith("it is not registered: it was refused when it was built")
    assert math.isnan(found["int8"].largest_difference)
    assert "nan" not in "".join(compared_lines(list(found.values())))
    assert json.loads(json.dumps(compared_json(list(found.values())), allow_nan=False))


def test_of_two_recipes_of_a_model_each_is_compared_with_its_own(
    tmp_path: Path, recipe: Path, twice: list[tuple[BuildResult, Registry]]
) -> None:
    registry = copy_of(twice[0][1], tmp_path / "registry")
    ours = file_digest(recipe)
    for variant in ("teacher", "distilled"):
        nudged(registry, f"tiny/{variant}", 1e-4, {"recipe_sha256": "f" * 64})
    assert registered(registry, "tiny", ours)["distilled"].revision == 1
    assert registered(registry, "tiny", "f" * 64)["distilled"].revision == 2
    # A recipe that changed has what was built before it; nothing that no build made counts.
    assert registered(registry, "tiny", "e" * 64)["distilled"].revision == 2
    assert registered(registry, "another", ours) == {}


def test_a_variant_that_came_out_the_same_under_a_changed_recipe_is_part_of_its_build(
    tmp_path: Path, recipe: Path, twice: list[tuple[BuildResult, Registry]]
) -> None:
    registry = copy_of(twice[0][1], tmp_path / "registry")
    nudged(registry, "tiny/distilled", 1e-4, {"recipe_sha256": "f" * 64})  # its teacher is still the first
    nudged(registry, "tiny/teacher", 1e-4, {"recipe_sha256": "e" * 64})
    assert registered(registry, "tiny", "f" * 64)["teacher"].revision == 1


def test_the_command_builds_only_what_was_never_built_and_then_compares_with_it(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry(tmp_path / "registry")
    arguments = ["build", str(recipe), "--registry", str(registry.root), "--verify", "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)["variants"]
    assert {each["ref"]: each["tier"] for each in found} == {manifest.ref: "bytes" for manifest in registry.list()}
    assert len(found) == 6
    left = registry.root.parent
    assert sorted(path.name for path in left.iterdir() if path.name != ".verify.lock") == ["build", "registry"]
    nudged(registry, "tiny/distilled", 1e-4, {"versions": versions() | {"onnx": "1.0"}})
    before = [manifest.ref for manifest in registry.list()]
    assert main([*arguments[:-1], "--cache", str(tmp_path / "elsewhere" / "cache")]) == 0
    shown = capsys.readouterr().out
    assert "tiny/distilled:2" in shown
    assert "same decisions (probabilities differ by up to " in shown
    assert f": other library versions: onnx 1.0 → {versions()['onnx']}" in shown
    assert "5 of 6 artifacts are the same bit for bit" in shown
    assert [manifest.ref for manifest in registry.list()] == before
    assert not (tmp_path / "elsewhere" / "cache").exists()


# ---------------------------------------------------------------- the clean folder


def test_a_clean_folder_goes_with_its_process_however_that_ends(tmp_path: Path) -> None:
    def killed() -> None:
        with clean_folder(tmp_path) as folder:
            (folder / "registry").mkdir()
            (folder / "registry" / "blob").write_text("much")
            os.kill(os.getpid(), signal.SIGKILL)

    assert end_of(in_child(killed)) == -signal.SIGKILL
    (left,) = tmp_path.glob(".verify-*")
    with clean_folder(tmp_path) as first:
        assert not left.exists()
        with clean_folder(tmp_path) as second:
            assert first.is_dir()
            assert first != second
        assert first.is_dir()
    assert not list(tmp_path.glob(".verify-*"))


def test_the_first_step_that_gave_other_bytes_is_to_blame(tmp_path: Path) -> None:
    def step(side: str, name: str, key: str, content: str) -> Made:
        folder = tmp_path / side / name
        folder.mkdir(parents=True)
        (folder / "model.bin").write_text(content)
        (folder / "evaluation.json").write_text(side)  # measured times differ each time
        files = {path.name: file_digest(path) for path in folder.iterdir()}
        write_json(folder / "done.json", {"files": files, "seconds": 1.0})
        return Made(name, key, folder, 1.0, False)

    kept = [step("one", "data", "a", "x"), step("one", "teacher", "b", "x"), step("one", "int8", "c", "x")]
    again = [step("two", "data", "a", "x"), step("two", "teacher", "b", "y"), step("two", "int8", "c", "y")]
    assert different_steps(kept, again) == ["teacher", "int8"]
    assert different_steps(kept, [step("three", "data", "z", "q")]) == []


def test_a_line_says_the_tier_and_the_cause() -> None:
    line = compared_lines([Compared("int8", "m/int8:1", "decisions", 0.001, 0, "other library versions: torch 1 → 2")])
    assert line[0].endswith("same decisions (probabilities differ by up to 0.001): other library versions: torch 1 → 2")
