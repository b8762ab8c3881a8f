"""What an approval says: an in-toto Statement (v1) about an artifact, what was measured of it, and a policy.

The subject's digest is that of four digests, which the predicate names: of the artifact, of its evaluation, of its
calibration and of the policy. Whoever checks an approval computes all of them again, so any change voids it
(https://github.com/in-toto/attestation/blob/v1.1.0/spec/v1/statement.md).
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec

from serving.decoding import UNREADABLE
from serving.errors import GovernanceError
from serving.registry.manifest import Manifest

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "urn:canarium:approval:v1"


class Digests(msgspec.Struct, frozen=True):
    """SHA-256, hexadecimal, of the four things that are approved together."""

    artifact: str
    evaluation: str
    calibration: str
    policy: str

    @property
    def subject(self) -> str:
        """SHA-256 of the four."""
        return _digest(msgspec.to_builtins(self))


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    """The predicate: who approves what, as whom, and why. `verdict` is that of the policy's rules."""

    digests: Digests
    policy: str
    tier: str
    verdict: str
    approver: str
    role: str
    reason: str
    approved_at: str


class Subject(msgspec.Struct, frozen=True):
    name: str
    digest: dict[str, str]


class Statement(msgspec.Struct, frozen=True, rename={"type": "_type"}):
    """An in-toto statement with one subject, named MODEL/VARIANT."""

    type: str
    subject: tuple[Subject, ...]
    predicateType: str
    predicate: Approval

    def encode(self) -> bytes:
        return msgspec.json.encode(self, order="sorted")


def digests_of(manifest: Manifest, policy_digest: str) -> Digests:
    """What an approval of this artifact under this policy must name.

    The numbers that a registry gives, and what parents are called in it, are not part: an artifact that is moved to
    another registry keeps its approvals.
    """
    document = msgspec.to_builtins(manifest)
    evaluation, calibration = document.pop("evaluation"), document.pop("calibration")
    for assigned in ("revision", "version"):
        del document[assigned]
    document["lineage"]["parents"] = [parent["role"] for parent in document["lineage"]["parents"]]
    return Digests(_digest(document), _digest(evaluation), _digest(calibration), policy_digest)


def statement_of(manifest: Manifest, approval: Approval) -> Statement:
    subject = Subject(f"{manifest.model}/{manifest.variant}", {"sha256": approval.digests.subject})
    return Statement(STATEMENT_TYPE, (subject,), PREDICATE_TYPE, approval)


def read_statement(body: bytes) -> Statement:
    """A signed body. Raises `GovernanceError` for what is no approval, or does not agree with itself."""
    try:
        statement = msgspec.json.decode(body, type=Statement)
    except UNREADABLE as error:
        raise GovernanceError(f"the envelope holds no approval: {error}") from None
    if (statement.type, statement.predicateType) != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise GovernanceError(f"the envelope holds {statement.predicateType!r}, which is no approval")
    named = [one.digest.get("sha256") for one in statement.subject]
    if named != [statement.predicate.digests.subject]:
        raise GovernanceError("the subject of the approval is not that of the digests it names")
    return statement


def differences(signed: Digests, now: Digests) -> list[str]:
    """Which of the four are not what was signed."""
    return [name for name in Digests.__struct_fields__ if getattr(signed, name) != getattr(now, name)]


def _digest(document: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(document, order="sorted")).hexdigest()
