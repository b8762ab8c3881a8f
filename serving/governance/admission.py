"""May this artifact be served here? The policy's rules, and enough approvals by people who are trusted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from serving.config import Config, Started
from serving.errors import GovernanceError
from serving.governance.gate import failures, judge
from serving.governance.policy import Approvals, Policy, load_policy
from serving.governance.settings import GovernanceConfig
from serving.governance.statement import differences, digests_of
from serving.registry.approvals import Signed
from serving.registry.manifest import Manifest
from serving.registry.store import Registry


class Trusted(NamedTuple):
    """Whose signature counts, and in which roles."""

    name: str
    roles: frozenset[str]


class Standing(NamedTuple):
    """Which approvals of an artifact count, as (name, role), and a sentence on each that does not."""

    counted: list[tuple[str, str]]
    void: list[str]


def trusted_keys(config: GovernanceConfig) -> dict[str, Trusted]:
    """Public key -> whose it is."""
    return {key.key: Trusted(key.name, frozenset(key.roles)) for key in config.trusted_keys}


def standing(signed: Sequence[Signed], manifest: Manifest, policy: Policy, trusted: Mapping[str, Trusted]) -> Standing:
    """Judge every envelope of an artifact: its signature, its key, its role, and that nothing has changed since."""
    now, counted, void = digests_of(manifest, policy.digest), list[tuple[str, str]](), list[str]()
    for one in signed:
        try:
            statement, key = one.opened()
        except GovernanceError as error:
            void.append(f"the one of {one.at}: {error}")
            continue
        said = statement.predicate
        who = f"{said.approver} as {said.role} on {said.approved_at}"
        if key.text not in trusted:
            void.append(f"{who}: key {key.text} is not among governance.trusted_keys")
        elif said.role not in trusted[key.text].roles:
            void.append(f"{who}: {trusted[key.text].name} has no role {said.role!r} in governance.trusted_keys")
        elif changed := differences(said.digests, now):
            of = f" (it was given under {said.policy!r})" if changed == ["policy"] else ""
            void.append(f"{who}: the {' and '.join(changed)} changed since{of}")
        else:
            counted.append((trusted[key.text].name, said.role))
    return Standing(list(dict.fromkeys(counted)), void)


def lacking(wanted: Sequence[Approvals], counted: Collection[tuple[str, str]]) -> list[str]:
    """What is missing of the approvals that a policy asks for, in words; one person fills one place only."""
    places = [one.role for one in wanted for _ in range(one.count)]
    names = sorted({name for name, _ in counted})
    held: dict[str, int] = {}  # name -> the place it fills

    def fill(place: int, seen: set[str]) -> bool:
        for name in names:
            fits = not places[place] or (name, places[place]) in counted
            if fits and name not in seen:
                seen.add(name)
                if name not in held or fill(held[name], seen):
                    held[name] = place
                    return True
        return False

    # Those who want a certain role first, so that "any" takes who is left.
    order = sorted(range(len(places)), key=lambda place: not places[place])
    empty = [place for place in order if not fill(place, set())]
    roles = [places[place] for place in empty]
    return [_wanting(role, roles.count(role)) for role in dict.fromkeys(roles)]


def _wanting(role: str, count: int) -> str:
    return f"{count} approval{'s' if count > 1 else ''}{f' by a {role}' if role else ''} missing"


def required_policies(config: Config) -> dict[str, Policy]:
    """Model -> the policy that its artifacts must fulfil; none while governance is off. Raises `ConfigError`."""
    if isinstance(config, Started) and config.policies is not None:
        return config.policies
    if config.governance.mode == "off":
        return {}
    return {name: load_policy(model.policy or config.governance.policy) for name, model in config.models.items()}


class Admission:
    """The governance of one configuration over one registry.

    Raises:
        ConfigError: a policy that the configuration names cannot be used.
    """

    def __init__(self, config: Config, registry: Registry) -> None:
        self._registry = registry
        self.mode = config.governance.mode
        self._trusted = trusted_keys(config.governance)
        self._policies = required_policies(config)

    def refusal(self, model: str, variant: str, manifest: Manifest) -> str:
        """Why this artifact may not be served as this variant, in one line; empty if it may."""
        if self.mode == "off":
            return ""
        policy = self._policies[model]
        found = standing(self._registry.approvals.of(manifest), manifest, policy, self._trusted)
        lacks = failures(judge(policy, msgspec.to_builtins(manifest))) + lacking(policy.approvals, found.counted)
        if not lacks:
            return ""
        void = [f"not counted: {one}" for one in found.void] if lacking(policy.approvals, found.counted) else []
        return (
            f"models.{model}.variants.{variant}: {manifest.ref} (sha256 {manifest.digest}) is not approved under "
            f"policy {policy.name!r}: {'; '.join([*lacks, *void])}"
        )

    def check(self, model: str, variant: str, manifest: Manifest) -> str:
        """What to say of an artifact that is served without approval in mode `warn`; empty if nothing.

        Raises:
            GovernanceError: mode `enforce`, and it may not be served.
        """
        why = self.refusal(model, variant, manifest)
        if why and self.mode == "enforce":
            raise GovernanceError(f"{why}; governance.mode is enforce")
        return why
