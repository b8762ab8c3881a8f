"""From the configuration and the registry's facts to what the tables should be."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from serving.config import Config
from serving.contract import VariantEntry
from serving.core.commands import ModelSpec
from serving.errors import StartError
from serving.registry.manifest import Manifest


class VariantFacts(msgspec.Struct, frozen=True):
    """What the control plane knows of a variant: how gateways find it, and what its manifest says."""

    entry: VariantEntry
    relation: str = "root"
    evaluation: dict[str, Any] = {}

    @classmethod
    def of(cls, entry: VariantEntry, manifest: Manifest) -> VariantFacts:
        """The facts of a configured variant and its manifest."""
        return cls(entry, manifest.lineage.relation, dict(manifest.evaluation))


Facts = Mapping[str, Mapping[str, VariantFacts]]


def fresh_salt() -> str:
    """A routing salt that nobody can guess, so that no client can choose its bucket."""
    return secrets.token_hex(8)


def specs(config: Config, facts: Facts, salt: Callable[[], str] = fresh_salt) -> dict[str, ModelSpec]:
    """The configured models as the control plane's tables should hold them.

    Raises:
        StartError: the facts of a configured variant were not given, or two share a version.
    """
    return {name: _spec(config, name, facts.get(name, {}), salt()) for name in config.models}


def _spec(config: Config, name: str, facts: Mapping[str, VariantFacts], salt: str) -> ModelSpec:
    model = config.models[name]
    versions: dict[int, str] = {}
    for variant, given in model.variants.items():
        if variant not in facts:
            raise StartError(f"models.{name}.variants.{variant}: nothing is known of {given.artifact}")
        version = facts[variant].entry.version
        if versions.setdefault(version, variant) != variant:
            raise StartError(f"models.{name}: {versions[version]} and {variant} both have version {version}")
    routing = model.routing
    return ModelSpec(
        baseline=model.baseline,
        teacher=model.teacher or model.baseline,
        variants={variant: facts[variant].entry for variant in model.variants},
        salt=salt,
        weights={variant: round(percent * 100) for variant, percent in routing.weights.items()},
        shadow={variant: round(percent * 100) for variant, percent in routing.shadow.items()},
        reference_bp=round(routing.reference_percent * 100),
    )
