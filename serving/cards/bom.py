"""Bills of materials for machine learning: CycloneDX 1.6, JSON (https://cyclonedx.org/docs/1.6/json/).

The same artifacts give the same document, its serial number included.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

from serving.cards.facts import card_of, imported_of, measures, relation_of
from serving.registry.manifest import Manifest, Signature

SPEC = "1.6"
#: What a build records in place of the version of a library that was not there.
ABSENT = "absent"


def bill(manifests: Sequence[Manifest], *, name: str = "") -> dict[str, Any]:
    """The bill of one artifact, or of a deployment called `name` that serves several.

    Args:
        manifests: at least one.
    """
    manifests = list({manifest.digest: manifest for manifest in manifests}.values())  # two variants may serve one
    models = [_model(manifest) for manifest in manifests]
    if name:
        subject: dict[str, Any] = {"type": "application", "bom-ref": f"system:{name}", "name": name}
        needs = {subject["bom-ref"]: {model["bom-ref"] for model in models}}
        listed = models
    else:
        subject, listed, needs = models[0], [], {}
    others: dict[str, dict[str, Any]] = {}
    for manifest, model in zip(manifests, models, strict=True):
        parts = [*_files(manifest), *_data(manifest), *_parents(manifest), *_libraries(manifest)]
        needs[model["bom-ref"]] = {part["bom-ref"] for part in parts}
        others |= {part["bom-ref"]: part for part in parts}
    known = {model["bom-ref"] for model in models}
    serial = uuid.uuid5(uuid.NAMESPACE_URL, "canarium:" + ",".join([name, *(one.digest for one in manifests)]))
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "timestamp": max(manifest.created_at for manifest in manifests),
            "tools": {"components": [{"type": "application", "name": "canarium", "version": version("canarium")}]},
            "component": subject,
        },
        "components": [*listed, *(part for ref, part in others.items() if ref not in known)],
        "dependencies": [{"ref": ref, "dependsOn": sorted(parts)} for ref, parts in needs.items()],
    }


def encoded(document: dict[str, Any]) -> str:
    """The document as text."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _ref(manifest: Manifest) -> str:
    return f"model:{manifest.digest}"


def _model(manifest: Manifest) -> dict[str, Any]:
    card, imported = card_of(manifest), imported_of(manifest)
    data = [{"ref": part["bom-ref"]} for part in _data(manifest)]
    considerations: dict[str, Any] = {}
    if use := card.get("intended_use"):
        considerations["useCases"] = [use]
    if limits := card.get("limitations"):
        considerations["technicalLimitations"] = list(limits)
    model_card: dict[str, Any] = {
        "modelParameters": {
            **({} if imported else {"approach": {"type": "supervised"}}),  # how it was trained elsewhere nobody said
            "task": manifest.postprocess.task,
            "datasets": data,
            "inputs": _formats(manifest.signature, "inputs"),
            "outputs": _formats(manifest.signature, "outputs"),
        },
        "quantitativeAnalysis": {"performanceMetrics": _metrics(manifest)},
        "considerations": considerations,
    }
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": _ref(manifest),
        "group": manifest.model,
        "name": manifest.variant,
        "version": str(manifest.revision),
        "description": f"{manifest.ref}, {relation_of(manifest)}",
        "hashes": [{"alg": "SHA-256", "content": manifest.files[manifest.entry].sha256}],
        "modelCard": model_card,
        "properties": [{"name": "canarium:manifest:sha256", "value": manifest.digest}],
    }
    if imported:
        component["licenses"] = [{"license": {"name": str(imported["licence"])}}]
        component["pedigree"] = {"notes": f"Weights of {imported['origin']}, SHA-256 {imported['sha256']}"}
    if owner := card.get("owner"):
        component["manufacturer"] = {"name": owner}
    return component


def _formats(signature: Signature, way: str) -> list[dict[str, str]]:
    specs = signature.inputs if way == "inputs" else signature.outputs
    return [{"format": f"{spec.name}: {spec.datatype} {list(spec.shape)}"} for spec in specs]


def _metrics(manifest: Manifest) -> list[dict[str, Any]]:
    found = []
    for one in measures({key: value for key, value in manifest.evaluation.items() if key not in ("latency_ms", "cpu")}):
        metric: dict[str, Any] = {"type": one.name, "value": repr(one.value)}
        if one.interval:
            metric["confidenceInterval"] = {"lowerBound": repr(one.interval[0]), "upperBound": repr(one.interval[1])}
        found.append(metric)
    return found


def _files(manifest: Manifest) -> Iterable[dict[str, Any]]:
    for name, file in sorted(manifest.files.items()):
        yield {
            "type": "file",
            "bom-ref": f"file:{file.sha256}",
            "name": name,
            "hashes": [{"alg": "SHA-256", "content": file.sha256}],
        }


def _data(manifest: Manifest) -> list[dict[str, Any]]:
    """The data that it was made from, if the manifest says anything of it."""
    data = manifest.data
    if not data.get("source"):
        return []
    dataset: dict[str, Any] = {"type": "dataset", "name": str(data["source"])}
    if data.get("pii"):
        dataset["sensitiveData"] = [f"personal data: {data['pii']}"]
    found: dict[str, Any] = {
        "type": "data",
        "bom-ref": f"data:{manifest.model}:{data.get('sha256') or data['source']}",
        "name": str(data["source"]),
        "data": [dataset],
    }
    if data.get("licence"):
        found["licenses"] = [{"license": {"name": str(data["licence"])}}]
    return [found]


def _parents(manifest: Manifest) -> Iterable[dict[str, Any]]:
    for parent in manifest.lineage.parents:
        name, _, revision = parent.ref.partition(":")
        yield {
            "type": "machine-learning-model",
            "bom-ref": f"model:{parent.digest}",
            "group": manifest.model,
            "name": name.rpartition("/")[2],
            "version": revision,
            "description": f"{parent.role} of {manifest.ref}",
        }


def _libraries(manifest: Manifest) -> Iterable[dict[str, Any]]:
    """What it was built with."""
    for name, found in sorted(manifest.build.get("versions", {}).items()):
        if found == ABSENT:
            continue
        yield {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{found}",
            "name": name,
            "version": str(found),
            "purl": f"pkg:pypi/{name}@{found}",
        }
