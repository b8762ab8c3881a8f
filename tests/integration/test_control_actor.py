"""The control plane as a process of its own would run it: real port, real files, no Ray."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from pathlib import Path

import httpx
import msgspec
import pytest

from serving.config import AuthConfig, Config
from serving.contract import ControlWord, Snapshot, VariantEntry, slot_key
from serving.control.actor import ControlActor, ControlSettings, VariantFacts
from serving.control.backup import backup, restore
from serving.control.database import Database
from serving.control.tokens import Token, add, hashed, remove
from serving.errors import StartError

pytestmark = pytest.mark.integration

WHY = {"reason": "because"}


def settings(folder: Path) -> ControlSettings:
    config = Config.model_validate(
        {
            "apiVersion": "canarium/v1",
            "models": {
                "moderation": {
                    "baseline": "teacher",
                    "variants": {
                        "teacher": {"artifact": "moderation/teacher:1"},
                        "int8": {"artifact": "moderation/int8:1"},
                    },
                    "routing": {"weights": {"int8": 5}},
                }
            },
        }
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    entries = [VariantEntry("teacher", 1, "moderation/teacher:1"), VariantEntry("int8", 2, "moderation/int8:1")]
    return ControlSettings(
        instance="test",
        config=config.model_dump_json(),
        variants={"moderation": {entry.name: VariantFacts(entry) for entry in entries}},
        state_dir=str(folder),
        word_path=str(folder / "control.word"),
        host="127.0.0.1",
        port=port,
        monitor_url="http://127.0.0.1:9",
    )


def client(given: ControlSettings) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://{given.host}:{given.port}", timeout=60, trust_env=False)


async def test_a_kill_over_http_wakes_every_parked_gateway(tmp_path: Path) -> None:
    given = settings(tmp_path)
    actor = ControlActor(given)
    rev = (await actor.ready())["rev"]
    polls = [asyncio.create_task(actor.poll(rev, {"id": f"g{i}", "rev": rev})) for i in range(8)]
    await asyncio.sleep(0.1)
    async with client(given) as api:
        assert len((await api.get("/admin/v1/status")).json()["gateways"]) == 8
        answer = await api.post("/admin/v1/models/moderation:kill", json=WHY)
        assert answer.json() == {"model": "moderation", "kill_seq": 1}
    for encoded in await asyncio.wait_for(asyncio.gather(*polls), 60):
        assert msgspec.json.decode(encoded, type=Snapshot).kills["moderation"].on
    await actor.shutdown()


async def test_the_event_stream_arrives_as_it_happens(tmp_path: Path) -> None:
    given = settings(tmp_path)
    actor = ControlActor(given)
    await actor.ready()
    async with client(given) as api, api.stream("GET", "/admin/v1/events") as stream:
        lines = stream.aiter_lines()
        assert await anext(lines) == "event: snapshot"
        await api.put("/admin/v1/models/moderation/traffic", json={"weights": {"int8": 6}, **WHY})
        async with asyncio.timeout(60):
            assert "event: audit" in [await anext(lines) for _ in range(4)]
        await actor.shutdown()  # ends the stream too


async def test_a_restart_brings_everything_back_and_a_running_one_keeps_its_port(tmp_path: Path) -> None:
    given = settings(tmp_path)
    first = ControlActor(given)
    await first.ready()
    async with client(given) as api:
        await api.post("/admin/v1/models/moderation:rollback", json={"variant": "int8", **WHY})
    second = ControlActor(given)
    with pytest.raises(
        StartError, match=r"server.control_port: 127\.0\.0\.1:\d+ cannot be used: Address already in use"
    ):
        await second.ready()
    await first.shutdown()
    ready = await second.ready()  # the very same actor, tried again
    assert ready["lease"] == 2
    assert ready["differences"][0].startswith("moderation: weights.int8 is 5 in the file and 0 in the store")
    await second.shutdown()


async def test_its_state_is_not_replaced_while_it_runs(tmp_path: Path) -> None:
    """As on a cluster, where no `canarium up` holds the instance's own lock."""
    given, where = settings(tmp_path), Database.of("sqlite", tmp_path, {})
    actor = ControlActor(given)
    await actor.ready()
    backup(where, tmp_path / "copy")
    put_back = partial(restore, where, tmp_path / "copy", tmp_path, actor="ann", reason="lost", now_ns=1)
    with pytest.raises(StartError, match=r"in use by a control plane \(process \d+\)"):
        put_back()
    await actor.shutdown()
    assert put_back().entries > 0


async def test_tokens_are_made_and_revoked_while_it_runs(tmp_path: Path) -> None:
    file, given = tmp_path / "tokens", settings(tmp_path)
    add(file, Token("root", "admin", hashed("r00t")))
    config = Config.model_validate_json(given.config)
    guarded = config.model_copy(update={"auth": AuthConfig(mode="tokens", tokens_file=str(file))})
    given = msgspec.structs.replace(given, config=guarded.model_dump_json())
    actor = ControlActor(given)
    await actor.ready()

    async def status(token: str) -> int:
        return (await api.get("/admin/v1/status", headers={"authorization": f"Bearer {token}"})).status_code

    async def becomes(token: str, wanted: int) -> None:
        for _ in range(240):
            if await status(token) == wanted:
                return
            await asyncio.sleep(0.25)
        raise AssertionError(f"the answer is not {wanted} after a minute")

    async with client(given) as api:
        assert (await status("r00t"), await status("ev3")) == (200, 401)
        await asyncio.to_thread(add, file, Token("eve", "viewer", hashed("ev3")))
        await becomes("ev3", 200)
        await asyncio.to_thread(remove, file, "eve")
        await becomes("ev3", 401)
        for _ in range(10):
            await status("wrong")
        refused = await api.get("/admin/v1/status", headers={"authorization": "Bearer wrong"})
        assert (refused.status_code, 1 <= int(refused.headers["retry-after"]) <= 60) == (429, True)
        assert await status("r00t") == 200
    await actor.shutdown()


async def test_a_running_control_plane_notices_the_word_by_itself(tmp_path: Path) -> None:
    given = settings(tmp_path)
    actor = ControlActor(given)
    rev = (await actor.ready())["rev"]
    ControlWord.open(given.word_path).latch_on(slot_key("moderation", "int8"))
    snapshot = msgspec.json.decode(await actor.poll(rev, {"id": "g"}, 60), type=Snapshot)
    assert snapshot.tables["moderation"].candidates == {}
    await actor.shutdown()
