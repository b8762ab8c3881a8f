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
from serving.build.cache import BuildError, Cache, Made, StepFunction
from serving.build.cpu import cpu_info
from serving.build.damage import damage
from serving.build.data import check_data
from serving.build.distill import train_students
from serving.build.evaluate import calibrate, evaluate
from serving.build.export import export_onnx
from serving.build.quantize import quantize
from serving.build.recipe import Recipe, load_recipe
from serving.build.reference import train_reference
from serving.build.tokenizer import train_tokenizer
from serving.build.train import train_teacher
from serving.clock import SystemClock
from serving.governance.policy import BUILT_IN, Policy, load_policy
from serving.registry.files import file_digest
from serving.registry.manifest import Manifest
from serving.registry.store import Registry

_HERE = Path(__file__).parent
_SERVING = _HERE.parent
_NETWORKS = (_SERVING / "runtimes" / "modules.py", _HERE / "train.py", _HERE / "data.py", _HERE / "tokenizer.py")
_MEASURING = (
    _SERVING / "runtimes" / "pipeline.py",
    _SERVING / "runtimes" / "onnx.py",
    _SERVING / "runtimes" / "torch.py",
    _HERE / "metrics.py",
    _HERE / "manifests.py",
    _HERE / "data.py",
)


class BuildResult(NamedTuple):
    """What a build made.

    `cached` tells that no step had to be done; `refused` says of each variant that missed a requirement
    (and was not registered) which; `seconds` is the wall time of this call.
    """

    manifests: list[Manifest]
    seconds: float
    cached: bool
    report_path: Path
    refused: dict[str, str]


class Variant(NamedTuple):
    """One artifact on its way: its files, how its answers are read, what was measured."""

    name: str
    format: str
    model: Made
    calibration: Made
    evaluation: Made


def build(recipe_path: Path, registry: Registry, *, cache_dir: Path, console: Console | None = None) -> BuildResult:
    """Carry out a recipe. Steps whose inputs have not changed are taken from the cache.

    Args:
        recipe_path: the YAML file; the data file is relative to it.
        registry: where the variants are registered; the report goes to its `reports` folder.
        cache_dir: the folder of finished steps.
        console: where progress is shown; None shows nothing.

    Raises:
        ConfigError: the recipe cannot be used.
        BuildError: a step failed, or the teacher misses a requirement.
        RegistryError: the registry cannot be written.
    """
    clock = SystemClock()
    started = clock.monotonic_ns()
    recipe = load_recipe(recipe_path)
    policy = _policy(recipe, recipe_path)
    # Progress is ours to show; the tokenizer warns about processes it does not know.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    with _progress(console) as listen:
        cache = Cache(cache_dir, listen)
        with cache.locked():
            steps = _Steps(recipe, recipe_path.parent / recipe.data.file, cache)
            variants = steps.run()
            outcome = publish.publish(recipe, file_digest(recipe_path), registry, steps.made, variants, policy)
            path = report.write(recipe, registry.root / "reports", steps.made, variants, outcome)
    seconds = (clock.monotonic_ns() - started) / 1e9
    cached = all(made.cached for made in cache.made)
    if "teacher" in outcome.refused:
        raise BuildError(f"the teacher is not good enough: {outcome.refused['teacher']}; see {path}")
    return BuildResult(outcome.manifests, seconds, cached, path, outcome.refused)


def _policy(recipe: Recipe, path: Path) -> Policy | None:
    """The policy that the recipe names, before anything is done. Raises `ConfigError`."""
    given = recipe.requirements.policy
    if given is None:
        return None
    return load_policy(given if given in BUILT_IN else str(path.parent / given))


class _Steps:
    """The steps of a text classifier, in order."""

    def __init__(self, recipe: Recipe, data: Path, cache: Cache) -> None:
        self._recipe = recipe
        self._data = data
        self._cache = cache
        self._labels = list(recipe.labels)
        self.made: dict[str, Made] = {}

    def run(self) -> list[Variant]:
        recipe = self._recipe
        common = {"labels": self._labels, "max_chars": recipe.tokenizer.max_chars}
        data = self._step("data", check_data, {"labels": self._labels}, {}, files={"file": self._data})
        tokenizer = self._step(
            "tokenizer",
            train_tokenizer,
            {
                "labels": self._labels,
                "vocabulary": recipe.tokenizer.vocabulary,
                "max_tokens": recipe.tokenizer.max_tokens,
            },
            {"data": data},
        )
        base = {"data": data, "tokenizer": tokenizer}
        teacher = self._step(
            "teacher",
            train_teacher,
            {
                **common,
                "teacher": recipe.teacher.model_dump(mode="json"),
                "max_tokens": recipe.tokenizer.max_tokens,
                "seed": recipe.seed,
                "threads": recipe.threads,
            },
            base,
            _NETWORKS,
        )
        teacher_onnx = self._export("teacher-onnx", teacher)
        variants = [self._variant("teacher", "onnx", teacher_onnx, None)]
        judge = variants[0]
        variants.append(self._variant("int8", "onnx", self._quantize("int8-onnx", teacher_onnx, base), judge))

        student = self._step(
            "student",
            train_students,
            {**common, "student": recipe.student.model_dump(mode="json"), "threads": recipe.threads},
            {**base, "teacher": teacher},
            (*_NETWORKS, _SERVING / "runtimes" / "torch.py"),
        )
        student_onnx = self._export("student-onnx", student)
        variants.append(self._variant("distilled", "onnx", student_onnx, judge))
        small = self._quantize("student-int8-onnx", student_onnx, base)
        variants.append(self._variant("distilled-int8", "onnx", small, judge))
        variants.append(self._variant("distilled-torch", "torch", student, judge))
        self._step("reference", train_reference, {"labels": self._labels, "min_df": 2}, {"data": data})
        if recipe.damage is not None:
            damaged = self._step(
                "damage",
                damage,
                {**common, "damage": recipe.damage.model_dump(mode="json"), "threads": recipe.threads},
                {**base, "student": student, "teacher": teacher},
                _NETWORKS,
            )
            broken = self._export("broken-onnx", damaged)
            # Nobody recalibrated it: it is served with the temperature of its parent.
            variants.append(self._variant("broken", "onnx", broken, judge, calibration=variants[2].calibration))
        return variants

    def _step(
        self,
        name: str,
        function: StepFunction,
        parameters: dict[str, Any],
        needs: dict[str, Made],
        sources: tuple[Path, ...] = (_HERE / "data.py",),
        files: dict[str, Path] | None = None,
    ) -> Made:
        made = self._cache.step(name, function, parameters=parameters, needs=needs, sources=sources, files=files)
        self.made[name] = made
        return made

    def _export(self, name: str, module: Made) -> Made:
        return self._step(name, export_onnx, {"weights": "model.safetensors"}, {"module": module}, _NETWORKS[:1])

    def _quantize(self, name: str, model: Made, base: dict[str, Made]) -> Made:
        parameters = {
            "labels": self._labels,
            "max_chars": self._recipe.tokenizer.max_chars,
            "buckets": list(self._recipe.tokenizer.buckets),
            "quantize": self._recipe.quantize.model_dump(mode="json"),
            "cpu": cpu_info()["flags"],
        }
        return self._step(name, quantize, parameters, {**base, "model": model}, (_HERE / "train.py", _HERE / "cpu.py"))

    def _variant(
        self, name: str, format: str, model: Made, judge: Variant | None, calibration: Made | None = None
    ) -> Variant:
        parameters = {
            "labels": self._labels,
            "variant": name,
            "format": format,
            "tokenizer": self._recipe.tokenizer.model_dump(mode="json"),
            "cpu": cpu_info(),
        }
        needs = {"data": self.made["data"], "tokenizer": self.made["tokenizer"], "model": model}
        if calibration is None:
            seen = {"teacher": judge.calibration} if judge is not None else {}
            calibration = self._step(f"{name}-temperature", calibrate, parameters, {**needs, **seen}, _MEASURING)
        needs["calibration"] = calibration
        if judge is not None:
            needs["teacher"] = judge.evaluation
        evaluation = self._step(f"{name}-evaluation", evaluate, parameters, needs, _MEASURING)
        return Variant(name, format, model, calibration, evaluation)


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
