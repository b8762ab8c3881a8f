"""Policies: what must be measured of an artifact, with which result, and who must approve, by tier of risk.

A policy is a YAML file or one of those below. Its digest is that of what it says, not of how it is written: comments
and the order of keys change nothing.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml
from pydantic import Field, Strict, ValidationError, field_validator, model_validator

from serving import yaml12
from serving.config_section import Section
from serving.errors import ConfigError

Tier = Literal["low", "limited", "high"]
_PATH = re.compile(r"[A-Za-z0-9_-]+(\.([A-Za-z0-9_-]+|\*))*")
ROLE = re.compile(r"[a-z][a-z0-9-]{0,38}")


class Rule(Section):
    """Evidence and its limits, both included.

    `evidence` is a path in the manifest such as `evaluation.accuracy_ci.0`; `*` stands for every key or index, all of
    which must fulfil the rule. Without a limit it is enough that it was measured. `applies_to` leaves out artifacts
    of another kind: `derived` ones have parents, `root` ones have none.
    """

    evidence: str
    at_least: float | None = None
    at_most: float | None = None
    applies_to: Literal["all", "derived", "root"] = "all"

    @field_validator("evidence")
    @classmethod
    def _usable_path(cls, value: str) -> str:
        if not _PATH.fullmatch(value):
            raise ValueError(f"{value!r} is no path in a manifest, such as evaluation.accuracy_ci.0")
        return value

    @model_validator(mode="after")
    def _possible(self) -> Rule:
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least {self.at_least:g} is over at_most {self.at_most:g}: nothing fulfils that")
        return self


class Approvals(Section):
    """How many people with this role must approve; without a role, with any."""

    count: Annotated[int, Strict(), Field(ge=1, le=20)] = 1
    role: str = ""

    @field_validator("role")
    @classmethod
    def _usable_role(cls, value: str) -> str:
        if value and not ROLE.fullmatch(value):
            raise ValueError(f"{value!r}: use lower-case letters, digits and '-', at most 39")
        return value


class Policy(Section):
    """A whole policy. Each approval that it asks for must come from another key."""

    apiVersion: Literal["canarium/policy/v1"]
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,38}$")]
    tier: Tier
    rules: tuple[Rule, ...] = ()
    approvals: Annotated[tuple[Approvals, ...], Field(min_length=1)] = (Approvals(),)

    @property
    def digest(self) -> str:
        """SHA-256 of what it says. A key that says the default counts as left out, so new keys void no approval."""
        document = self.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(msgspec.json.encode(document, order="sorted")).hexdigest()


_LOW = (
    Rule(evidence="evaluation.accuracy"),
    Rule(evidence="evaluation.teacher_disagreement", at_most=0.15, applies_to="derived"),
)
_LIMITED = (
    Rule(evidence="evaluation.accuracy_ci.0", at_least=0.8),
    Rule(evidence="evaluation.recall.*", at_least=0.8),
    Rule(evidence="evaluation.teacher_disagreement_ci.1", at_most=0.1, applies_to="derived"),
    Rule(evidence="evaluation.negative_flip_upper", at_most=0.05, applies_to="derived"),
    Rule(evidence="evaluation.ece_debiased", at_most=0.05),
    Rule(evidence="evaluation.batch_neighbour_delta", at_most=0.05),
)
_HIGH = (
    Rule(evidence="evaluation.accuracy_ci.0", at_least=0.9),
    Rule(evidence="evaluation.recall.*", at_least=0.9),
    Rule(evidence="evaluation.teacher_disagreement_ci.1", at_most=0.05, applies_to="derived"),
    Rule(evidence="evaluation.negative_flip_upper", at_most=0.02, applies_to="derived"),
    Rule(evidence="evaluation.ece_debiased", at_most=0.02),
    Rule(evidence="evaluation.batch_neighbour_delta", at_most=0.01),
    Rule(evidence="evaluation.slices.lowest.accuracy", at_least=0.8),
    Rule(evidence="evaluation.slices.worst.change", at_least=-0.05, applies_to="derived"),
    Rule(evidence="evaluation.perturbations.*.flip_rate", at_most=0.1),
    Rule(evidence="data.licence"),
    Rule(evidence="data.pii"),
)
_VERSION: Literal["canarium/policy/v1"] = "canarium/policy/v1"
BUILT_IN: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy(apiVersion=_VERSION, name="low", tier="low", rules=_LOW),
        Policy(
            apiVersion=_VERSION, name="limited", tier="limited", rules=_LIMITED, approvals=(Approvals(role="reviewer"),)
        ),
        Policy(
            apiVersion=_VERSION,
            name="high",
            tier="high",
            rules=_HIGH,
            approvals=(Approvals(role="reviewer"), Approvals(role="risk-owner")),
        ),
    )
}


def load_policy(given: str) -> Policy:
    """A built-in policy by its name, or the policy of a file.

    Raises:
        ConfigError: no such name or file, or it cannot be used; one line a fault, each with file and path.
    """
    if given in BUILT_IN:
        return BUILT_IN[given]
    try:
        document = yaml12.load(Path(given).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{given}: {error.strerror or error}; expected a policy file or one of {', '.join(BUILT_IN)}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{given}: not valid YAML: {error}") from None
    try:
        return Policy.model_validate(document)
    except ValidationError as error:
        faults = [(".".join(str(part) for part in one["loc"]), _words(one)) for one in error.errors()]
        raise ConfigError("\n".join(f"{given}: {f'{where}: ' * bool(where)}{what}" for where, what in faults)) from None


def _words(fault: object) -> str:
    assert isinstance(fault, dict)
    if fault["type"] == "extra_forbidden":
        return "unknown key"
    if fault["type"] == "missing":
        return "is required"
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    return f"{fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}"
