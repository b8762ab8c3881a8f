"""Brings a database to the newest schema. The migrations say what that is, and nothing else does."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from serving.errors import StartError

MIGRATIONS = Path(__file__).with_name("migrations")
#: PostgreSQL's advisory lock under which one process at a time migrates ("canarium" in ASCII).
LOCK = 0x63616E617269756D
MIGRATION_TIMEOUT_S = 60
#: The schema version that release 0.1 wrote, and the revision that it is.
FIRST_RELEASE, FIRST_REVISION = 1, "0001"
#: Alembic keeps its context in a global of the process.
_alembic = threading.Lock()


def migrate(connection: sa.Connection, where: str) -> None:
    """Bring the database to the newest schema, within the transaction of `connection`.

    Others that start at the same moment wait: for the transaction itself with SQLite (it must have begun with
    `BEGIN IMMEDIATE`), for an advisory lock with PostgreSQL.

    Args:
        connection: in a transaction.
        where: the database, as errors name it.

    Raises:
        StartError: a newer Canarium wrote the database.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{MIGRATION_TIMEOUT_S}s'")
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{MIGRATION_TIMEOUT_S}s'")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
    config = _config()
    config.attributes["connection"] = connection
    found, marked = _found(connection, where)
    with _alembic:
        if found and not marked:
            command.stamp(config, found)
        command.upgrade(config, "head")


def revision_of(connection: sa.Connection, where: str) -> str:
    """The revision of a database's schema. Raises `StartError`: it is a newer one, or there is none."""
    found, _ = _found(connection, where)
    if not found:
        raise StartError(f"{where} is no state database")
    return found


def _found(connection: sa.Connection, where: str) -> tuple[str, bool]:
    """The revision (empty for a new database), and whether Alembic's mark is there. Raises `StartError` if newer."""
    marked = MigrationContext.configure(connection).get_current_revision()
    if marked is not None:
        if marked not in revisions():
            raise _newer(where, f"schema revision {marked}")
        return marked, True
    if not sa.inspect(connection).has_table("schema_version"):
        return "", False
    version = connection.exec_driver_sql("SELECT version FROM schema_version").scalar()
    if version != FIRST_RELEASE:
        raise _newer(where, f"schema version {version}")
    return FIRST_REVISION, False


@cache
def revisions() -> tuple[str, ...]:
    """The known revisions, newest first."""
    return tuple(script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _newer(where: str, found: str) -> StartError:
    return StartError(
        f"the state database {where} has {found} and this Canarium knows up to {revisions()[0]}: "
        "run the version that wrote it, or restore a backup"
    )
