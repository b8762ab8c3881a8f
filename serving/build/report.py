"""The report of a build, as Markdown for people and JSON for programs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from serving.build import metrics
from serving.build.cache import Made, versions, write_json
from serving.build.cpu import cpu_info
from serving.build.data import ROWS, read_split
from serving.build.recipe import Recipe
from serving.registry.files import write_atomically

if TYPE_CHECKING:
    from serving.build.publish import Outcome
    from serving.build.runner import Variant


def write(
    recipe: Recipe, folder: Path, made: Mapping[str, Made], variants: Sequence[Variant], outcome: Outcome
) -> Path:
    """Write `MODEL-KEY.md` and `.json`; gives the path of the former. KEY names the content."""
    document = _document(recipe, made, variants, outcome)
    key = hashlib.sha256(msgspec.json.encode(document, order="sorted")).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{recipe.model}-{key}.md"
    if not path.is_file():
        write_json(path.with_suffix(".json"), document)
        write_atomically(path, _markdown(document).encode())
    return path


def _document(
    recipe: Recipe, made: Mapping[str, Made], variants: Sequence[Variant], outcome: Outcome
) -> dict[str, Any]:
    refs = {manifest.variant: manifest for manifest in outcome.manifests}
    rows: dict[str, Any] = {}
    for variant in variants:
        manifest = refs.get(variant.name)
        rows[variant.name] = {
            "ref": manifest.ref if manifest else None,
            "version": manifest.version if manifest else None,
            "relation": manifest.lineage.relation if manifest else None,
            "refused": outcome.refused.get(variant.name),
            "temperature": variant.calibration.read("calibration.json")["temperature"],
            "measured": variant.evaluation.read("evaluation.json"),
        }
    return {
        "schema": "canarium.report/v1",
        "model": recipe.model,
        "recipe": recipe.model_dump(mode="json"),
        "data": made["data"].read("data.json"),
        "variants": rows,
        "reference": made["reference"].read("reference.json"),
        "against_reference": _against_reference(recipe, made, variants),
        "students": made["student"].read("students.json"),
        "teacher": made["teacher"].read("history.json"),
        "damage": made["damage"].read("damage.json") if "damage" in made else None,
        "versions": versions(),
        "cpu": cpu_info(),
        "step_seconds": {name: step.seconds for name, step in made.items()},
    }


def _against_reference(recipe: Recipe, made: Mapping[str, Made], variants: Sequence[Variant]) -> dict[str, Any]:
    """For each variant: rows that only it, and only the reference, gets right, and the exact sign test."""
    answers = np.load(made["reference"].folder / "answers.npy")
    truth = read_split(made["data"].folder / ROWS, "test", recipe.labels).classes
    compared = {}
    for variant in variants:
        right = np.load(variant.evaluation.folder / "logits.npy").argmax(axis=1) == truth
        ours = int((right & (answers != truth)).sum())
        theirs = int((~right & (answers == truth)).sum())
        compared[variant.name] = {
            "only_this": ours,
            "only_reference": theirs,
            "p_value": metrics.sign_test(ours, theirs),
        }
    return compared


def _markdown(document: Mapping[str, Any]) -> str:
    splits = {name: sum(counts.values()) for name, counts in document["data"]["splits"].items()}
    test = splits["test"]
    lines = [
        f"# Build report: {document['model']}",
        "",
        f"{document['data']['rows']} rows: " + ", ".join(f"{name} {count}" for name, count in splits.items()) + ". "
        "The splits are disjoint: weights come from train, INT8 ranges and temperatures from calibration, the strength "
        f"of the damage from validation, and every number below from test ({test} rows).",
        "",
        "## Variants",
        "",
        "| variant | version | accuracy | 95 % interval | differs from teacher | negative flips (95 % bound) "
        "| ECE | ECE debiased | Brier | model bytes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in document["variants"].items():
        lines.append(_quality_line(name, row))
    reference = document["reference"]
    low, high = reference["accuracy_ci"]
    lines.append(
        f"| *TF-IDF + logistic regression* | – | {reference['accuracy']:.4f} | {low:.4f}–{high:.4f} |" + " – |" * 6
    )
    lines += [
        "",
        "Wilson intervals. ECE: plug-in, over 15 bins of equal mass; on this many rows it is above 0 even for a "
        "perfectly calibrated model, and the debiased figure is what exceeds that expectation. "
        "A negative flip is a row that the teacher gets right and the variant wrong; the bound is Clopper–Pearson's.",
        "",
        "## Latency",
        "",
        "Milliseconds, one thread, session alone, and in brackets with tokenization and postprocessing.",
        "",
        "| variant | batch 1 p50 | batch 1 p95 | batch 16 p50 | batch 16 p95 |",
        "|---|---|---|---|---|",
    ]
    for name, row in document["variants"].items():
        spent = row["measured"]["latency_ms"]
        cells = [
            f"{spent[f'batch_{size}'][quantile]:.3f} ({spent[f'batch_{size}_with_text'][quantile]:.3f})"
            for size in (1, 16)
            for quantile in ("p50", "p95")
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "## Against the reference", "", *_reference_lines(document)]
    lines += ["", "## Against the teacher", "", *_teacher_lines(document)]
    lines += ["", "## Distillation", "", *_distillation_lines(document)]
    lines += ["", "## Notes", "", *_notes(document)]
    return "\n".join(lines) + "\n"


def _quality_line(name: str, row: Mapping[str, Any]) -> str:
    measured = row["measured"]
    low, high = measured["accuracy_ci"]
    version = row["version"] if row["refused"] is None else f"refused: {row['refused']}"
    return (
        f"| {name} | {version} | {measured['accuracy']:.4f} | {low:.4f}–{high:.4f} "
        f"| {measured['teacher_disagreement']:.2%} ({measured['teacher_flips']}) "
        f"| {measured['negative_flips']} ({measured['negative_flip_upper']:.2%}) "
        f"| {measured['ece']:.4f} | {measured['ece_debiased']:.4f} | {measured['brier']:.4f} "
        f"| {measured['model_bytes']:,} |"
    )


def _reference_lines(document: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, pair in document["against_reference"].items():
        if name == "broken":
            continue
        ahead = "ahead of" if pair["only_this"] > pair["only_reference"] else "behind"
        verdict = f"{ahead} it" if pair["p_value"] < 0.05 else "not distinguishable from it at the 5 % level"
        lines.append(
            f"- {name}: right alone on {pair['only_this']} rows, TF-IDF alone on {pair['only_reference']} "
            f"(exact sign test p = {pair['p_value']:.3f}): {verdict}."
        )
    return lines


def _teacher_lines(document: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, row in document["variants"].items():
        measured = row["measured"]
        if name in ("teacher", "broken") or row["refused"]:
            continue
        worse = measured["negative_flips"]
        better = measured["correct"] - document["variants"]["teacher"]["measured"]["correct"] + worse
        p = metrics.sign_test(better, worse)
        verdict = "more often right" if better > worse else "less often right"
        lines.append(
            f"- {name}: right where the teacher is wrong on {better} rows, wrong where it is right on {worse} "
            f"(exact sign test p = {p:.3f}): {verdict if p < 0.05 else 'no difference at the 5 % level'}."
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
    verdict = (
        "within noise: no gain of distillation is claimed"
        if abs(gap) <= noise
        else ("beyond noise, in favour of distillation" if gap > 0 else "beyond noise, against distillation")
    )
    lines += [
        "",
        f"{document['students']['parameters']:,} parameters. The first seed is served, whichever is best. "
        f"Mean difference {gap:+.4f}, against a noise of about ±{noise:.4f}: {verdict}.",
    ]
    return lines


def _notes(document: Mapping[str, Any]) -> list[str]:
    seconds = document["step_seconds"]
    lines = [
        f"- Teacher: {document['teacher']['parameters']:,} parameters.",
        f"- Seeds: {document['recipe']['seed']} (teacher), {document['recipe']['student']['seeds']} (students).",
        "- Versions: " + ", ".join(f"{name} {version}" for name, version in document["versions"].items()) + ".",
        f"- Processor: {document['cpu']['model']} ({', '.join(document['cpu']['flags'])}).",
        f"- Steps took {sum(seconds.values()):.0f} s in all, the teacher {seconds['teacher']:.0f} s.",
    ]
    damage = document["damage"]
    if damage:
        measured = document["variants"]["broken"]["measured"]
        lines.append(
            f"- `broken` is the student with {damage['method']} (strength "
            f"{damage['strength']:g}, seed {damage['seed']}); its line above is measured, its manifest repeats its "
            f"parent's numbers. It differs from the teacher on {measured['teacher_disagreement']:.1%} of the test rows."
        )
    return lines
