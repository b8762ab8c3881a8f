"""An anomaly detector's own sections of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.build.plan import Part


def parts(document: Mapping[str, Any]) -> list[Part]:
    return [Part("Ranking", _ranking(document)), Part("Distillation", _distillation(document))]


def notes(document: Mapping[str, Any]) -> list[str]:
    """On the models."""
    return [
        f"- Teacher: {document['teacher']['parameters']:,} parameters; student and control: "
        f"{document['students']['parameters']:,}. A network of that size gains nothing from INT8, so none is made.",
        f"- Seeds: {document['recipe']['seed']} (teacher), {document['recipe']['student']['seeds']} (students).",
    ]


def _ranking(document: Mapping[str, Any]) -> list[str]:
    lines = [
        "| variant | average precision | 95 % interval | ROC AUC | 95 % interval |",
        "|---|---|---|---|---|",
    ]
    for name, row in document["variants"].items():
        lines.append(f"| {name} | {_cells(row['measured'])} |")
    draws = document["comparison"]["draws"]
    return [*lines, "", f"Percentile intervals of {draws:,} stratified bootstrap resamples of the test rows."]


def _distillation(document: Mapping[str, Any]) -> list[str]:
    comparison = document["comparison"]
    runs = {(run["kind"], run["seed"]): run for run in comparison["runs"]}
    lines = [
        "Student and control have the same size, seeds, batches and schedule. The student sees the teacher's score and "
        "no label; the control sees the labels and no teacher.",
        "",
        "| seed | distilled: average precision | 95 % interval | control: average precision | 95 % interval |",
        "|---|---|---|---|---|",
    ]
    for seed in document["recipe"]["student"]["seeds"]:
        pair = [runs[kind, seed] for kind in ("distilled", "control")]
        lines.append(f"| {seed} | " + " | ".join(_precision(run) for run in pair) + " |")
    ci = comparison["pairs"]["distilled_minus_control"]["ci"]
    gains = ci is not None and ci[0] > 0
    lines += [
        "",
        "The first seed is served, whichever is best. "
        + ("Distillation gains here." if gains else "**No gain of distillation is claimed.**")
        + " Mean over the seeds; intervals are of other rows and other seeds (the teacher is of one seed: what is said "
        "of it is said of that one):",
        "",
    ]
    return lines + [_difference(name, pair) for name, pair in comparison["pairs"].items()]


def _difference(name: str, pair: Mapping[str, Any]) -> str:
    ours, theirs = name.split("_minus_")
    what = f"- {ours} minus {theirs}: {pair['difference']:+.4f}"
    if pair["ci"] is None:
        return f"{what}: one seed says nothing of others, so no difference is claimed."
    low, high = pair["ci"]
    verdict = "no difference is claimed"
    if low > 0 or high < 0:
        verdict = f"{ours} ranks {'better' if low > 0 else 'worse'} than {theirs}"
    return f"{what} ({low:+.4f} to {high:+.4f}): {verdict}."


def _cells(measured: Mapping[str, Any]) -> str:
    low, high = measured["roc_auc_ci"]
    return f"{_precision(measured)} | {measured['roc_auc']:.4f} | {low:.4f}–{high:.4f}"


def _precision(measured: Mapping[str, Any]) -> str:
    low, high = measured["average_precision_ci"]
    return f"{measured['average_precision']:.4f} | {low:.4f}–{high:.4f}"
