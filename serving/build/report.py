"""The report of a build, as Markdown for people and JSON for programs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from serving.build.cache import Made, versions, write_json
from serving.build.cpu import cpu_info
from serving.build.evidence import report as evidence_report
from serving.build.plan import Part, Plan, Variant
from serving.build.publish import Outcome
from serving.build.search import report as search_report
from serving.build.words import p_value
from serving.registry.files import write_atomically


def write(
    folder: Path, plan: Plan[Any], variants: Sequence[Variant], evidence: Mapping[str, Made], outcome: Outcome
) -> Path:
    """Write `MODEL-KEY.md` and `.json`; gives the path of the former. KEY names the content."""
    document = _document(plan, variants, evidence, outcome)
    key = hashlib.sha256(msgspec.json.encode(document, order="sorted")).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{plan.recipe.model}-{key}.md"
    if not path.is_file():
        write_json(path.with_suffix(".json"), document)
        plot = path.with_suffix(".svg")
        write_atomically(plot, search_report.draw(document).encode())
        write_atomically(path, _markdown(plan, document, plot.name).encode())
    return path


def _document(
    plan: Plan[Any], variants: Sequence[Variant], evidence: Mapping[str, Made], outcome: Outcome
) -> dict[str, Any]:
    refs = {manifest.variant: manifest for manifest in outcome.manifests}
    rows: dict[str, Any] = {}
    for variant in variants:
        manifest = refs.get(variant.name)
        rows[variant.name] = {
            "ref": manifest.ref if manifest else None,
            "version": manifest.version if manifest else None,
            "relation": variant.relation,
            "refused": outcome.refused.get(variant.name),
            "temperature": variant.calibration.read("calibration.json")["temperature"] if variant.calibration else None,
            "measured": variant.evaluation.read("evaluation.json"),
        }
    return {
        "schema": "canarium.report/v1",
        "model": plan.recipe.model,
        "recipe": plan.recipe.model_dump(mode="json"),
        "data": plan.data(),
        "variants": rows,
        "evidence": {name: made.read("evidence.json") for name, made in evidence.items()},
        "calibration_drift": drift.read("drift.json") if (drift := plan.made.get("calibration-drift")) else None,
        "search": plan.searched,
        **plan.findings(variants),
        "versions": versions(),
        "cpu": cpu_info(),
        "step_seconds": {name: step.seconds for name, step in plan.made.items()},
    }


def _markdown(plan: Plan[Any], document: Mapping[str, Any], plot: str) -> str:
    splits = {name: sum(counts.values()) for name, counts in document["data"]["splits"].items()}
    test = splits["test"]
    lines = [
        f"# Build report: {document['model']}",
        "",
        f"{document['data']['rows']} rows: " + ", ".join(f"{name} {count}" for name, count in splits.items()) + ". "
        f"The splits are disjoint: {plan.splits}, and every number below from test ({test} rows).",
        "",
        "## Variants",
        "",
        "| variant | version | accuracy | 95 % interval | differs from teacher | negative flips (95 % bound) "
        "| ECE | ECE debiased | Brier | model bytes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in document["variants"].items():
        lines.append(_quality_line(name, row))
    lines += [
        "",
        f"{plan.intervals} A negative flip is a row that the teacher gets right and the variant wrong. "
        "ECE: plug-in, over 15 bins of equal mass; on this many rows it is above 0 even for a perfectly calibrated "
        "model, and the debiased figure is what exceeds that expectation.",
        "",
        "## Latency",
        "",
        "Milliseconds, one thread, session alone, and in brackets with pre- and postprocessing.",
        "",
        "| variant | batch 1 p50 | batch 1 p95 | batch 16 p50 | batch 16 p95 |",
        "|---|---|---|---|---|",
    ]
    for name, row in document["variants"].items():
        spent = row["measured"]["latency_ms"]
        cells = [
            f"{spent[f'batch_{size}'][quantile]:.3f} ({spent[f'batch_{size}_whole'][quantile]:.3f})"
            for size in (1, 16)
            for quantile in ("p50", "p95")
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    parts = [
        *search_report.parts(document, plot),
        *plan.parts(document),
        Part("Against the teacher", _teacher_lines(document, plan.paired_test)),
        *evidence_report.parts(document, plan.temperatures),
        Part("Notes", [*plan.notes(document), *_notes(document)]),
    ]
    for part in parts:
        lines += ["", f"## {part.title}", "", *part.lines]
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


def _teacher_lines(document: Mapping[str, Any], test: str) -> list[str]:
    lines = []
    (trusted, teacher), *others = document["variants"].items()
    for name, row in others:
        measured = row["measured"]
        if row["relation"] == "damaged" or row["refused"]:
            continue
        worse = measured["negative_flips"]
        better = measured["correct"] - teacher["measured"]["correct"] + worse
        p = measured["mcnemar_p"]
        verdict = "more often right" if better > worse else "less often right"
        lines.append(
            f"- {name}: right where {trusted} is wrong on {better} rows, wrong where it is right on {worse} "
            f"({test} {p_value(p)}): {verdict if p < 0.05 else 'no difference at the 5 % level'}."
        )
    return lines


def _notes(document: Mapping[str, Any]) -> list[str]:
    seconds = document["step_seconds"]
    return [
        "- Versions: " + ", ".join(f"{name} {version}" for name, version in document["versions"].items()) + ".",
        f"- Processor: {document['cpu']['model']} ({', '.join(document['cpu']['flags'])}).",
        f"- Steps took {sum(seconds.values()):.0f} s in all.",
    ]
