"""Who pays for a cheaper model: what each slice of the rows loses, beside what all of them lose.

A compressed model can keep its accuracy and still fail one group (Hooker et al., "What Do Compressed Deep Neural
Networks Forget?", 2019). A slice that looks worst was picked after looking, so its interval must hold for all
slices at once: Bonferroni's.

Two slices are named: the one that loses most against the teacher, and the one with the lowest accuracy. They differ:
what is bad in both models is lost by neither, and the teacher loses nothing against itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from serving.build import metrics
from serving.build.evidence.flips import paired_change_interval

#: Slices of fewer rows are shown but never named: their numbers are mostly chance.
LEAST_ROWS = 20
LEVEL = 0.05


def class_slices(truth: np.ndarray, labels: Sequence[str]) -> dict[str, np.ndarray]:
    """One slice a class: name -> mask bool [n]. `truth` are class indices [n]."""
    return {f"class={label}": truth == index for index, label in enumerate(labels)}


def tercile_slices(name: str, values: np.ndarray, edges: Sequence[float]) -> dict[str, np.ndarray]:
    """Three slices by a number of each row, float [n]; `edges` are the two cuts, made on other rows than these."""
    low, high = edges
    return {
        f"{name}=low (to {low:g})": values <= low,
        f"{name}=middle": (values > low) & (values <= high),
        f"{name}=high (over {high:g})": values > high,
    }


def tercile_edges(values: np.ndarray) -> tuple[float, float]:
    """The cuts that part `values` [n] in three of about equal size."""
    low, high = np.quantile(values, (1 / 3, 2 / 3))
    return round(float(low), 6), round(float(high), 6)


def compare_slices(masks: Mapping[str, np.ndarray], right: np.ndarray, teacher_right: np.ndarray) -> dict[str, Any]:
    """Accuracy by slice against the teacher's.

    Args:
        masks: slice -> bool [n].
        right, teacher_right: whether each row is answered rightly, bool [n].

    Returns:
        JSON values: `slices`, each with `rows`, `accuracy` and its Wilson interval, `teacher_accuracy`, `change` and
        its interval (simultaneous over all slices); `overall_change`; `worst`: the slice that loses most, with `excess`
        (its change less the overall one) and `singled_out`: whether even the upper end of its interval is under the
        overall change; and `lowest`: the slice with the lowest accuracy, its interval simultaneous too. Both are None
        if no slice is large enough.
    """
    z = NormalDist().inv_cdf(1 - LEVEL / (2 * max(len(masks), 1)))
    slices = dict[str, dict[str, Any]]()
    for name, mask in masks.items():
        rows = int(mask.sum())
        if rows == 0:
            continue
        ours, theirs = right[mask], teacher_right[mask]
        gained, lost = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
        slices[name] = {
            "rows": rows,
            "accuracy": float(ours.mean()),
            "accuracy_ci": metrics.wilson(int(ours.sum()), rows),
            "teacher_accuracy": float(theirs.mean()),
            "change": (gained - lost) / rows,
            "change_ci": paired_change_interval(gained, lost, rows, z),
        }
    overall = float(right.mean() - teacher_right.mean())
    large = {name: found for name, found in slices.items() if found["rows"] >= LEAST_ROWS}
    worst = None
    if large:
        name = min(large, key=lambda each: (large[each]["change"], each))
        change = large[name]["change"]
        worst = {
            "slice": name,
            "change": change,
            "change_ci": large[name]["change_ci"],
            "accuracy": large[name]["accuracy"],
            "accuracy_ci": large[name]["accuracy_ci"],
            "excess": change - overall,
            "singled_out": large[name]["change_ci"][1] < overall,
        }
    found = lowest_accuracy({"slices": slices})
    lowest = None
    if found is not None:
        name, accuracy = found
        rows = slices[name]["rows"]
        interval = metrics.wilson(int(right[masks[name]].sum()), rows, z)
        lowest = {"slice": name, "rows": rows, "accuracy": accuracy, "accuracy_ci": interval}
    return {"slices": slices, "overall_change": overall, "worst": worst, "lowest": lowest}


def lowest_accuracy(evaluated: Mapping[str, Any]) -> tuple[str, float] | None:
    """The slice of at least `LEAST_ROWS` rows with the lowest accuracy, and that; None if no slice has so many."""
    large = [(each["accuracy"], name) for name, each in evaluated["slices"].items() if each["rows"] >= LEAST_ROWS]
    if not large:
        return None
    accuracy, name = min(large)
    return name, accuracy
