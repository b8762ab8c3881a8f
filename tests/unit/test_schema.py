"""Migrations over a SQLite file: what release 0.1 left is adopted, what is newer or no database is refused."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest
from control_kit import seeded

from serving.control.audit import GENESIS, chained
from serving.control.schema import revisions
from serving.control.store import SqliteStore
from serving.core.commands import AuditDraft
from serving.errors import StartError

#: As release 0.1 made it.
FIRST_RELEASE = """
CREATE TABLE schema_version (version INTEGER NOT NULL);
CREATE TABLE state (id INTEGER NOT NULL, lease INTEGER NOT NULL, rev BIGINT NOT NULL, document TEXT NOT NULL,
  audit_seq INTEGER NOT NULL, audit_hash TEXT NOT NULL, PRIMARY KEY (id));
CREATE TABLE audit (seq INTEGER NOT NULL, at TEXT NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
  model TEXT NOT NULL, variant TEXT, reason TEXT NOT NULL, "before" TEXT NOT NULL, "after" TEXT NOT NULL,
  evidence TEXT NOT NULL, prev_hash TEXT NOT NULL, hash TEXT NOT NULL, PRIMARY KEY (seq));
CREATE INDEX ix_audit_model ON audit (model);
INSERT INTO schema_version VALUES (1);
"""


def first_release(path: Path) -> None:
    row = chained(AuditDraft(0, "ann", "kill", "moderation", None, "then", {}, {"on": True}), 1, GENESIS)
    values = msgspec.structs.asdict(row) | {"before": "{}", "after": '{"on":true}', "evidence": "{}"}
    state = msgspec.json.encode(seeded()).decode()
    with sqlite3.connect(path) as connection:
        connection.executescript(FIRST_RELEASE)
        connection.execute(f"INSERT INTO audit VALUES ({', '.join('?' * len(values))})", tuple(values.values()))
        connection.execute("INSERT INTO state VALUES (1, 7, 7000012, ?, 1, ?)", (state, row.hash))


def test_the_database_of_the_first_release_is_adopted_without_loss(tmp_path: Path) -> None:
    first_release(tmp_path / "db")
    store = SqliteStore(tmp_path / "db")
    assert store.verify().ok
    state = store.acquire()
    assert (state.lease, state.tables) == (8, seeded().tables)
    written = store.write(state, [AuditDraft(0, "ann", "rearm", "moderation", None, "now", {}, {})])
    assert written[0].seq == 2
    assert [entry.reason for entry in store.audit(None, 9)] == ["now", "then"]
    assert store.verify().ok
    store.close()
    assert SqliteStore(tmp_path / "db").acquire().lease == 9


def test_an_adopted_database_and_a_new_one_have_the_same_schema(tmp_path: Path) -> None:
    first_release(tmp_path / "old")
    columns = []
    for name in ("old", "new"):
        SqliteStore(tmp_path / name).close()
        with sqlite3.connect(tmp_path / name) as connection:
            tables = connection.execute("SELECT name FROM sqlite_master ORDER BY name").fetchall()
            described = [connection.execute(f"PRAGMA table_info({table})").fetchall() for (table,) in tables]
            columns.append((tables, described, connection.execute("SELECT * FROM alembic_version").fetchall()))
    assert columns[0] == columns[1]
    assert columns[0][2] == [(revisions()[0],)]


def test_the_first_release_refuses_what_this_one_wrote(tmp_path: Path) -> None:
    SqliteStore(tmp_path / "db").close()
    with sqlite3.connect(tmp_path / "db") as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchall() != [(1,)]  # it asks for 1


@pytest.mark.parametrize(
    "statement", ["UPDATE schema_version SET version = 9", "INSERT INTO alembic_version VALUES ('9999')"]
)
def test_a_newer_database_is_refused_and_not_changed(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "db"
    SqliteStore(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM alembic_version")
        connection.execute(statement)
    with sqlite3.connect(path) as connection:
        before = list(connection.iterdump())
    with pytest.raises(StartError, match=r"has schema (version 9|revision 9999) and this Canarium knows up to 0"):
        SqliteStore(path)
    with sqlite3.connect(path) as connection:
        assert list(connection.iterdump()) == before


def test_what_is_no_database_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"not a database, whatever its name says" * 100)
    with pytest.raises(StartError, match=r"db: file is not a database"):
        SqliteStore(tmp_path / "db")
    with pytest.raises(StartError, match="cannot be opened: No such file or directory"):
        SqliteStore(tmp_path / "absent" / "db")


def test_the_file_is_private_and_durable(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "db")
    assert (tmp_path / "db").stat().st_mode & 0o777 == 0o600
    with store._writer.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 5000
