"""What survives a restart: the state document and the audit chain, written in one transaction.

The calls here block; `Plane` makes them from one thread of its own. Every write names the
lease of its control plane and is refused once a later one has started.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from serving.control.audit import GENESIS, AuditEntry, ChainCheck, Verification, chained
from serving.core.commands import AuditDraft, ControlState
from serving.errors import CanariumError, StartError

#: The layout below. A database with a higher one was written by a newer Canarium.
SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 5.0
VERIFY_PAGE = 1000


class StoreError(CanariumError):
    """The state database could not be read or written; nothing was changed."""


class StaleLease(StoreError):
    """Another control plane has started since; this one must stop writing."""


class Store(Protocol):
    """What the plane needs of a database; the calls block."""

    def acquire(self) -> ControlState:
        """Take the lease over from whoever had it; the state as stored, with the new lease."""
        ...

    def check(self) -> None:
        """Raise `StaleLease` if the lease was lost, `StoreError` if the database does not answer."""
        ...

    def write(self, state: ControlState, drafts: Sequence[AuditDraft]) -> list[AuditEntry]:
        """Save the state and append the rows, both or neither."""
        ...

    def audit(self, model: str | None, limit: int, before: int | None) -> list[AuditEntry]:
        """Newest rows first; those of `model` include those of all models."""
        ...

    def verify(self) -> Verification: ...

    def close(self) -> None: ...


_metadata = sa.MetaData()
_schema = sa.Table("schema_version", _metadata, sa.Column("version", sa.Integer, nullable=False))
_state = sa.Table(
    "state",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("lease", sa.Integer, nullable=False),
    sa.Column("rev", sa.BigInteger, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("audit_seq", sa.Integer, nullable=False),
    sa.Column("audit_hash", sa.Text, nullable=False),
)
_audit = sa.Table(
    "audit",
    _metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False, index=True),
    sa.Column("variant", sa.Text),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("before", sa.Text, nullable=False),
    sa.Column("after", sa.Text, nullable=False),
    sa.Column("evidence", sa.Text, nullable=False),
    sa.Column("prev_hash", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
)
_JSON_COLUMNS = ("before", "after", "evidence")


class SqliteStore:
    """The store in one SQLite file: WAL, an fsync at every commit.

    Raises:
        StartError: the file cannot be opened, is damaged, or was written by a newer version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lease = 0
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise StartError(f"the state database {path} cannot be opened: {error.strerror or error}") from error
        # Readers have a connection of their own: checking a long trail must not hold up a write.
        self._writer, self._reader = _engine(path, "BEGIN IMMEDIATE"), _engine(path, "BEGIN")
        try:
            self._prepare()
        except StoreError as error:
            self.close()
            raise StartError(str(error)) from error

    def _prepare(self) -> None:
        with self._transaction(self._writer) as connection:
            _metadata.create_all(connection)
            version = connection.execute(sa.select(_schema.c.version)).scalar()
            if version is None:
                connection.execute(sa.insert(_schema).values(version=SCHEMA_VERSION))
            elif version != SCHEMA_VERSION:
                raise StartError(
                    f"the state database {self._path} has schema version {version} and this Canarium knows "
                    f"{SCHEMA_VERSION}: run the version that wrote it, or restore a backup"
                )
            if connection.execute(sa.select(_state.c.id)).scalar() is None:
                empty = msgspec.json.encode(ControlState()).decode()
                row = {"id": 1, "lease": 0, "rev": 0, "document": empty, "audit_seq": 0, "audit_hash": GENESIS}
                connection.execute(sa.insert(_state).values(row))

    def acquire(self) -> ControlState:
        with self._transaction(self._writer) as connection:
            row = connection.execute(sa.select(_state)).one()
            self._lease = row.lease + 1
            connection.execute(sa.update(_state).values(lease=self._lease))
        try:
            state = msgspec.json.decode(row.document, type=ControlState)
        except msgspec.DecodeError as error:
            raise StartError(f"the state in {self._path} cannot be read ({error}): restore a backup") from error
        return msgspec.structs.replace(state, lease=self._lease)

    def check(self) -> None:
        with self._transaction(self._reader) as connection:
            self._fence(connection.execute(sa.select(_state.c.lease)).scalar_one())

    def write(self, state: ControlState, drafts: Sequence[AuditDraft]) -> list[AuditEntry]:
        with self._transaction(self._writer) as connection:
            head = connection.execute(sa.select(_state.c.lease, _state.c.audit_seq, _state.c.audit_hash)).one()
            self._fence(head.lease)
            seq, last, entries = head.audit_seq, head.audit_hash, []
            for draft in drafts:
                entry = chained(draft, seq + 1, last)
                seq, last = entry.seq, entry.hash
                entries.append(entry)
            if entries:
                connection.execute(sa.insert(_audit), [_row(entry) for entry in entries])
            document = msgspec.json.encode(state).decode()
            connection.execute(
                sa.update(_state).values(rev=state.rev, document=document, audit_seq=seq, audit_hash=last)
            )
        return entries

    def audit(self, model: str | None, limit: int, before: int | None) -> list[AuditEntry]:
        query = sa.select(_audit).order_by(_audit.c.seq.desc()).limit(limit)
        if model is not None:
            query = query.where(_audit.c.model.in_((model, "*")))
        if before is not None:
            query = query.where(_audit.c.seq < before)
        with self._transaction(self._reader) as connection:
            return [_entry(row) for row in connection.execute(query).mappings()]

    def verify(self) -> Verification:
        check, last = ChainCheck(), None
        with self._transaction(self._reader) as connection:
            head = connection.execute(sa.select(_state.c.audit_seq, _state.c.audit_hash)).one()
            while True:
                page = sa.select(_audit).order_by(_audit.c.seq).limit(VERIFY_PAGE)
                if last is not None:
                    page = page.where(_audit.c.seq > last)
                rows = [_entry(row) for row in connection.execute(page).mappings()]
                if not rows:
                    return check.finish(head.audit_seq, head.audit_hash)
                check.feed(rows)
                last = rows[-1].seq

    def close(self) -> None:
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
            raise StoreError(f"the state database {self._path}: {_cause(error)}") from error


def _engine(path: Path, begin: str) -> sa.Engine:
    """One connection to the file, whose transactions start with the statement `begin`."""
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
        poolclass=StaticPool,
    )

    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    def on_begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    sa.event.listen(engine, "connect", on_connect)
    sa.event.listen(engine, "begin", on_begin)
    return engine


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
        except msgspec.DecodeError:  # tampered with: shown as it is, and found by verify
            values[name] = {"unreadable": values[name]}
    return AuditEntry(**values)


def _cause(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error)
