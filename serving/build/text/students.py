"""The search for a student: temperatures, weights of the teacher's loss and sizes, beside controls of each size.

Like every search it measures on validation and takes one by the recipe's rule. An accuracy is the mean over the seeds;
time, size, divergence and slices are those of the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.build.cache import Made
from serving.build.search.choose import bounded, choose, refusal
from serving.build.search.recipe import SearchRecipe
from serving.build.search.run import Search, Subject, as_trial, with_front
from serving.build.text.distill import train_candidate
from serving.build.text.interface import TOKENIZER, text_interface
from serving.build.text.recipe import StudentRecipe
from serving.build.text.steps import NETWORKS, RUNTIMES, TextSteps

_NONE = "no candidate meets the requirements on validation; the first is left to the gate"
_SOURCES = (*NETWORKS, RUNTIMES / "torch.py")


def search_students(
    plan: TextSteps, recipe: SearchRecipe, teacher: Made, source: Made
) -> tuple[StudentRecipe, dict[str, Any]]:
    """Try the settings of `recipe.students`, and take one.

    Args:
        teacher: the step of the teacher's module; `source`: that of its ONNX.

    Returns:
        the recipe's student with the settings that were taken, and the whole search as JSON values for the report.
    """
    assert recipe.students is not None
    base = plan.recipe.student
    subject = Subject(
        "student",
        source,
        teacher,
        text_interface(plan.recipe.labels, plan.recipe.tokenizer),
        {TOKENIZER: plan.made["tokenizer"].folder / TOKENIZER},
        lambda name, changes: plan.quantized(name, source, changes),
        {},
    )
    run = Search(plan, subject)
    trials = {"teacher": run.trial("teacher", source)}
    runs: dict[str, Made] = {}
    settings = bounded(recipe.students.settings(base.width, base.hidden), recipe.candidates)
    controls = {control["name"]: control for each in settings if (control := _control(each))}
    for each in (*settings, *controls.values()):
        name = each["name"]
        student = {**base.model_dump(mode="json", exclude={"qad"}), **each["student"]}
        student["seeds"] = list(recipe.students.seeds)
        parameters = {**plan.common, "student": student, "threads": plan.recipe.threads}
        runs[name] = plan.step(
            f"student-{name}", train_candidate, parameters, {**plan.base, "teacher": teacher}, _SOURCES
        )
        trials[name] = run.trial(name, plan.export(f"student-{name}-onnx", runs[name]))
    requirements = plan.recipe.requirements.model_dump()
    rows: dict[str, dict[str, Any]] = {}
    for name, made in trials.items():
        row = made.read("trial.json")
        if name in runs:
            accuracies = [found["accuracy"] for found in runs[name].read("candidate.json")["runs"]]
            row |= {"accuracy": float(np.mean(accuracies)), "spread": float(np.std(accuracies))}
        rows[name] = {**row, "refused": refusal(row, requirements)}
    candidates = [as_trial(each["name"], rows[each["name"]]) for each in settings if not rows[each["name"]]["failed"]]
    choice = choose(candidates, recipe.prefer)
    chosen = next((each for each in settings if choice and each["name"] == choice.name), settings[0])
    found = {
        "variant": "distilled",
        "chosen": chosen["name"],
        "why": choice.why if choice else _NONE,
        "prefer": recipe.prefer,
        "left_out": len(recipe.students.settings(base.width, base.hidden)) - len(settings),
        "control": _against_control(rows, chosen),
        "trials": with_front(rows),
    }
    return base.model_copy(update=chosen["student"]), found


def _control(each: Mapping[str, Any]) -> dict[str, Any]:
    """The control of a candidate's size: alpha 0, so that temperature and teacher have no say."""
    student = {**each["student"], "alpha": 0.0}
    return {"name": f"control-w{student['width']}-h{student['hidden']}", "student": student | {"temperature": 1.0}}


def _against_control(rows: Mapping[str, Mapping[str, Any]], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The mean accuracy of what was taken, less that of its control, and the noise of such a difference."""
    control, ours = rows[_control(chosen)["name"]], rows[chosen["name"]]
    p = control["accuracy"]
    return {
        "name": _control(chosen)["name"],
        "difference": ours["accuracy"] - p,
        # Both were asked the same rows, which makes this an upper bound.
        "noise": 2 * max(float(np.sqrt(p * (1 - p) / control["rows"])), ours["spread"], control["spread"]),
    }
