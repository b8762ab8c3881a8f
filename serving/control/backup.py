"""Copies of the state database while it is in use, and the way back. SQLite only: PostgreSQL has its own tools.

A copy counts only once it was read through: SQLite's own check, a known schema, and the whole audit chain.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from serving import processes
from serving.contract import Snapshot
from serving.control.audit import iso
from serving.control.database import BUSY_TIMEOUT_S, Database
from serving.control.lease import StoreError
from serving.control.schema import revision_of
from serving.control.store import SqliteStore, head_of, verify_trail
from serving.core.commands import AuditDraft
from serving.decoding import UNREADABLE
from serving.errors import StartError
from serving.paths import Paths

COMPANIONS = ("-wal", "-shm")


class Copy(msgspec.Struct, frozen=True):
    """A checked copy. `entries`: rows of its audit trail; `head`: the hash of the last one."""

    path: str
    revision: str
    entries: int
    head: str


class Restored(msgspec.Struct, frozen=True):
    """What a restore did. `aside`: the database that was replaced, empty if there was none."""

    path: str
    entries: int
    aside: str


def backup(database: Database, target: Path) -> Copy:
    """Copy the database to a new file of mode 0600, while it is in use if need be, and check the copy.

    Raises:
        StoreError: it is in PostgreSQL (names the command to use), cannot be read, or does not verify.
        FileExistsError: there is something at `target`.
    """
    source = _file(database, f"pg_dump --format=custom --file={shlex.quote(str(target))} {{url}}")
    if target.exists():
        raise FileExistsError(17, "is there already", str(target))
    with _copied(source, target) as made:
        copy = inspect(made)
        os.link(made, target)  # which fails if somebody else was quicker
    return msgspec.structs.replace(copy, path=str(target))


def restore(database: Database, source: Path, state_dir: Path, *, actor: str, reason: str, now_ns: int) -> Restored:
    """Put a copy in the place of the database of an instance that does not run, and say so in its trail.

    Args:
        database: what is replaced.
        source: the copy.
        state_dir: the instance's directory.
        actor: who does it, for the trail.
        reason: why, for the trail.
        now_ns: nanoseconds since the Unix epoch.

    Raises:
        StartError: the instance runs, or a newer version wrote the copy.
        StoreError: the database is in PostgreSQL (names the command), or the copy does not verify.
    """
    place = _file(database, f"pg_restore --clean --if-exists --dbname={{url}} {shlex.quote(str(source))}")
    paths = Paths.of(state_dir)
    paths.create()
    with _stopped(paths):
        given = inspect(source)
        with _copied(source, place) as made:
            replaced = _head(place)
            store = SqliteStore(made, floor=seen_lease(paths.snapshot_file))
            state = store.acquire()
            facts = {"file": source.name, "entries": given.entries, "head": given.head}
            row = AuditDraft(now_ns, actor, "state-restored", "*", None, reason, replaced, facts)
            store.write(state, [row])
            found = store.verify()
            store.close()
            if not found.ok:
                raise StoreError(f"{source}: the audit trail does not verify after the restore; nothing was replaced")
            aside = _set_aside(place, now_ns)
            made.replace(place)
        _leave_to_owner(paths, place)
    return Restored(str(place), found.entries, aside)


@contextlib.contextmanager
def _stopped(paths: Paths) -> Iterator[None]:
    """Keep the instance from starting meanwhile. Raises `StartError` if it runs, be it on a cluster without `up`."""
    lock, control = processes.InstanceLock(paths.lock_file), processes.InstanceLock(paths.control_lock)
    try:
        if not lock.acquire() or processes.members(paths.instance):
            raise StartError(f"state.dir: {paths.state_dir} is in use; `canarium down` ends what runs there")
        if not control.acquire():
            raise StartError(
                f"state.dir: {paths.state_dir} is in use by a control plane (process {control.holder}); end it first, "
                "on Kubernetes by deleting the RayService"
            )
        yield
    finally:
        control.release()
        lock.release()


def _leave_to_owner(paths: Paths, place: Path) -> None:
    """What root made must be usable for the user whose directory it is."""
    if os.geteuid() != 0:
        return
    owner = paths.state_dir.stat()
    for made in (place, paths.lock_file, paths.control_lock, *paths.folders):
        os.chown(made, owner.st_uid, owner.st_gid)


def inspect(path: Path) -> Copy:
    """Read a database through without changing it.

    Raises:
        StoreError: it cannot be read, is damaged, or its audit chain is broken.
        StartError: a newer version wrote it.
    """
    engine = sa.create_engine("sqlite://", creator=lambda: _open(path), poolclass=StaticPool)
    try:
        with engine.connect() as connection:
            damage = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
            if damage != "ok":
                raise StoreError(f"{path}: is damaged: {damage}")
            revision = revision_of(connection, str(path))
            trail = verify_trail(connection)
            if not trail.ok:
                raise StoreError(f"{path}: its audit trail was altered: entry {trail.first_bad} does not match")
            return Copy(str(path), revision, trail.entries, head_of(connection)[1])
    except SQLAlchemyError as error:
        raise StoreError(f"{path}: {getattr(error, 'orig', None) or error}") from error
    finally:
        engine.dispose()


def seen_lease(snapshot_file: Path) -> int:
    """The lease of the last table that a gateway of this node took over; 0 if it is not known.

    A database that was put back may have a lower one. Gateways would then refuse its tables.
    """
    try:
        return msgspec.json.decode(snapshot_file.read_bytes(), type=Snapshot).lease
    except (OSError, *UNREADABLE):
        return 0


def _file(database: Database, command: str) -> Path:
    if database.path is None:
        line = command.format(url=shlex.quote(database.plain_url))
        raise StoreError(f"the state is in PostgreSQL, whose own tools do this: {line}")
    return database.path


def _open(path: Path) -> sqlite3.Connection:
    """For reading only. Raises `sqlite3.Error`; a file that is absent is not made."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=False)


@contextlib.contextmanager
def _copied(source: Path, beside: Path) -> Iterator[Path]:
    """A copy in the directory of `beside`, which is gone afterwards unless it was renamed. Raises `StoreError`."""
    made = beside.with_name(f".{beside.name}.{secrets.token_hex(4)}")
    try:
        os.close(os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            with contextlib.closing(_open(source)) as old, contextlib.closing(sqlite3.connect(made)) as new:
                old.backup(new)  # in one read transaction, which holds up no writer
                new.execute("PRAGMA journal_mode=DELETE")  # one file, complete in itself
        except sqlite3.Error as error:
            raise StoreError(f"{source}: {error}") from error
        _sync(made)
        yield made
    finally:
        for suffix in ("", *COMPANIONS):
            Path(f"{made}{suffix}").unlink(missing_ok=True)


def _head(place: Path) -> dict[str, int | str]:
    """What the trail of the replaced database ends with, as far as that can be read."""
    engine = sa.create_engine("sqlite://", creator=lambda: _open(place), poolclass=StaticPool)
    try:
        with engine.connect() as connection:
            entries, head = head_of(connection)
            return {"entries": entries, "head": head}
    except SQLAlchemyError:
        return {}
    finally:
        engine.dispose()


def _set_aside(place: Path, now_ns: int) -> str:
    """Keep what is replaced under a name of its own; never away before the other takes its place."""
    if not place.exists():
        return ""
    aside = place.with_name(f"{place.name}.before-{iso(now_ns).replace(':', '').replace('.', '-')}")
    os.link(place, aside)
    log, index = (Path(f"{place}{suffix}") for suffix in COMPANIONS)
    if log.exists() and log.stat().st_size:  # what was committed and has not reached the file itself
        log.rename(f"{aside}-wal")
    log.unlink(missing_ok=True)
    index.unlink(missing_ok=True)  # made anew from the log
    return str(aside)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
