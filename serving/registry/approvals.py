"""Approvals: signed envelopes of an artifact, kept beside its manifest.

ROOT/approvals.jsonl has one line an envelope and is only ever appended to. Nothing here decides whether an approval
counts: who is trusted is a matter of the configuration (`serving.governance.admission`).
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from serving.errors import GovernanceError, RegistryError
from serving.governance.dsse import Envelope, verify
from serving.governance.keys import PublicKey
from serving.governance.statement import PAYLOAD_TYPE, Statement, differences, digests_of, read_statement
from serving.registry.journal import Journal
from serving.registry.manifest import Manifest


class Signed(msgspec.Struct, frozen=True):
    """One line: an envelope, the artifact it was stored for, and the public key that is said to have signed it."""

    at: str
    by: str
    ref: str
    key: str
    envelope: Envelope

    def opened(self) -> tuple[Statement, PublicKey]:
        """What was signed and with which key; whether that is trusted is another question.

        Raises:
            GovernanceError: the signature is not valid, or what was signed is no approval.
        """
        key = PublicKey(self.key)
        body, _ = verify(self.envelope, PAYLOAD_TYPE, [key])
        return read_statement(body), key


class Approvals:
    """The envelopes of a registry. Only writers that hold the registry's lock may add to them."""

    def __init__(self, root: Path) -> None:
        self.journal = Journal(root / "approvals.jsonl")

    def all(self) -> list[Signed]:
        """Every envelope, oldest first. Raises `RegistryError` if a line cannot be read."""
        try:
            return [msgspec.convert(line, Signed) for line in self.journal.lines()]
        except msgspec.ValidationError as error:
            raise RegistryError(
                f"{self.journal.path}: not a log of approvals: {error}; restore it from a copy"
            ) from error

    def of(self, manifest: Manifest) -> list[Signed]:
        """The envelopes of one artifact, oldest first."""
        return [one for one in self.all() if one.ref == manifest.ref]

    def add(self, signed: Signed) -> bool:
        """Keep an envelope, unless it is there already; whether it was new. Raises `GovernanceError` as `opened`."""
        signed.opened()
        if any((one.ref, one.envelope) == (signed.ref, signed.envelope) for one in self.all()):
            return False
        self.journal.append(msgspec.to_builtins(signed))
        return True


def faults(signed: Signed, manifest: Manifest | None) -> str:
    """What is wrong with a stored envelope; empty if nothing. `manifest` is what its reference names, if anything."""
    try:
        statement, _ = signed.opened()
    except GovernanceError as error:
        return str(error)
    if manifest is None:
        return ""  # the artifact was removed; that it was once approved stays known
    approved = statement.predicate.digests
    changed = differences(approved, digests_of(manifest, approved.policy))
    return f"it approves another {' and '.join(changed)} than is there" if changed else ""
