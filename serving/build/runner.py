"""`canarium build`: from a recipe to registered variants and a report.

Importing this module imports neither torch nor onnxruntime nor scikit-learn: only the steps that are
really done do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from serving.build import publish, report
from serving.build.cache import BuildError, Cache, Made
from serving.build.evidence.steps import gather
from serving.build.kinds import load_recipe, plan_of, policy_of
from serving.clock import SystemClock
from serving.registry.files import file_digest
from serving.registry.manifest import Manifest
from serving.registry.store import Registry


class BuildResult(NamedTuple):
    """What a build made.

    `cached` tells that no step had to be done; `refused` says of each variant that missed a requirement
    (and was not registered) which; `seconds` is the wall time of this call; `steps` are all steps in order.
    """

    manifests: list[Manifest]
    seconds: float
    cached: bool
    report_path: Path
    refused: dict[str, str]
    steps: list[Made]


def build(recipe_path: Path, registry: Registry, *, cache_dir: Path, console: Console | None = None) -> BuildResult:
    """Carry out a recipe. Steps whose inputs have not changed are taken from the cache.

    Args:
        recipe_path: the YAML file; the files it names are relative to it.
        registry: where the variants are registered; the report goes to its `reports` folder.
        cache_dir: the folder of finished steps.
        console: where progress is shown; None shows nothing.

    Raises:
        ConfigError: the recipe cannot be used.
        BuildError: a step failed, or the trusted variant misses a requirement.
        RegistryError: the registry cannot be written.
    """
    clock = SystemClock()
    started = clock.monotonic_ns()
    recipe = load_recipe(recipe_path)
    policy = policy_of(recipe, recipe_path)
    # Progress is ours to show; the tokenizer warns about processes it does not know.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    with _progress(console) as listen:
        cache = Cache(cache_dir, listen)
        with cache.locked():
            plan = plan_of(recipe)(recipe, recipe_path.parent, cache)
            variants = plan.run()
            evidence = gather(plan, variants)
            plan.check(variants)
            outcome = publish.publish(plan, file_digest(recipe_path), registry, variants, evidence, policy)
            path = report.write(registry.root / "reports", plan, variants, evidence, outcome)
    seconds = (clock.monotonic_ns() - started) / 1e9
    cached = all(made.cached for made in cache.made)
    trusted = variants[0].name
    if trusted in outcome.refused:
        raise BuildError(f"the {trusted} is not good enough: {outcome.refused[trusted]}; see {path}")
    return BuildResult(outcome.manifests, seconds, cached, path, outcome.refused, list(plan.made.values()))


@contextmanager
def _progress(console: Console | None) -> Iterator[Any]:
    if console is None:
        yield lambda name, done, total, note: None
        return
    columns = (
        TextColumn("  {task.description:<24}"),
        BarColumn(bar_width=28),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        running: dict[str, TaskID] = {}

        def listen(name: str, done: float, total: float, note: str) -> None:
            if name not in running:
                running[name] = progress.add_task(name, total=total, note=note)
            task = running[name]
            finished = note == "cached" or (done >= total and note.endswith(" s"))
            if finished:
                progress.remove_task(task)
                progress.console.print(f"  [green]✓[/] {name:<24} [dim]{note}[/]", highlight=False)
            else:
                progress.update(task, completed=done, total=total, note=note)

        yield listen
