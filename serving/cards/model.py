"""The model card of an artifact: metadata that the Hugging Face libraries read, then Markdown for people.

Everything in it comes from the manifest, the approvals in the registry and a policy; nothing is written by hand, so a
card cannot say what was not measured. Metadata after https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import yaml

from serving.cards.facts import (
    UNSTATED,
    Markdown,
    card_of,
    code,
    escaped,
    flat,
    grids,
    listed,
    measures,
    plain,
    relation_of,
    table,
    tensors,
    with_interval,
)
from serving.governance.gate import judge
from serving.governance.policy import Policy
from serving.registry.manifest import Manifest

_LIBRARIES = {"onnx": "onnx", "torch": "pytorch"}


def model_card(manifest: Manifest, *, policy: Policy | None, approvals: list[str]) -> str:
    """The card as Markdown, its metadata in front.

    Args:
        policy: judged over the evidence, if one is asked for.
        approvals: a sentence on each approval in the registry.
    """
    front = yaml.safe_dump(metadata(manifest), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{body(manifest, policy=policy, approvals=approvals)}"


def metadata(manifest: Manifest) -> dict[str, Any]:
    """What stands in front of the card, as Hugging Face's `ModelCardData` takes it."""
    classifies_text = manifest.preprocess.kind == "text" and manifest.postprocess.task == "classification"
    found: dict[str, Any] = {
        "model_name": f"{manifest.model}-{manifest.variant}",
        "library_name": _LIBRARIES.get(manifest.format, manifest.format),
        "tags": ["canarium", manifest.lineage.relation, manifest.format],
    }
    if classifies_text:
        found["pipeline_tag"] = "text-classification"
    # Counts are whole numbers, measures are not.
    shares = [one for one in measures(manifest.evaluation) if isinstance(manifest.evaluation.get(one.name), float)]
    if shares:
        source = plain(manifest.data.get("source", ""))
        task = {"type": found.get("pipeline_tag", "other"), "name": manifest.model}
        dataset = {"type": "private", "name": source, "split": str(manifest.evaluation.get("split", "test"))}
        metrics = [{"type": one.name, "value": one.value, "name": one.name.replace("_", " ")} for one in shares]
        result = {"task": task, "dataset": dataset, "metrics": metrics}
        found["model-index"] = [{"name": found["model_name"], "results": [result]}]
    return found


def body(manifest: Manifest, *, policy: Policy | None, approvals: list[str]) -> str:
    """The card without its metadata."""
    card = card_of(manifest)
    lines = [f"# {manifest.ref}", "", f"A variant of **{manifest.model}**, {relation_of(manifest)}."]
    lines += ["", "## Responsibility and use", ""]
    for title, key in (("Owner", "owner"), ("Contact", "contact"), ("Purpose", "purpose"), ("Use", "intended_use")):
        lines.append(f"- **{title}:** {escaped(plain(card.get(key) or UNSTATED))}")
    lines += ["", "### Limitations", "", *listed(card.get("limitations") or ())]
    lines += ["", "## What it is"]
    lines += table(
        ("", ""),
        (
            ("version for clients", manifest.version),
            ("registered", manifest.created_at),
            ("manifest", Markdown(f"sha256 {code(manifest.digest)}")),
            ("format", manifest.format),
            ("size", f"{manifest.size_bytes:,} bytes"),
            ("classes", ", ".join(manifest.postprocess.labels) or "no classifier"),
        ),
    )
    lines += table(("tensor", "type", "shape"), tensors(manifest.signature))
    files = [(code(name), f"{file.bytes:,}", code(file.sha256)) for name, file in sorted(manifest.files.items())]
    lines += table(("file", "bytes", "sha256"), files)
    lines += ["## Where it comes from"]
    parents = [(parent.role, parent.ref, code(parent.digest)) for parent in manifest.lineage.parents]
    lines += table(("parent", "artifact", "manifest sha256"), parents) if parents else ["", "It has no parents.", ""]
    for title, section in (
        ("Data", manifest.data),
        ("Quantization", manifest.quantization),
        ("Distillation", manifest.distillation),
        ("Calibration", manifest.calibration),
    ):
        if section:
            lines += [f"### {title}", *table(("", ""), [(code(key), value) for key, value in flat(section)])]
    lines += ["## How good it is", *_evaluation(manifest)]
    lines += ["## Where it was validated", *_validated(manifest)]
    lines += ["## Approval", *_governance(manifest, policy, approvals)]
    if manifest.build:
        lines += ["## How it was made", *table(("", ""), [(code(key), value) for key, value in flat(manifest.build)])]
    return "\n".join(lines).rstrip() + "\n"


def _evaluation(manifest: Manifest) -> list[str]:
    evaluation = {key: value for key, value in manifest.evaluation.items() if key not in ("latency_ms", "cpu")}
    several = dict(grids(evaluation))
    alone = [one for one in measures(evaluation) if not one.name.startswith(tuple(f"{name}." for name in several))]
    if not alone and not several:
        return ["", "Nothing was measured.", ""]
    inherited = evaluation.get("inherited_from")
    note = (
        ["", f"These are the numbers of {escaped(plain(inherited))}; this artifact itself was not measured."]
        if inherited
        else []
    )
    split = (
        ["", f"Measured on the split {code(evaluation['split'])}; intervals are of 95 %."]
        if "split" in evaluation
        else []
    )
    lines = [
        *note,
        *split,
        *table(("measure", "value"), [*_named(evaluation), *((code(one.name), with_interval(one)) for one in alone)]),
    ]
    for name, found in several.items():
        header = ["", *(one.name.replace("_", " ") for one in next(iter(found.values())))]
        rows = [(each, *map(with_interval, numbers)) for each, numbers in found.items()]
        title = name.rpartition(".")[2].replace("_", " ").capitalize()
        lines += [f"### {escaped(plain(title))}", *table(header, rows)]
    return lines


def _named(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Which slices the numbers of `slices.worst` and `slices.lowest` are of: a name is no number."""
    slices = evaluation.get("slices")
    found = slices if isinstance(slices, Mapping) else {}
    picked = {key: found[key] for key in ("worst", "lowest") if isinstance(found.get(key), Mapping)}
    return [(code(f"slices.{key}.slice"), str(one["slice"])) for key, one in picked.items() if "slice" in one]


def _validated(manifest: Manifest) -> list[str]:
    rows = []
    for entry in manifest.validated_on:
        cpu = entry.get("cpu", {})
        rest = {key: value for key, value in entry.items() if key != "cpu"}
        what = f"{cpu.get('model', UNSTATED)} ({', '.join(cpu.get('flags', ())) or 'no flags'})"
        rows.append((what, ", ".join(f"{key} {value}" for key, value in flat(rest))))
    return table(("processor", "measured there; times in ms"), rows) if rows else ["", "Nowhere.", ""]


def _governance(manifest: Manifest, policy: Policy | None, approvals: list[str]) -> list[str]:
    lines = ["", *(listed(approvals) if approvals else ["Nobody has approved it."]), ""]
    if policy is not None:
        rows = [(code(one.rule), one.verdict, one.why) for one in judge(policy, msgspec.to_builtins(manifest))]
        lines += [f"Policy {code(policy.name)}, tier {policy.tier}, sha256 {code(policy.digest)}:"]
        lines += table(("rule", "verdict", "why"), rows)
    return lines
