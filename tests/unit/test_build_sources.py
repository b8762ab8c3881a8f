"""The key of a step that measures names every source its numbers hang on: else a change would find stale results."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anomaly_kit
import build_kit
import pytest
from test_build_imported import write as write_imported
from test_imports import MODULES, ours

from serving.build.cache import Cache, Made, NotDoneError
from serving.build.evidence.steps import gather
from serving.build.kinds import load_recipe, plan_of

#: What carries a step and its files and makes no number: what of a manifest or recipe counts is in the parameters.
CARRIES = {
    *(f"serving.build.{name}" for name in ("cache", "plan", "recipe", "training")),
    *("serving.clock", "serving.errors", "serving.config_section", "serving.governance.settings"),
    *("serving.registry.files", "serving.registry.manifest"),
}


class Recorded(Cache):
    """A dry run that keeps the function and the sources of each step."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, lambda *_: None, dry=True)
        self.asked: dict[str, tuple[Callable[..., Any], set[Path]]] = {}

    def step(self, name: str, function: Any, **given: Any) -> Made:
        own = MODULES[function.__module__]
        self.asked[name] = (function, {own, *given.get("sources", ())})
        return super().step(name, function, **given)


def steps_of(folder: Path, recipe: Path) -> dict[str, tuple[Callable[..., Any], set[Path]]]:
    loaded, cache = load_recipe(recipe), Recorded(folder / "cache")
    plan = plan_of(loaded)(loaded, recipe.parent, cache)
    with suppress(NotDoneError):  # a search reads what it measured
        gather(plan, plan.run())
    return cache.asked


def reached_by(module: str) -> set[str]:
    """Modules of ours that one imports, itself and through others, but for what carries and what only that imports."""
    seen, pending = {module}, [module]
    while pending:
        fresh = ours(pending.pop()) - CARRIES - seen
        seen |= fresh
        pending += fresh
    return {name for name in seen if MODULES[name].name != "__init__.py"}


def write_text(folder: Path) -> Path:
    return build_kit.write(folder, build_kit.recipe(), build_kit.rows())


def write_search(folder: Path) -> Path:
    search = {"quantize": {"ranges": ["minmax"], "float_layers": [1]}}
    return build_kit.write(folder, build_kit.recipe() | {"search": search}, build_kit.rows())


def write_anomaly(folder: Path) -> Path:
    return anomaly_kit.write(folder, anomaly_kit.recipe(), anomaly_kit.rows())


MEASURE = {
    "calibrate": (write_text, write_anomaly),
    "evaluate": (write_text,),
    "snapshot": (write_text, write_anomaly),
    "check_drift": (write_text, write_anomaly),
    "examine_variant": (write_text, write_anomaly),
    "evaluate_detector": (write_anomaly,),
    "evaluate_stream": (write_imported,),
    "measure_trial": (write_search,),
    "rank_layers": (write_search,),
}


@pytest.mark.parametrize(
    ("function", "write"), [(name, write) for name, writers in MEASURE.items() for write in writers]
)
def test_a_step_that_measures_names_every_source_it_reaches(
    tmp_path: Path, function: str, write: Callable[[Path], Path]
) -> None:
    found = [step for step in steps_of(tmp_path, write(tmp_path)).values() if step[0].__name__ == function]
    assert found
    for measure, sources in found:
        missing = {name for name in reached_by(measure.__module__) if MODULES[name] not in sources}
        assert not missing, f"{function} reaches {', '.join(sorted(missing))}"


@pytest.mark.parametrize("write", [write_text, write_anomaly, write_imported])
def test_a_step_that_quantizes_names_what_it_reaches_of_the_build(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    found = [step for step in steps_of(tmp_path, write(tmp_path)).values() if step[0].__name__ == "quantize"]
    assert found
    for quantize, sources in found:
        reached = reached_by(quantize.__module__)
        assert {MODULES[name] for name in reached if name.startswith("serving.build.")} <= sources
