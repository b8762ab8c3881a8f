"""What each choice of a recipe is worth: the same made without it, measured on the same test rows.

Nothing of this is registered, and nothing is chosen by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from serving.build.cache import Made
from serving.build.plan import Variant
from serving.build.recipe import QuantizeRecipe
from serving.build.text.paired import paired
from serving.build.text.steps import TextSteps

#: Calibration rows of the ablation that has but few.
FEW_ROWS = 16


def _of_int8(recipe: QuantizeRecipe) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Step, what is left out, changes to `quantize`; only what the recipe has can be left out."""
    if recipe.per_channel:
        yield "int8-per-tensor", "one scale for each channel", {"per_channel": False}
    if recipe.ranges != "minmax":
        yield "int8-minmax", f"ranges by {recipe.ranges}", {"ranges": "minmax"}
    if recipe.rows > FEW_ROWS:
        yield "int8-few-rows", f"all but {FEW_ROWS} of {recipe.rows} calibration rows", {"rows": FEW_ROWS}


def _taken(plan: TextSteps, int8: Made) -> tuple[QuantizeRecipe, dict[str, Any]]:
    """How the INT8 that is registered was made, whole and as changes: as the recipe says, or as its search took it."""
    recipe = plan.recipe.quantize
    if plan.searched is None:
        return recipe, {}
    made = int8.read("quantization.json")
    settings = {key: made[key] for key in ("per_channel", "ranges")} | {
        "percentile": made["percentile"] or recipe.percentile
    }
    return recipe.model_copy(update=settings), {**settings, "exclude": made["kept_in_float"]}


def make(plan: TextSteps, student: Made, source: Made, int8: Made, judge: Variant) -> None:
    """Make and measure what `compared` compares.

    Args:
        student: the step of the students, whose control is the student without distillation.
        source: the teacher's ONNX; `int8`: its INT8.
    """
    recipe, settings = _taken(plan, int8)
    for step, _, changes in _of_int8(recipe):
        plan.measured(step, "onnx", plan.quantized(f"{step}-onnx", source, settings | changes), judge)
    plan.measured("control", "onnx", plan.export("control-onnx", student, "control.safetensors"), judge)


def compared(plan: TextSteps, int8: Made, truth: np.ndarray) -> list[dict[str, Any]]:
    """One row for each choice: `of`, `without`, what was `measured` with it and without, and the paired comparison."""
    made = plan.made
    rows = [("int8", step, what) for step, what, _ in _of_int8(_taken(plan, int8)[0])]
    rows.append(("distilled", "control", "the teacher (labels alone)"))
    return [
        {
            "of": of,
            "without": what,
            "with": _numbers(made, of),
            "measured": _numbers(made, step),
            "pair": paired(_right(made, of, truth), _right(made, step, truth)),
        }
        for of, step, what in rows
    ]


def by_variant(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same for manifests: of each variant `ablations`, what it would be without a choice, by that choice."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        pair = row["pair"]
        without = {
            **row["measured"],
            "right_only_with": pair["only_this"],
            "right_only_without": pair["only_other"],
            "p_value": pair["p_value"],
        }
        found.setdefault(row["of"], {"ablations": {}})["ablations"][row["without"]] = without
    return found


def _right(made: Mapping[str, Made], name: str, truth: np.ndarray) -> np.ndarray:
    logits = np.load(made[f"{name}-evaluation"].folder / "logits.npy")
    return np.asarray(logits.argmax(axis=1) == truth)


def _numbers(made: Mapping[str, Made], name: str) -> dict[str, Any]:
    found = made[f"{name}-evaluation"].read("evaluation.json")
    return {key: found[key] for key in ("accuracy", "accuracy_ci", "teacher_disagreement")}
