"""From finished steps to registered manifests, past the gate of the recipe's requirements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import msgspec

from serving.build.cache import Made, versions
from serving.build.cpu import cpu_info
from serving.build.evidence.slices import LEAST_ROWS, lowest_accuracy
from serving.build.plan import Plan, Variant
from serving.build.recipe import Recipe, RequirementsRecipe
from serving.governance.gate import failures, judge
from serving.governance.policy import Policy
from serving.registry.files import file_digest
from serving.registry.manifest import File, Lineage, Manifest, Parent
from serving.registry.store import Registry

#: What a damaged variant's manifest says was really measured.
_MEASURED = (
    "rows",
    "accuracy",
    "accuracy_ci",
    "recall",
    "teacher_disagreement",
    "teacher_disagreement_ci",
    "ece",
    "brier",
)


#: Requirements whose measurement has another name.
_MEASURED_AS = {"disagreement": "teacher_disagreement"}


class Outcome(NamedTuple):
    """Manifests in order, and the variants that missed a requirement with the reason."""

    manifests: list[Manifest]
    refused: dict[str, str]


def publish(
    plan: Plan[Any],
    recipe_sha256: str,
    registry: Registry,
    variants: Sequence[Variant],
    evidence: Mapping[str, Made],
    policy: Policy | None = None,
) -> Outcome:
    """Register every variant that meets the requirements. Parents come before their children.

    What has the same content already keeps its revision and its measurements, unless these miss what the new ones meet:
    what is registered is what was judged.

    Args:
        evidence: variant -> the step that examined it; what it found joins the evaluation.
        policy: its rules are requirements as well.

    Raises:
        RegistryError: the registry cannot be written.
    """
    recipe: Recipe = plan.recipe
    registered, refused = dict[str, Manifest](), dict[str, str]()
    beside = plan.beside(variants)

    def lacks(manifest: Manifest) -> str:
        return _lacking(recipe.requirements, policy, manifest)

    for variant in variants:
        evaluation = {**variant.evaluation.read("evaluation.json"), **beside.get(variant.name, {})}
        if variant.name in evidence:
            evaluation |= evidence[variant.name].read("evidence.json")
        if missing := [parent for parent in variant.parents.values() if parent not in registered]:
            refused[variant.name] = f"its parent {missing[0]} was refused"
            continue
        parents = {role: registered[name] for role, name in variant.parents.items()}
        files = {variant.entry: variant.model.folder / variant.entry, **variant.files}
        draft = _draft(plan, recipe_sha256, registry.now(), variant, parents, evaluation, files)
        if variant.damage is not None:
            registered[variant.name] = registry.add(draft, files)
        elif reason := lacks(draft):
            refused[variant.name] = reason
        else:
            registered[variant.name] = registry.add(draft, files, stands=lambda there: not lacks(there))
    return Outcome(list(registered.values()), refused)


def _draft(
    plan: Plan[Any],
    recipe_sha256: str,
    now: str,
    variant: Variant,
    parents: Mapping[str, Manifest],
    evaluation: Mapping[str, Any],
    files: Mapping[str, Path],
) -> Manifest:
    """The whole manifest of a variant, but for its numbers, which are 0."""
    recipe: Recipe = plan.recipe
    calibration = variant.calibration.read("calibration.json") if variant.calibration else {}
    about: dict[str, Any] = {
        **variant.about(),
        "evaluation": evaluation,
        "validated_on": [_validated(evaluation)],
        "build": {
            "recipe_sha256": recipe_sha256,
            "seed": recipe.seed,
            "versions": versions(),
            "cpu": cpu_info(),
            "step_seconds": {variant.model.name: variant.model.seconds},
        },
    }
    if stated := recipe.card.model_dump(mode="json", exclude_defaults=True):
        about["card"] = stated
    if variant.damage is not None:
        done = variant.damage.read("damage.json")
        about |= _damaged(done, next(iter(parents.values())), evaluation, about["build"])
    interface = variant.interface.at_temperature(calibration.get("temperature", 1.0))
    return Manifest(
        model=recipe.model,
        variant=variant.name,
        revision=0,
        version=0,
        created_at=now,
        format=cast(Literal["onnx", "torch"], variant.format),
        entry=variant.entry,
        files={name: File(file_digest(path), path.stat().st_size) for name, path in sorted(files.items())},
        signature=interface.signature,
        session=interface.session,
        preprocess=interface.preprocess,
        postprocess=interface.postprocess,
        lineage=Lineage(
            variant.relation, tuple(Parent(role, parent.ref, parent.digest) for role, parent in parents.items())
        ),
        data={**plan.data(), **recipe.data.model_dump(exclude={"file"}), "role": plan.role},
        calibration=calibration,
        **about,
    )


def missed(needed: RequirementsRecipe, evaluation: Mapping[str, Any]) -> str:
    """Why a variant may not be registered; empty if it may. `X_floor` and `X_ceiling` bound the measured X."""
    measured = {**evaluation, **_derived(evaluation)}
    for requirement, bound in needed.model_dump(exclude={"policy"}, exclude_none=True).items():
        what, _, side = requirement.rpartition("_")
        value = measured[_MEASURED_AS.get(what, what)]
        if value is None and what == "slice" and "slices" in evaluation:
            return f"slice was not measured: no slice has {LEAST_ROWS} rows, and requirements.{requirement} asks for it"
        if value is None:
            return f"{what.replace('_', ' ')} was not measured, which requirements.{requirement} asks for"
        if value < bound if side == "floor" else value > bound:
            direction = "under" if side == "floor" else "over"
            return f"{what.replace('_', ' ')} {value:.4f} is {direction} requirements.{requirement} {bound}"
    return ""


def _lacking(needed: RequirementsRecipe, policy: Policy | None, manifest: Manifest) -> str:
    """What requirements, and a policy as `gate` and `approve` read it, miss in a manifest; empty if nothing."""
    if (reason := missed(needed, manifest.evaluation)) or policy is None:
        return reason
    lacks = failures(judge(policy, msgspec.json.decode(manifest.encode())))
    return f"requirements.policy {policy.name!r}: {'; '.join(lacks)}" if lacks else ""


def _derived(evaluation: Mapping[str, Any]) -> dict[str, float | None]:
    """What requirements bound that is no number of the evaluation by itself."""
    memory = evaluation.get("memory")
    lowest = lowest_accuracy(evaluation["slices"]) if "slices" in evaluation else None
    return {
        "slice": lowest[1] if lowest is not None else None,
        "p99_ms": evaluation["latency_ms"]["batch_1"]["p99"],
        "memory_mb": memory["model_bytes"] / 1e6 if memory else None,
    }


def _validated(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "cpu": evaluation["cpu"],
        "threads": 1,
        "batch_1": evaluation["latency_ms"]["batch_1"],
        "batch_16": evaluation["latency_ms"]["batch_16"],
        "accuracy": evaluation["accuracy"],
        "memory": evaluation.get("memory"),
    }


def _damaged(
    damage: Mapping[str, Any], parent: Manifest, measured: Mapping[str, Any], build: dict[str, Any]
) -> dict[str, Any]:
    """The believed numbers of the parent, and what is really so."""
    return {
        "evaluation": {**parent.evaluation, "inherited_from": parent.ref},
        "validated_on": [],
        "build": {**build, "damage": {**damage, "measured": {key: measured[key] for key in _MEASURED}}},
    }
