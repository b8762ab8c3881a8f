"""The steps of a build that gather evidence, for whatever kind of recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.build.cache import Made, Tick, write_json
from serving.build.cpu import cpu_info
from serving.build.evaluate import MEASURING
from serving.build.evidence.adversarial import library
from serving.build.examples import read_examples
from serving.build.interface import draft, pipeline_folder
from serving.build.plan import Plan, Variant

_HERE = Path(__file__).parent
_AUDITS = tuple(_HERE.parents[1] / "runtimes" / f"{name}.py" for name in ("audit", "embedding", "inside", "saturation"))
#: Sources that every step depends on that takes anything from this package.
SOURCES = (*MEASURING, *_AUDITS, *sorted(path for path in _HERE.glob("*.py") if path.name != "report.py"))


def check_drift(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Write `drift.json`: how far the calibration split, and what INT8 takes of it, is from the train split."""
    from serving.build.evidence.subject import calibration_drift

    train, calibration = (
        read_examples(needs["data"], split, parameters["labels"]) for split in ("train", "calibration")
    )
    write_json(out / "drift.json", calibration_drift(train, calibration, parameters["rows"]))


def examine_variant(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """See `examine`; `needs["data"]` is the data's folder, and each further file of the artifact a need of its own."""
    from serving.build.evidence.examine import examine
    from serving.build.evidence.subject import subject_of
    from serving.runtimes.pipeline import Pipeline

    train, test = (read_examples(needs["data"], split, parameters["labels"]) for split in ("train", "test"))
    manifest = draft(parameters, 1.0)
    pipeline = Pipeline(manifest, pipeline_folder(manifest, needs))
    examine(subject_of(train, test, parameters["labels"]), manifest, pipeline, out, needs, tick)


def gather(plan: Plan[Any], variants: Sequence[Variant]) -> dict[str, Made]:
    """Examine every classifier among the variants; the first is the one the others are compared with.

    Returns:
        variant -> the step that examined it.
    """
    if variants[0].interface.postprocess.task != "classification":
        return {}  # windows of a stream are no independent rows: its own evaluation measures them
    labels = list(plan.recipe.labels)
    data = plan.made["data"]
    compared = {"labels": labels, "rows": plan.recipe.quantize.rows}
    plan.step("calibration-drift", check_drift, compared, {"data": data}, SOURCES)
    trusted, found = variants[0], dict[str, Made]()
    for variant in variants:
        if variant.interface.postprocess.task != "classification":
            continue
        needs = {"data": data, "model": variant.model, "evaluation": variant.evaluation}
        if variant is not trusted:
            needs |= {"teacher": trusted.evaluation, "teacher_evidence": found[trusted.name]}
        source = next((one for one in variants if one.name == variant.parents.get("source")), None)
        if source is not None and source.format == variant.format:
            needs["source"] = source.model
        parameters = {
            "labels": labels,
            "variant": variant.name,
            "format": variant.format,
            "interface": variant.interface.as_json(),
            "files": sorted(variant.files),
            "cpu": cpu_info(),
            "adversarial": library(),
        }
        name = f"{variant.name}-evidence"
        found[variant.name] = plan.step(name, examine_variant, parameters, needs, SOURCES, dict(variant.files))
    return found
