"""What PostgreSQL alone can do to us: refuse, restart, wait, and be started upon by many at once."""

from __future__ import annotations

import asyncio
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from control_kit import seeded
from test_control_actor import client, settings

from serving.contract import Snapshot
from serving.control import lease
from serving.control.actor import ControlActor
from serving.control.database import CONNECT_TIMEOUT_S, STATEMENT_TIMEOUT_S, Database
from serving.control.schema import revisions
from serving.control.store import SqlStore, StoreError
from serving.core.commands import AuditDraft
from serving.errors import StartError
from tests.support.postgres import PASSWORD, PostgresServer

pytestmark = pytest.mark.integration

ROW = AuditDraft(0, "ann", "kill", "m", None, "because", {}, {})


def test_many_that_start_at_once_make_one_schema(postgres: PostgresServer, tmp_path: Path) -> None:
    database = Database.of(postgres.url("t-many"), tmp_path, {})
    with ThreadPoolExecutor(8) as threads:
        stores = list(threads.map(lambda number: SqlStore(database, f"holder {number}"), range(8)))
    assert {store.leader().lease for store in stores} == {0}
    with stores[0]._reader.connect() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all() == [revisions()[0]]
    for store in stores:
        store.close()


def test_a_restart_of_the_server_is_survived(postgres: PostgresServer, tmp_path: Path) -> None:
    store = postgres.store(tmp_path, "a")
    store.acquire()
    store.write(seeded(), [ROW])
    postgres.stop()
    try:
        with pytest.raises(StoreError) as caught:
            store.write(seeded(), [ROW])
        assert str(caught.value).startswith("the state database postgresql+psycopg://canarium:***@/postgres")
        assert "\n" not in str(caught.value)
        assert "pass" not in str(caught.value)
        with pytest.raises(StoreError):
            store.audit(None, 1)
    finally:
        postgres.start()
    store.renew()
    store.write(seeded(), [ROW])
    assert (store.verify().ok, store.verify().entries) == (True, 2)
    store.close()


def test_a_wrong_password_is_refused_and_not_repeated(postgres: PostgresServer, tmp_path: Path) -> None:
    database = Database.of(postgres.url("t-refused", "wr0ng"), tmp_path, {})
    with pytest.raises(StartError, match='password authentication failed for user "canarium"') as caught:
        SqlStore(database, "a")
    assert "wr0ng" not in str(caught.value)
    assert caught.value.__cause__ is None or "wr0ng" not in str(caught.value.__cause__)


def test_doctor_says_whether_it_answers(postgres: PostgresServer, tmp_path: Path) -> None:
    Database.of(postgres.url("t-probe"), tmp_path, {}).probe()
    with pytest.raises(
        StartError, match=r"^postgresql\+psycopg://canarium:\*\*\*@/t-absent\S+: .*does not exist"
    ) as caught:
        Database.of(postgres.url("t-probe").replace("/postgres?", "/t-absent?"), tmp_path, {}).probe()
    assert "pass" not in str(caught.value)


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(StartError, match="timeout"):
            SqlStore(Database.of(f"postgresql://u@127.0.0.1:{port}/d", tmp_path, {}), "a")
        assert time.monotonic() - began < 3 * CONNECT_TIMEOUT_S


def test_the_password_can_come_from_a_password_file(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = tmp_path / "pgpass"
    secrets.write_text(f"*:*:*:canarium:{PASSWORD}\n")
    secrets.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(secrets))
    store = SqlStore(Database.of(postgres.url("t-passfile", password=""), tmp_path, {}), "a")
    assert store.acquire().lease == 1
    store.close()


def test_a_lock_that_somebody_else_holds_is_not_waited_for_without_end(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    store = postgres.store(tmp_path, "a")
    store.acquire()
    with store._database.writer().connect() as other:
        other.exec_driver_sql("SELECT * FROM state FOR UPDATE")
        began = time.monotonic()
        with pytest.raises(StoreError, match="canceling statement due to"):
            store.write(seeded(), [ROW])
        assert STATEMENT_TIMEOUT_S - 1 < time.monotonic() - began < STATEMENT_TIMEOUT_S + 5
        assert store.verify().entries == 0  # readers are not held up
    store.write(seeded(), [ROW])
    store.close()


async def test_a_second_control_plane_waits_for_the_first_and_then_says_who_leads(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARIUM_DATABASE_URL", postgres.url("t-two"))
    monkeypatch.setattr(lease, "WAIT_S", 2.0)

    def start(name: str) -> ControlActor:
        (tmp_path / name).mkdir()
        return ControlActor(msgspec.structs.replace(settings(tmp_path / name), instance=name))

    first = start("one")
    assert (await first.ready())["lease"] == 1
    second = start("two")
    with pytest.raises(StartError, match=r"another control plane \(\S+/one, lease 1\) leads .* end it first"):
        await second.ready()
    await first.shutdown()
    assert (await second.ready())["lease"] == 2  # tried again: at once
    await second.shutdown()


async def test_a_kill_works_while_the_database_is_down_and_is_saved_when_it_is_back(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARIUM_DATABASE_URL", postgres.url("t-down"))
    given = settings(tmp_path)
    actor = ControlActor(given)
    rev = (await actor.ready())["rev"]
    one, why = "/admin/v1/models/moderation", {"reason": "because"}
    async with client(given) as api:
        await asyncio.to_thread(postgres.stop)
        try:
            refused = await api.put(f"{one}/traffic", json={"weights": {"int8": 7}, **why})
            assert (refused.status_code, "nothing was changed" in refused.text) == (503, True)
            began = time.monotonic()
            assert (await api.post(f"{one}:kill", json=why)).status_code == 200
            assert time.monotonic() - began < 4
            assert msgspec.json.decode(await actor.poll(rev, {"id": "g"}, 5), type=Snapshot).kills["moderation"].on
            control = (await api.get("/admin/v1/status")).json()["control"]
            assert control["database"].startswith("error: the state database postgresql+psycopg://canarium:***@")
        finally:
            await asyncio.to_thread(postgres.start)
        for _ in range(60):
            control = (await api.get("/admin/v1/status")).json()["control"]
            if (control["database"], control["audit_rows_pending"]) == ("ok", 0):
                break
            await asyncio.sleep(0.5)
        rows = (await api.get("/admin/v1/audit", params={"after": 0})).json()["entries"]
        assert [row["action"] for row in rows] == ["model-added", "kill"]
        assert (await api.get("/admin/v1/audit/verify")).json()["ok"]
    await actor.shutdown()


def test_checking_the_trail_sees_one_moment(postgres: PostgresServer, tmp_path: Path) -> None:
    """Rows that are appended while a check reads page after page belong to the next check."""
    store, checks = postgres.store(tmp_path, "a"), postgres.store(tmp_path, "b")
    store.acquire()
    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(lambda: [store.write(seeded(), [ROW] * 20) for _ in range(60)])
        results = []
        while not writing.done():
            results.append(checks.verify())
        writing.result()
    assert len(results) > 1
    assert all(result.ok for result in results)
    assert checks.verify().entries == 1200
    store.close()
    checks.close()
