"""The audit trail as a hash chain: each row's hash covers the row and the hash before it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson

from serving.core.commands import AuditDraft

#: `prev_hash` of the first row.
GENESIS = "0" * 64


class AuditEntry(msgspec.Struct, frozen=True):
    """One row of the trail. `seq` counts from 1 without gaps; `at` is ISO 8601 in UTC."""

    seq: int
    at: str
    actor: str
    action: str
    model: str
    variant: str | None
    reason: str
    before: dict[str, Any]
    after: dict[str, Any]
    evidence: dict[str, Any]
    prev_hash: str
    hash: str


def storable(evidence: dict[str, Any]) -> dict[str, Any]:
    """The evidence if a row can hold it, else what is wrong with it: nothing odd may block the trail."""
    try:
        orjson.dumps([[evidence]])  # a row puts it as deep
    except TypeError as error:
        return {"unusable": f"the evidence could not be kept: {error}"}
    return evidence


class Verification(msgspec.Struct, frozen=True):
    """Result of checking the chain; `first_bad` is the seq of the first row that does not fit."""

    ok: bool
    entries: int
    first_bad: int | None = None


def iso(at_ns: int) -> str:
    """Nanoseconds since the Unix epoch as ISO 8601 in UTC, to the millisecond."""
    seconds, rest = divmod(at_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1_000_000:03d}Z"


def chained(draft: AuditDraft, seq: int, prev_hash: str) -> AuditEntry:
    """Give a row its place in the chain."""
    fields = {name: _held(getattr(draft, name)) for name in AuditDraft.__struct_fields__ if name != "at_ns"}
    # What is hashed is what a reader gets back: plain JSON values.
    plain = orjson.loads(orjson.dumps(fields, option=orjson.OPT_NON_STR_KEYS))
    entry = AuditEntry(seq=seq, at=iso(draft.at_ns), prev_hash=prev_hash, hash="", **plain)
    return msgspec.structs.replace(entry, hash=digest(entry))


def continued(
    head: tuple[int, str], landed: list[AuditEntry], drafts: Sequence[AuditDraft]
) -> tuple[list[AuditEntry], list[AuditEntry]]:
    """The drafts as rows behind `head`, and which rows are still to be written.

    Of the drafts, those that landed before are not written twice. What landed and is not among them was said to
    have failed, so it is taken back by a row of its own.
    """
    entries: list[AuditEntry] = []
    new: list[AuditEntry] = []
    seq, last = head
    same = 0
    while same < min(len(landed), len(drafts)) and chained(drafts[same], seq + 1, last).hash == landed[same].hash:
        entries.append(landed[same])
        seq, last = landed[same].seq, landed[same].hash
        same += 1
    if landed:
        seq, last = landed[-1].seq, landed[-1].hash
    for draft in (*(_taken_back(row) for row in landed[same:]), *drafts[same:]):
        new.append(chained(draft, seq + 1, last))
        seq, last = new[-1].seq, new[-1].hash
    return [*entries, *new], new


def _taken_back(row: AuditEntry) -> AuditDraft:
    return AuditDraft(
        at_ns=round(datetime.fromisoformat(row.at).timestamp() * 1000) * 1_000_000,
        actor=row.actor,
        action=f"{row.action}-undone",
        model=row.model,
        variant=row.variant,
        reason="the database kept this although its answer was lost: it was said to have failed",
        before=row.after,
        after=row.before,
    )


def _held(value: Any) -> Any:
    """A text without NUL, which no column of PostgreSQL can hold; whatever else as it is."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value


def digest(entry: AuditEntry) -> str:
    """SHA-256, as hex, of the previous hash followed by the row's canonical JSON without the hashes."""
    fields = msgspec.structs.asdict(entry)
    del fields["hash"], fields["prev_hash"]
    canonical = orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(entry.prev_hash.encode() + canonical).hexdigest()


class ChainCheck:
    """Walks rows in order of seq and remembers the first that does not fit."""

    def __init__(self) -> None:
        self.entries = 0
        self.first_bad: int | None = None
        self._seq, self._hash = 0, GENESIS

    def feed(self, rows: Iterable[AuditEntry]) -> None:
        for row in rows:
            self.entries += 1
            fits = row.seq == self._seq + 1 and row.prev_hash == self._hash and row.hash == digest(row)
            if not fits and self.first_bad is None:
                # A gap is reported where the missing row should be.
                self.first_bad = min(row.seq, self._seq + 1)
            self._seq, self._hash = row.seq, row.hash

    def finish(self, head_seq: int, head_hash: str) -> Verification:
        """Compare with the head that was recorded beside the chain, so that a cut tail shows."""
        if self.first_bad is None and (self._seq, self._hash) != (head_seq, head_hash):
            self.first_bad = min(self._seq, head_seq) + 1
        return Verification(self.first_bad is None, self.entries, self.first_bad)
