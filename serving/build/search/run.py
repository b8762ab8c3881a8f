"""The search itself: candidates as cached steps, measured on validation, one of them taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from serving.build.cache import Made
from serving.build.cpu import cpu_info
from serving.build.evidence.steps import SOURCES
from serving.build.interface import Interface
from serving.build.plan import Plan
from serving.build.search.choose import Choice, Trial, bounded, choose, front, refusal
from serving.build.search.formats import FORMS, convert, tools
from serving.build.search.recipe import SearchRecipe
from serving.build.search.sensitivity import rank_layers
from serving.build.search.trial import measure_trial
from serving.runtimes.base import TorchMode

_SOURCES = (*SOURCES, Path(__file__).parents[1] / "quantize.py")
_RUNTIMES = {"onnx": "onnxruntime", "torch": "torch"}


class Subject(NamedTuple):
    """What is searched for: a cheaper form of one model.

    Attributes:
        name: of the variant that will be made.
        source: the step with its fp32 `model.onnx`.
        module: the step with its `model.safetensors`.
        interface: what it takes and gives.
        files: further files by name.
        quantize: makes a quantize step from its name and the changes to the recipe's `quantize`.
        settings: the recipe's `quantize`.
    """

    name: str
    source: Made
    module: Made
    interface: Interface
    files: Mapping[str, Path]
    quantize: Callable[[str, Mapping[str, Any]], Made]
    settings: Mapping[str, Any]


class Search:
    """One search; every candidate is a step of the plan."""

    def __init__(self, plan: Plan[Any], subject: Subject) -> None:
        self._plan = plan
        self._subject = subject
        self._judge: Made | None = None

    def trial(self, label: str, model: Made, format: str = "onnx", mode: TorchMode = "eager") -> Made:
        """Measure a candidate; the first one measured is what the others are compared with."""
        needs = {"data": self._plan.made["data"], "model": model}
        if self._judge is not None:
            needs["judge"] = self._judge
        name = f"{self._subject.name}-{label}-trial"
        parameters = self._parameters(format) | {"runtime": _RUNTIMES[format], "mode": mode}
        if needed := tools(mode):
            parameters["tools"] = needed
        made = self._plan.step(name, measure_trial, parameters, needs, _SOURCES, dict(self._subject.files))
        self._judge = self._judge or made
        return made

    def ranking(self, ranges: Made) -> list[str]:
        """Nodes of the source, those first that suffer most from rounding."""
        needs = {"data": self._plan.made["data"], "model": self._subject.source, "ranges": ranges}
        parameters = self._parameters("onnx") | {"quantize": dict(self._subject.settings)}
        name = f"{self._subject.name}-sensitivity"
        made = self._plan.step(name, rank_layers, parameters, needs, _SOURCES, dict(self._subject.files))
        return [layer["node"] for layer in made.read("sensitivity.json")["layers"]]

    def _parameters(self, format: str) -> dict[str, Any]:
        return {
            "labels": list(self._plan.recipe.labels),
            "variant": self._subject.name,
            "format": format,
            "interface": self._subject.interface.as_json(),
            "files": sorted(self._subject.files),
            "cpu": cpu_info(),
        }


def search(plan: Plan[Any], recipe: SearchRecipe, subject: Subject) -> tuple[Made, dict[str, Any]]:
    """Try what the recipe asks for, and take one candidate.

    Returns:
        the quantize step that is taken, and the whole search as JSON values for the report.

    Raises:
        BuildError: a candidate cannot be made.
    """
    run = Search(plan, subject)
    trials = {"fp32": run.trial("fp32", subject.source)}
    models = dict[str, Made]()
    settings = recipe.quantize.settings() if recipe.quantize else []
    for each in bounded(settings, recipe.candidates):
        changes = dict(each["quantize"])
        if each["float_layers"]:
            ranges = models.get("minmax") or subject.quantize(f"{subject.name}-minmax", {"ranges": "minmax"})
            changes["exclude"] = run.ranking(ranges)[: each["float_layers"]]
        models[each["name"]] = subject.quantize(f"{subject.name}-{each['name']}", changes)
        trials[each["name"]] = run.trial(each["name"], models[each["name"]])
    if not models:
        models["as the recipe says"] = subject.quantize(f"{subject.name}-onnx", {})
        trials["as the recipe says"] = run.trial("onnx", models["as the recipe says"])
    for form in recipe.formats:
        format, mode = FORMS[form]
        needs = {"onnx": subject.source, "module": subject.module}
        parameters = {"form": form, "operators": list(subject.settings["operators"])}
        model = plan.step(f"{subject.name}-form-{form}", convert, parameters, needs)
        trials[form] = run.trial(form, model, format, mode)
    measured = {name: made.read("trial.json") for name, made in trials.items()}
    requirements = plan.recipe.requirements.model_dump()
    rows = {name: {**found, "refused": refusal(found, requirements)} for name, found in measured.items()}
    candidates = [as_trial(name, rows[name]) for name in models if not rows[name]["failed"]]
    choice = choose(candidates, recipe.prefer) or _nearest(candidates, next(iter(models)))
    return models[choice.name], {
        "variant": subject.name,
        "chosen": choice.name,
        "why": choice.why,
        "prefer": recipe.prefer,
        "left_out": len(settings) - min(len(settings), recipe.candidates),
        "trials": with_front(rows),
    }


def as_trial(name: str, row: Mapping[str, Any]) -> Trial:
    """A row of a search, once it has its reason to be refused, as the rule looks at it."""
    spent = row["latency_ms"]["batch_1"]
    return Trial(
        name, row["rows"], row["accuracy"], row["mean_kl"], spent["p50"], spent["p99"], row["bytes"], row["refused"]
    )


def _nearest(candidates: list[Trial], first: str) -> Choice:
    """When all are refused the nearest goes on, and the gate refuses it by the test split."""
    name = min(candidates, key=lambda trial: trial.divergence).name if candidates else first
    return Choice(name, "no candidate meets the requirements on validation; the nearest is left to the gate")


def with_front(rows: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The rows, each with whether no other is faster, more accurate and smaller at once."""
    ran = [name for name, row in rows.items() if not row["failed"]]
    points = [
        (rows[name]["latency_ms"]["batch_1"]["p50"], -rows[name]["accuracy"], rows[name]["bytes"]) for name in ran
    ]
    on = dict(zip(ran, front(points), strict=True))
    return {name: {**row, "front": on.get(name, False)} for name, row in rows.items()}
