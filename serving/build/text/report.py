"""A text classifier's own sections of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.build.plan import Part
from serving.build.text.paired import verdict
from serving.build.words import p_value


def parts(document: Mapping[str, Any]) -> list[Part]:
    found = [
        Part("Against the reference", _reference_lines(document)),
        Part("Distillation", _distillation_lines(document)),
    ]
    if document["qad"]:
        found.append(Part("Quantization-aware distillation", _qad_lines(document["qad"])))
    if document["ablations"]:
        found.append(Part("Ablations", _ablation_lines(document)))
    return found


def notes(document: Mapping[str, Any]) -> list[str]:
    """On the models and the damaged variant."""
    teacher, given = document["teacher"], document["data"].get("pretrained")
    lines = [
        f"- Teacher: {teacher['parameters']:,} parameters."
        + (f" Fine-tuned: {teacher['trained']:,} of them were trained here." if given else ""),
        f"- Seeds: {document['recipe']['seed']} (teacher), {document['recipe']['student']['seeds']} (students).",
    ]
    if given:
        lines.append(
            f"- Pre-trained weights: {given['source']} ({given['licence']}), SHA-256 {given['weights_sha256']}."
        )
    damage = document["damage"]
    if damage:
        measured = document["variants"]["broken"]["measured"]
        lines.append(
            f"- `broken` is the student with {damage['method']} (strength "
            f"{damage['strength']:g}, seed {damage['seed']}); its line above is measured, its manifest repeats its "
            f"parent's numbers. It differs from the teacher on {measured['teacher_disagreement']:.1%} of the test rows."
        )
    return lines


def _reference_lines(document: Mapping[str, Any]) -> list[str]:
    reference = document["reference"]
    low, high = reference["accuracy_ci"]
    lines = [
        f"TF-IDF with logistic regression: accuracy {reference['accuracy']:.4f} ({low:.4f}–{high:.4f}).",
        "",
    ]
    for name, pair in document["against_reference"].items():
        if name == "broken":
            continue
        ahead = "ahead of" if pair["only_this"] > pair["only_reference"] else "behind"
        said = f"{ahead} it" if pair["p_value"] < 0.05 else "not distinguishable from it at the 5 % level"
        lines.append(
            f"- {name}: right alone on {pair['only_this']} rows, TF-IDF alone on {pair['only_reference']} "
            f"(exact sign test {p_value(pair['p_value'])}): {said}."
        )
    return lines


def _distillation_lines(document: Mapping[str, Any]) -> list[str]:
    runs = document["students"]["runs"]
    lines = ["| seed | distilled | control (cross-entropy only) |", "|---|---|---|"]
    accuracies: dict[str, list[float]] = {"distilled": [], "control": []}
    by_seed: dict[int, dict[str, Any]] = {}
    for run in runs:
        by_seed.setdefault(run["seed"], {})[run["kind"]] = run
        accuracies[run["kind"]].append(run["accuracy"])
    for seed, pair in by_seed.items():
        cells = [
            f"{pair[kind]['accuracy']:.4f}, differs from the teacher on {pair[kind]['teacher_disagreement']:.2%}"
            for kind in ("distilled", "control")
        ]
        lines.append(f"| {seed} | " + " | ".join(cells) + " |")
    gap = float(np.mean(accuracies["distilled"]) - np.mean(accuracies["control"]))
    rows = sum(document["data"]["splits"]["test"].values())
    spread = max(float(np.std(values)) for values in accuracies.values())
    # The standard error of an accuracy on this many rows bounds what a difference can mean.
    p = float(np.mean(accuracies["control"]))
    noise = max(2 * spread, 2 * float(np.sqrt(p * (1 - p) / rows)))
    said = (
        "within noise: no gain of distillation is claimed"
        if abs(gap) <= noise
        else ("beyond noise, in favour of distillation" if gap > 0 else "beyond noise, against distillation")
    )
    lines += [
        "",
        f"{document['students']['parameters']:,} parameters. The first seed is served, whichever is best. "
        f"Mean difference {gap:+.4f}, against a noise of about ±{noise:.4f}: {said}.",
        "",
        *_divergence_lines(document["divergence"]),
    ]
    return lines


def _divergence_lines(found: Mapping[str, Any]) -> list[str]:
    first = next(iter(found.values()))
    return [
        f"Mean KL(teacher ‖ variant) over the {first['rows']} rows of {first['split']}, in nats at temperature 1: "
        + ", ".join(f"{name} {each['mean_kl']:.5f}" for name, each in found.items())
        + "."
    ]


def _qad_lines(found: Mapping[str, Any]) -> list[str]:
    lines = [
        "The student in INT8 three ways: rounded after training; trained on by the teacher with the rounding in it; "
        "trained on in the same way by the labels alone.",
        "",
        "| INT8 student | accuracy | 95 % interval | differs from teacher | model bytes |",
        "|---|---|---|---|---|",
    ]
    for name, row in found["rows"].items():
        low, high = row["accuracy_ci"]
        lines.append(
            f"| {name} | {row['accuracy']:.4f} | {low:.4f}–{high:.4f} | {row['teacher_disagreement']:.2%} "
            f"| {row['model_bytes']:,} |"
        )
    lines.append("")
    for name, pair in found["against"].items():
        lines.append(
            f"- Trained with rounding, against {name}: right alone on {pair['only_this']} rows, wrong alone on "
            f"{pair['only_other']} (exact sign test {p_value(pair['p_value'])}): {verdict(pair)}."
        )
    return lines


def _ablation_lines(document: Mapping[str, Any]) -> list[str]:
    lines = [
        "| variant | without | accuracy with it | accuracy without (95 % interval) | right only with, only without "
        "| with it |",
        "|---|---|---|---|---|---|",
    ]
    for row in document["ablations"]:
        low, high = row["measured"]["accuracy_ci"]
        pair = row["pair"]
        lines.append(
            f"| {row['of']} | {row['without']} | {row['with']['accuracy']:.4f} "
            f"| {row['measured']['accuracy']:.4f} ({low:.4f}–{high:.4f}) | {pair['only_this']}, {pair['only_other']} "
            f"({p_value(pair['p_value'])}) | {verdict(pair)} |"
        )
    return [
        *lines,
        "",
        "Each is made as the variant was, but for one choice, and asked the same test rows; p by the exact sign test. "
        "What the temperature is worth stands under “Calibration before and after”.",
    ]
