"""The store: one transaction for state and trail, fenced by the lease."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from control_kit import seeded

from serving.control.store import SqliteStore, StaleLease
from serving.core.commands import AuditDraft
from serving.errors import StartError


def draft(reason: str = "r", model: str = "m") -> AuditDraft:
    return AuditDraft(1_700_000_000_123_000_000, "ann", "traffic", model, None, reason, {}, {"w": 0.1})


def test_each_start_takes_a_higher_lease_and_the_earlier_one_can_write_no_more(tmp_path: Path) -> None:
    first, second = SqliteStore(tmp_path / "db"), SqliteStore(tmp_path / "db")
    assert first.acquire().lease == 1
    first.write(seeded(), [draft()])
    first.check()
    assert second.acquire().lease == 2
    with pytest.raises(StaleLease, match="lease 2, this one holds 1"):
        first.write(seeded(), [draft()])
    with pytest.raises(StaleLease):
        first.check()
    assert len(second.audit(None, 10, None)) == 1


def test_state_and_rows_are_saved_together_and_read_back(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "db")
    store.acquire()
    written = store.write(seeded(), [draft("one"), draft("two", "*"), draft("three", "other")])
    assert [row.seq for row in written] == [1, 2, 3]
    store.close()
    store = SqliteStore(tmp_path / "db")
    assert store.acquire().tables == seeded().tables
    assert store.audit(None, 2, None) == written[:0:-1]
    assert [row.reason for row in store.audit("m", 10, None)] == ["two", "one"]
    assert [row.reason for row in store.audit(None, 10, 2)] == ["one"]
    assert written[0].at == "2023-11-14T22:13:20.123Z"


def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    SqliteStore(tmp_path / "db").close()
    with sqlite3.connect(tmp_path / "db") as connection:
        connection.execute("UPDATE schema_version SET version = 9")
    with pytest.raises(StartError, match="schema version 9 and this Canarium knows 1"):
        SqliteStore(tmp_path / "db")


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
