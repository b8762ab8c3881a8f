"""Copies of the state: complete while it is written to, checked, and put back without a trick played on gateways."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import msgspec
import pytest
from control_kit import NOW, seeded
from test_schema import first_release

from serving import processes
from serving.cli import main
from serving.control.backup import backup, inspect, restore, seen_lease
from serving.control.database import Database
from serving.control.lease import StoreError
from serving.control.store import SqliteStore
from serving.core.commands import AuditDraft
from serving.errors import StartError
from serving.paths import Paths

POSTGRES = "postgresql://u:s3cret@db/state"


def draft(reason: str) -> AuditDraft:
    return AuditDraft(NOW, "ann", "kill", "moderation", None, reason, {}, {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A state directory whose database holds three rows and lease 1."""
    (tmp_path / "state").mkdir()
    store = SqliteStore(tmp_path / "state" / "canarium.db")
    store.acquire()
    store.write(seeded(), [draft("one"), draft("two"), draft("three")])
    store.close()
    return tmp_path / "state"


def database(folder: Path) -> Database:
    return Database.of("sqlite", folder, {})


def put_back(folder: Path, source: Path, where: Database | None = None) -> str:
    return restore(where or database(folder), source, folder, actor="cli:ann", reason="lost", now_ns=NOW).aside


# ---------------------------------------------------------------- copies


def test_a_copy_is_one_private_file_with_the_whole_trail(folder: Path, tmp_path: Path) -> None:
    copy = backup(database(folder), tmp_path / "copy")
    assert (copy.entries, copy.path) == (3, str(tmp_path / "copy"))
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "state"]
    assert inspect(tmp_path / "copy") == copy
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "state"]  # looking leaves nothing behind


def test_a_database_that_is_written_to_is_copied_at_one_moment(folder: Path, tmp_path: Path) -> None:
    store = SqliteStore(folder / "canarium.db")
    state = store.acquire()
    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(lambda: [store.write(state, [draft(str(number))]) for number in range(150)])
        copies = []
        while not writing.done():
            copies.append(backup(database(folder), tmp_path / f"copy{len(copies)}"))
        writing.result()
    assert len(copies) > 1  # each of them was verified
    assert store.verify().entries == 153
    store.close()


def test_nothing_is_written_over(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").write_text("mine")
    with pytest.raises(FileExistsError):
        backup(database(folder), tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "mine"


def test_a_trail_that_was_altered_is_neither_kept_nor_put_back(folder: Path, tmp_path: Path) -> None:
    backup(database(folder), tmp_path / "copy")
    for path in (folder / "canarium.db", tmp_path / "copy"):
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE audit SET actor = 'eve' WHERE seq = 2")
    with pytest.raises(StoreError, match="its audit trail was altered: entry 2 does not match"):
        backup(database(folder), tmp_path / "copy2")
    with pytest.raises(StoreError, match="its audit trail was altered: entry 2 does not match"):
        put_back(folder, tmp_path / "copy")
    assert not (tmp_path / "copy2").exists()


# ---------------------------------------------------------------- the way back


def test_a_copy_is_put_back_and_the_trail_tells_of_it(folder: Path, tmp_path: Path) -> None:
    backup(database(folder), tmp_path / "copy")
    store = SqliteStore(folder / "canarium.db")
    store.write(store.acquire(), [draft("lost by the restore")])
    store.close()

    aside = put_back(folder, tmp_path / "copy")
    store = SqliteStore(folder / "canarium.db")
    last, *earlier = store.audit(None, 9)
    assert [row.reason for row in earlier] == ["three", "two", "one"]
    assert (last.action, last.actor, last.reason, last.model) == ("state-restored", "cli:ann", "lost", "*")
    assert (last.before["entries"], last.after["entries"]) == (4, 3)
    assert store.verify().ok
    assert store.acquire().tables == seeded().tables
    assert inspect(Path(aside)).entries == 4
    store.close()


def test_gateways_take_what_comes_after_a_restore(folder: Path, tmp_path: Path) -> None:
    backup(database(folder), tmp_path / "copy")
    paths = Paths.of(folder)
    paths.create()
    seen = msgspec.structs.replace(seeded(), lease=41).snapshot()
    paths.snapshot_file.write_bytes(msgspec.json.encode(seen))
    assert seen_lease(paths.snapshot_file) == 41
    put_back(folder, tmp_path / "copy")
    assert SqliteStore(folder / "canarium.db").acquire().lease > 41


def test_a_lost_database_is_replaced_by_a_copy_of_the_first_release(folder: Path, tmp_path: Path) -> None:
    first_release(tmp_path / "old")
    (folder / "canarium.db").unlink()
    assert put_back(folder, tmp_path / "old") == ""
    store = SqliteStore(folder / "canarium.db")
    assert [row.action for row in store.audit(None, 9)] == ["state-restored", "kill"]
    store.close()


def test_a_damaged_database_can_be_replaced(folder: Path, tmp_path: Path) -> None:
    backup(database(folder), tmp_path / "copy")
    (folder / "canarium.db").write_bytes(b"not a database" * 999)
    (folder / "canarium.db-wal").write_bytes(b"nor this")
    aside = put_back(folder, tmp_path / "copy")
    assert Path(aside).read_bytes().startswith(b"not a database")
    assert Path(f"{aside}-wal").read_bytes() == b"nor this"
    store = SqliteStore(folder / "canarium.db")
    assert store.verify().entries == 4
    store.close()


@pytest.mark.parametrize("content", [b"", b"not a database" * 999], ids=["empty", "other"])
def test_what_is_no_copy_is_refused_and_changes_nothing(folder: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "copy").write_bytes(content)
    before = (folder / "canarium.db").read_bytes()
    with pytest.raises((StoreError, StartError), match=r"copy(: file is not a database| is no state database)"):
        put_back(folder, tmp_path / "copy")
    assert (folder / "canarium.db").read_bytes() == before


def test_a_running_instance_is_not_touched(folder: Path, tmp_path: Path) -> None:
    backup(database(folder), tmp_path / "copy")
    paths = Paths.of(folder)
    paths.create()
    lock = processes.InstanceLock(paths.lock_file)
    assert lock.acquire()
    with pytest.raises(StartError, match="is in use; `canarium down` ends what runs there"):
        put_back(folder, tmp_path / "copy")
    lock.release()
    put_back(folder, tmp_path / "copy")


def test_the_state_of_a_control_plane_that_no_up_started_is_not_touched(folder: Path, tmp_path: Path) -> None:
    backup(database(folder), tmp_path / "copy")
    paths = Paths.of(folder)
    paths.create()
    before = (folder / "canarium.db").read_bytes()
    control = processes.InstanceLock(paths.control_lock)
    assert control.acquire()
    with pytest.raises(StartError, match=r"in use by a control plane \(process \d+\); end it first"):
        put_back(folder, tmp_path / "copy")
    assert (folder / "canarium.db").read_bytes() == before
    control.release()
    put_back(folder, tmp_path / "copy")


def test_what_root_puts_back_belongs_to_the_owner_of_the_directory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup(database(folder), tmp_path / "copy")
    given: dict[str, tuple[int, int]] = {}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", lambda path, *owner: given.update({Path(path).name: owner}))
    put_back(folder, tmp_path / "copy")
    owner = folder.stat()
    assert {"canarium.db", "run", "up.lock", "control.lock"} <= set(given)
    assert set(given.values()) == {(owner.st_uid, owner.st_gid)}


def test_for_postgresql_its_own_commands_are_named_without_the_password(folder: Path, tmp_path: Path) -> None:
    where = Database.of("sqlite", folder, {"CANARIUM_DATABASE_URL": POSTGRES})
    with pytest.raises(StoreError, match=r"pg_dump --format=custom --file=\S+/copy postgresql://u@db/state$"):
        backup(where, tmp_path / "copy")
    with pytest.raises(StoreError, match=r"pg_restore --clean --if-exists --dbname=postgresql://u@db/state \S+/copy$"):
        put_back(folder, tmp_path / "copy", where)


# ---------------------------------------------------------------- the commands


def test_backup_and_restore_by_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = str(tmp_path / "copy")
    assert main(["state", "backup", copy, "--state-dir", str(folder)]) == 0
    assert f"{copy}: 3 audit entries, verified" in capsys.readouterr().out
    assert main(["state", "backup", copy, "--state-dir", str(folder)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert main(["state", "restore", copy, "--state-dir", str(folder), "--reason", "disk", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["entries"] == 4
    assert Path(answer["aside"]).exists()
    assert main(["state", "restore", copy, "--state-dir", str(folder), "--reason", " "]) == 2


@pytest.fixture
def exported(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Path]:
    """What `canarium audit export` prints of a server that gives two rows a page."""
    store = SqliteStore(folder / "canarium.db")
    rows = msgspec.to_builtins(store.audit(None, 9, after=0))
    store.close()

    def answer(request: httpx.Request) -> httpx.Response:
        after = int(request.url.params["after"])
        return httpx.Response(200, json={"entries": [row for row in rows if row["seq"] > after][:2]})

    assert main(["audit", "export"], transport=httpx.MockTransport(answer)) == 0
    path = tmp_path / "audit.jsonl"
    path.write_text(capsys.readouterr().out)
    return path


def test_an_export_holds_every_row_and_verifies_without_a_server(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [json.loads(line)["reason"] for line in exported.read_text().splitlines()] == ["one", "two", "three"]
    assert main(["audit", "verify", "--from", str(exported)]) == 0
    assert capsys.readouterr().out == "the audit log is whole: 3 entries\n"
    exported.write_text(exported.read_text().replace('"two"', '"2"'))
    assert main(["audit", "verify", "--from", str(exported)]) == 1
    assert "entry 2 does not match" in capsys.readouterr().err
    exported.write_text("{}\n")
    assert main(["audit", "verify", "--from", str(exported)]) == 1
    assert "line 1: is no audit row" in capsys.readouterr().err
    assert main(["audit", "moderation", "--from", str(exported)]) == 2
