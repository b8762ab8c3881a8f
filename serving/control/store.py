"""What survives a restart: the state document and the audit chain, written in one transaction.

The calls here block; `Plane` makes them from one thread of its own. Every write names the
lease of its control plane and is refused once a later one leads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from serving.control.audit import GENESIS, AuditEntry, ChainCheck, Verification, continued
from serving.control.database import Database
from serving.control.lease import Leader, LeaseHeld, StaleLease, StoreError
from serving.control.schema import migrate
from serving.core.commands import AuditDraft, ControlState
from serving.decoding import UNREADABLE
from serving.errors import StartError

__all__ = ["LeaseHeld", "SqlStore", "SqliteStore", "StaleLease", "Store", "StoreError"]

VERIFY_PAGE = 1000
#: The holder of a database in a file: only one instance can be running over its directory.
ONLY = "local"


class Store(Protocol):
    """What the plane needs of a database; the calls block."""

    holder: str

    def leader(self) -> Leader:
        """Who leads now."""
        ...

    def acquire(self, expected: Leader | None = None) -> ControlState:
        """Lead from now on; the state as stored, with the new lease.

        Raises `LeaseHeld` unless the leader still is `expected`; None takes over from anybody.
        """
        ...

    def renew(self) -> None:
        """Beat. Raises `StaleLease` if the lease was lost, `StoreError` if the database does not answer."""
        ...

    def write(self, state: ControlState, drafts: Sequence[AuditDraft]) -> list[AuditEntry]:
        """Save the state and append the rows, both or neither."""
        ...

    def audit(
        self, model: str | None, limit: int, before: int | None = None, after: int | None = None
    ) -> list[AuditEntry]:
        """Newest rows first, or with `after` the oldest beyond it; those of `model` include those of all models."""
        ...

    def verify(self) -> Verification: ...

    def close(self) -> None:
        """Stop leading, if the database answers, and let go of it."""
        ...


# The columns that are used; what the tables are is said by the migrations alone.
_state = sa.table(
    "state",
    *(sa.column(name) for name in ("id", "lease", "rev", "document", "audit_seq", "audit_hash", "holder", "beat")),
)
_audit = sa.table("audit", *(sa.column(name) for name in AuditEntry.__struct_fields__))
_JSON_COLUMNS = ("before", "after", "evidence")


class SqlStore:
    """The store in a database, brought to the newest schema first.

    Args:
        database: where.
        holder: names this control plane to others; one that starts again under the same name leads at once.
        floor: the highest lease that is known to have been seen; the next one is above it, whatever the database says.

    Raises:
        StartError: the database cannot be reached or used, or was written by a newer version.
    """

    def __init__(self, database: Database, holder: str, floor: int = 0) -> None:
        self.holder = holder
        self._floor = floor
        self._database = database
        self._lease, self._head = 0, (0, GENESIS)
        if database.path is not None:
            try:
                os.close(os.open(database.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            except OSError as error:
                reason = error.strerror or error
                raise StartError(f"the state database {database.path} cannot be opened: {reason}") from error
        # Readers have a connection of their own: checking a long trail must not hold up a write.
        self._writer, self._reader = database.writer(), database.reader()
        try:
            self._prepare()
        except (StoreError, StartError) as error:
            self._dispose()
            raise StartError(str(error)) from error

    def _prepare(self) -> None:
        with self._transaction(self._writer) as connection:
            migrate(connection, self._database.shown)
            if connection.execute(sa.select(_state.c.id)).scalar() is None:
                empty = msgspec.json.encode(ControlState()).decode()
                row = {"id": 1, "lease": 0, "rev": 0, "document": empty, "audit_seq": 0, "audit_hash": GENESIS}
                connection.execute(sa.insert(_state).values(row))

    def leader(self) -> Leader:
        with self._transaction(self._reader) as connection:
            return _leader(connection.execute(sa.select(_state.c.lease, _state.c.holder, _state.c.beat)).one())

    def acquire(self, expected: Leader | None = None) -> ControlState:
        with self._transaction(self._writer) as connection:
            row = connection.execute(sa.select(_state).with_for_update()).one()
            if expected is not None and _leader(row) != expected:
                raise LeaseHeld(f"{row.holder or 'nobody'} leads by now, with lease {row.lease}")
            try:
                state = msgspec.json.decode(row.document, type=ControlState)
            except UNREADABLE as error:
                raise StartError(
                    f"the state in {self._database.shown} cannot be read ({error}): restore a backup"
                ) from error
            lease = max(row.lease, self._floor) + 1
            connection.execute(sa.update(_state).values(lease=lease, holder=self.holder, beat=0))
        self._lease, self._head = lease, (row.audit_seq, row.audit_hash)
        return msgspec.structs.replace(state, lease=self._lease)

    def renew(self) -> None:
        self._hold(holder=self.holder, beat=_state.c.beat + 1)

    def _hold(self, **values: Any) -> None:
        """Change what the row says of the leader, if that is still this one. Raises `StaleLease`."""
        with self._transaction(self._writer) as connection:
            mine = sa.update(_state).where(_state.c.lease == self._lease).values(values)
            if connection.execute(mine).rowcount == 0:
                self._fence(connection.execute(sa.select(_state.c.lease)).scalar_one())

    def write(self, state: ControlState, drafts: Sequence[AuditDraft]) -> list[AuditEntry]:
        with self._transaction(self._writer) as connection:
            columns = (_state.c.lease, _state.c.audit_seq, _state.c.audit_hash)
            head = connection.execute(sa.select(*columns).with_for_update()).one()
            self._fence(head.lease)
            landed = self._landed(connection, head.audit_seq)
            entries, new = continued(self._head, landed, drafts)
            if new:
                connection.execute(sa.insert(_audit), [_row(entry) for entry in new])
            seq, last = (new[-1].seq, new[-1].hash) if new else (head.audit_seq, head.audit_hash)
            document = msgspec.json.encode(state).decode()
            connection.execute(
                sa.update(_state).values(rev=state.rev, document=document, audit_seq=seq, audit_hash=last)
            )
        self._head = seq, last
        return entries

    def _landed(self, connection: sa.Connection, head_seq: int) -> list[AuditEntry]:
        """Rows of an earlier write of this lease which was committed although its answer was lost."""
        seq, _ = self._head
        if seq == head_seq:
            return []
        query = sa.select(_audit).where(_audit.c.seq > seq).order_by(_audit.c.seq)
        return [_entry(row) for row in connection.execute(query).mappings()]

    def audit(
        self, model: str | None, limit: int, before: int | None = None, after: int | None = None
    ) -> list[AuditEntry]:
        order = _audit.c.seq.desc() if after is None else _audit.c.seq
        query = sa.select(_audit).order_by(order).limit(limit)
        if model is not None:
            query = query.where(_audit.c.model.in_((model, "*")))
        if before is not None:
            query = query.where(_audit.c.seq < before)
        if after is not None:
            query = query.where(_audit.c.seq > after)
        with self._transaction(self._reader) as connection:
            return [_entry(row) for row in connection.execute(query).mappings()]

    def verify(self) -> Verification:
        with self._transaction(self._reader) as connection:
            return verify_trail(connection)

    def close(self) -> None:
        with suppress(StoreError):
            self._hold(holder="")
        self._dispose()

    def _dispose(self) -> None:
        self._writer.dispose()
        self._reader.dispose()

    def _fence(self, lease: int) -> None:
        if lease != self._lease:
            raise StaleLease(f"another control plane has taken over (lease {lease}, this one holds {self._lease})")

    @contextmanager
    def _transaction(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        try:
            with engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            cause = self._database.redacted(str(getattr(error, "orig", None) or error))
            # Without the chain of causes: a driver's own words may hold what was redacted.
            raise StoreError(f"the state database {self._database.shown}: {cause}") from None


class SqliteStore(SqlStore):
    """The store in one SQLite file."""

    def __init__(self, path: Path, holder: str = ONLY, floor: int = 0) -> None:
        super().__init__(Database.in_file(path), holder, floor)


def head_of(connection: sa.Connection) -> tuple[int, str]:
    """Number and hash of the last audit row, as they are kept beside the trail."""
    row = connection.execute(sa.select(_state.c.audit_seq, _state.c.audit_hash)).one()
    return row.audit_seq, row.audit_hash


def verify_trail(connection: sa.Connection) -> Verification:
    """Walk the whole trail page by page; `connection` must see one moment throughout."""
    check, page = ChainCheck(), sa.select(_audit).order_by(_audit.c.seq).limit(VERIFY_PAGE)
    head, beyond = head_of(connection), page
    while True:
        rows = [_entry(row) for row in connection.execute(beyond).mappings()]
        if not rows:
            return check.finish(*head)
        check.feed(rows)
        beyond = page.where(_audit.c.seq > rows[-1].seq)


def _leader(row: Any) -> Leader:
    return Leader(row.lease, row.holder, row.beat)


def _row(entry: AuditEntry) -> dict[str, Any]:
    row = msgspec.structs.asdict(entry)
    for name in _JSON_COLUMNS:
        row[name] = msgspec.json.encode(row[name]).decode()
    return row


def _entry(row: Any) -> AuditEntry:
    values = dict(row)
    for name in _JSON_COLUMNS:
        try:
            values[name] = msgspec.json.decode(values[name])
        except UNREADABLE:  # tampered with: shown as it is, and found by verify
            values[name] = {"unreadable": values[name]}
    return AuditEntry(**values)
