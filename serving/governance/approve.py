"""Approving an artifact: the policy's rules must hold, then a statement is signed and kept in the registry."""

from __future__ import annotations

import msgspec

from serving.errors import GovernanceError
from serving.governance.dsse import sign
from serving.governance.gate import failures, judge
from serving.governance.keys import PrivateKey
from serving.governance.policy import ROLE, Policy
from serving.governance.statement import PAYLOAD_TYPE, Approval, digests_of, statement_of
from serving.registry.approvals import Signed
from serving.registry.store import Registry


def approve(
    registry: Registry, ref: str, policy: Policy, key: PrivateKey, *, by: str, role: str, reason: str
) -> Signed:
    """Sign that an artifact fulfils a policy and may be served, and keep the envelope.

    Args:
        ref: the artifact; its files are verified first.
        by: the person, as they name themselves. Who counts is decided by the key, in the configuration.
        role: in which capacity; counts only if the configuration gives the key that role.

    Raises:
        GovernanceError: a rule of the policy fails (each one named), an unusable role.
        RegistryError: no such artifact, or it is damaged.
    """
    if not ROLE.fullmatch(role):
        raise GovernanceError(f"role {role!r}: use lower-case letters, digits and '-', at most 39")
    manifest, _ = registry.open(ref)
    if lacks := failures(judge(policy, msgspec.to_builtins(manifest))):
        raise GovernanceError(f"{manifest.ref}: policy {policy.name!r} is not fulfilled: {'; '.join(lacks)}")
    with registry.writing(new=False):
        approval = Approval(
            digests=digests_of(manifest, policy.digest),
            policy=policy.name,
            tier=policy.tier,
            verdict="pass",
            approver=by,
            role=role,
            reason=reason,
            approved_at=registry.now(),
        )
        envelope = sign(PAYLOAD_TYPE, statement_of(manifest, approval).encode(), key)
        signed = Signed(approval.approved_at, by, manifest.ref, key.public.text, envelope)
        registry.approvals.add(signed)
    return signed
