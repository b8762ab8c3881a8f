"""From finished steps to registered manifests, past the gate of the recipe's requirements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from serving.build.cache import BuildError, Made, versions
from serving.build.cpu import cpu_info
from serving.build.manifests import ENTRIES, postprocess, preprocess, session, signature
from serving.build.recipe import Recipe
from serving.governance.gate import failures, judge
from serving.governance.policy import Policy
from serving.registry.manifest import Lineage, Manifest, Parent
from serving.registry.store import Registry

if TYPE_CHECKING:
    from serving.build.runner import Variant

#: variant -> (relation, {role: parent})
_LINEAGE: dict[str, tuple[Any, dict[str, str]]] = {
    "teacher": ("root", {}),
    "int8": ("quantized", {"source": "teacher"}),
    "distilled": ("distilled", {"teacher": "teacher"}),
    "distilled-int8": ("quantized", {"source": "distilled", "teacher": "teacher"}),
    "distilled-torch": ("distilled", {"teacher": "teacher"}),
    "broken": ("damaged", {"source": "distilled"}),
}


class Outcome(NamedTuple):
    """Manifests in order, and the variants that missed a requirement with the reason."""

    manifests: list[Manifest]
    refused: dict[str, str]


def publish(
    recipe: Recipe,
    recipe_sha256: str,
    registry: Registry,
    made: Mapping[str, Made],
    variants: Sequence[Variant],
    policy: Policy | None = None,
) -> Outcome:
    """Register every variant that meets the requirements. Parents come before their children.

    Args:
        policy: its rules are requirements as well.

    Raises:
        BuildError: the damaged variant is not damaged enough to be told from its parent.
        RegistryError: the registry cannot be written.
    """
    labels, registered, refused = recipe.labels, dict[str, Manifest](), dict[str, str]()
    data = {
        **made["data"].read("data.json"),
        **recipe.data.model_dump(exclude={"file"}),
        "role": "train, calibrate, test",
    }
    for variant in variants:
        relation, parents = _LINEAGE[variant.name]
        evaluation = variant.evaluation.read("evaluation.json")
        calibration = variant.calibration.read("calibration.json")
        missing = [parent for parent in parents.values() if parent not in registered]
        reason = f"its parent {missing[0]} was refused" if missing else _gate(recipe, variant.name, evaluation)
        if policy is not None and not reason and variant.name != "broken":
            evidence = {"evaluation": evaluation, "calibration": calibration, "data": data}
            lineage = {"relation": relation, "parents": [{"role": role} for role in parents]}
            if lacks := failures(judge(policy, {**evidence, "lineage": lineage})):
                reason = f"requirements.policy {policy.name!r}: {'; '.join(lacks)}"
        if reason:
            refused[variant.name] = reason
            continue
        about: dict[str, Any] = {
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
        if relation == "quantized":
            about["quantization"] = variant.model.read("quantization.json")
        if relation == "distilled":
            about["distillation"] = _distillation(recipe, made["student"])
        if relation == "damaged":
            about |= _damaged(recipe, registered["distilled"], made["damage"], evaluation, about["build"])
        registered[variant.name] = registry.register(
            recipe.model,
            variant.name,
            {
                ENTRIES[variant.format]: variant.model.folder / ENTRIES[variant.format],
                "tokenizer.json": made["tokenizer"].folder / "tokenizer.json",
            },
            format="onnx" if variant.format == "onnx" else "torch",
            entry=ENTRIES[variant.format],
            signature=signature(len(labels)),
            session=session(len(labels)),
            preprocess=preprocess(recipe.tokenizer.model_dump(mode="json")),
            postprocess=postprocess(labels, calibration["temperature"]),
            lineage=Lineage(
                relation,
                tuple(Parent(role, registered[name].ref, registered[name].digest) for role, name in parents.items()),
            ),
            data=data,
            calibration=calibration,
            **about,
        )
    return Outcome(list(registered.values()), refused)


def _gate(recipe: Recipe, name: str, evaluation: Mapping[str, Any]) -> str:
    """Why a variant may not be registered; empty if it may."""
    needed = recipe.requirements
    if name == "broken":
        return ""
    if evaluation["accuracy"] < needed.accuracy_floor:
        return f"accuracy {evaluation['accuracy']:.4f} is under requirements.accuracy_floor {needed.accuracy_floor}"
    if evaluation["teacher_disagreement"] > needed.disagreement_ceiling:
        return (
            f"disagreement {evaluation['teacher_disagreement']:.4f} is over "
            f"requirements.disagreement_ceiling {needed.disagreement_ceiling}"
        )
    return ""


def _validated(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "cpu": evaluation["cpu"],
        "threads": 1,
        "batch_1": evaluation["latency_ms"]["batch_1"],
        "batch_16": evaluation["latency_ms"]["batch_16"],
        "accuracy": evaluation["accuracy"],
    }


def _distillation(recipe: Recipe, student: Made) -> dict[str, Any]:
    document = student.read("students.json")
    served = document["runs"][0]
    control = document["runs"][1]
    return {
        "loss": "alpha * T^2 * KL(teacher || student) + (1 - alpha) * cross-entropy",
        "alpha": recipe.student.alpha,
        "temperature": recipe.student.temperature,
        "seed": served["seed"],
        "parameters": document["parameters"],
        "mean_kl": served["train_kl"],
        "control": {"loss": "cross-entropy", "accuracy": control["accuracy"], "seed": control["seed"]},
    }


def _damaged(
    recipe: Recipe, parent: Manifest, damage: Made, measured: Mapping[str, Any], build: dict[str, Any]
) -> dict[str, Any]:
    """The believed numbers of the parent, and what is really so."""
    assert recipe.damage is not None
    disagreement = measured["teacher_disagreement"]
    if disagreement < recipe.damage.least_disagreement:
        raise BuildError(
            f"the damaged variant differs from the teacher on {disagreement:.1%} of the test split, "
            f"under damage.least_disagreement {recipe.damage.least_disagreement:.0%}; set another damage.seed"
        )
    kept = (
        "rows",
        "accuracy",
        "accuracy_ci",
        "recall",
        "teacher_disagreement",
        "teacher_disagreement_ci",
        "ece",
        "brier",
    )
    return {
        "evaluation": {**parent.evaluation, "inherited_from": parent.ref},
        "validated_on": [],
        "build": {**build, "damage": {**damage.read("damage.json"), "measured": {key: measured[key] for key in kept}}},
    }
