"""A dry run tells what a build would do; a verification tells what a second build gives back, and why not more."""

from __future__ import annotations

from pathlib import Path

import build_kit
import pytest

from serving.build.cache import Made, write_json
from serving.build.dry_run import dry_run
from serving.build.runner import BuildResult, build
from serving.build.verify import Compared, compare, different_steps
from serving.cli import main
from serving.commands.render_build import compared_lines
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


def test_two_builds_of_one_recipe_on_one_thread_are_the_same_bytes(twice: list[tuple[BuildResult, Registry]]) -> None:
    (kept, registry), (again, other) = twice
    compared = compare(kept, registry, again, other)
    assert {each.variant: each.tier for each in compared} == dict.fromkeys(
        ("teacher", "int8", "distilled", "distilled-int8", "distilled-torch", "broken"), "bytes"
    )
    assert compared_lines(compared)[-1] == "6 of 6 artifacts are the same bit for bit"


def test_what_is_not_the_same_is_measured_on_the_golden_rows(
    tmp_path: Path, twice: list[tuple[BuildResult, Registry]]
) -> None:
    kept, registry = twice[0]
    document = build_kit.recipe() | {"seed": 8}
    recipe = build_kit.write(tmp_path, document, build_kit.rows())
    other = Registry(tmp_path / "registry")
    again = build(recipe, other, cache_dir=tmp_path / "cache")
    found = {each.variant: each for each in compare(kept, registry, again, other)}
    teacher = found["teacher"]
    assert teacher.tier in ("decisions", "none")
    assert teacher.largest_difference > 0
    assert teacher.cause == "the recipe has changed since"


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
