"""Acting on a trip: the word above everything that was cleared, the control plane told with evidence, once."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from monitoring.actuate import Actuator
from monitoring.guard import Trip
from serving.clock import FakeClock
from serving.contract import ControlWord, Latch, Snapshot, slot_key


def trip(
    action: str = "rollback", guard: str = "errors", since: int = 4, model: str = "m", kill_cleared: int = 0
) -> Trip:
    return Trip(
        model, "int8", guard, action, (since, 0, kill_cleared, 0), "int8 fails", {"events": 3}, 900_000_000, 10**18
    )


class Bench:
    def __init__(self, folder: Path, snapshot: Snapshot | None = None, status: int = 200) -> None:
        self.path = folder / "word"
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self.snapshot, self.status = snapshot, status
        client = httpx.AsyncClient(base_url="http://control", transport=httpx.MockTransport(self._answer))
        self.actuator = Actuator(
            FakeClock(), client, lambda: ControlWord.open(self.path), lambda: self.snapshot, "test"
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.posts.append((request.url.path, json.loads(request.content)))
        return httpx.Response(self.status, json={})

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    def latch(self, model: str, variant: str = "*") -> Latch | None:
        return ControlWord.open(self.path).latch(slot_key(model, variant))


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        (None, Latch(1, 0)),
        (Latch(5, 5), Latch(6, 0)),  # the word was made anew: a seq that was cleared would not hold
        (Latch(5, 2), Latch(5, 0)),  # in force already: the same kill
    ],
)
async def test_the_word_is_above_what_was_cleared(tmp_path: Path, published: Latch | None, expected: Latch) -> None:
    snapshot = Snapshot(1, 1, {}, kills={"m": published} if published else {})
    bench = Bench(tmp_path, snapshot)
    assert bench.actuator.submit(trip("kill", kill_cleared=published.cleared if published else 0))
    assert bench.latch("m") == expected  # before the control plane has heard of it
    assert bench.posts == []
    await bench.settle()
    ((path, body),) = bench.posts
    assert path == "/admin/v1/models/m:kill"
    assert body["kill_seq"] == expected.seq
    assert bench.actuator.waiting == 0


async def test_guards_that_trip_together_act_once_and_a_new_arming_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.actuator.submit(trip(guard="errors"))
    assert not bench.actuator.submit(trip(guard="latency"))
    await bench.settle()
    assert bench.actuator.submit(trip(since=9))
    await bench.settle()
    assert [body["evidence"]["arming"][0] for _, body in bench.posts] == [4, 9]
    evidence = bench.posts[0][1]["evidence"]
    assert (evidence["guard"], evidence["word_seq"], evidence["statistic"]) == ("errors", 1, {"events": 3})
    assert bench.latch("m", "int8") == Latch(1, 0)
    assert bench.latch("m") == Latch()


@pytest.mark.parametrize("status", [404, 409])
async def test_nothing_left_to_do_is_an_answer(tmp_path: Path, status: int) -> None:
    bench = Bench(tmp_path, status=status)
    bench.actuator.submit(trip())
    await bench.settle()
    assert (bench.actuator.waiting, bench.actuator.failures) == (0, 0)


async def test_a_restarted_monitor_goes_on_and_does_not_act_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.actuator.submit(trip())
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(bench.actuator.state()))  # before it was acknowledged
    again = Bench(tmp_path)
    again.actuator.load(stored)
    assert again.actuator.waiting == 1
    again.actuator.resume()
    await again.settle()
    assert len(again.posts) == 1
    assert again.actuator.waiting == 0
    assert not again.actuator.submit(trip())
    assert again.latch("m", "int8") == Latch(1, 0)
    await bench.actuator.close()


async def test_without_a_word_the_control_plane_is_told_all_the_same(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "absent")
    bench.actuator.submit(trip())
    for _ in range(3):
        await asyncio.sleep(0)
    assert bench.actuator.waiting == 1
    await bench.actuator.close()


async def test_what_is_remembered_is_bounded(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for since in range(400):
        bench.actuator.submit(trip(since=since))
        await bench.settle()
    assert len(bench.actuator.actuations) <= 257


@pytest.mark.parametrize("action", ["rollback", "kill"])
async def test_what_is_told_late_does_not_strike_a_newer_arming(tmp_path: Path, action: str) -> None:
    bench = Bench(tmp_path, Snapshot(1, 1, {}), status=503)
    bench.actuator.submit(trip(action))
    await bench.settle()
    assert (len(bench.posts), bench.actuator.waiting) == (1, 1)
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(bench.actuator.state()))
    await bench.actuator.close()

    cleared = {"m": Latch(1, 1)} if action == "kill" else {}
    vetoes = {"m/int8": Latch(1, 1)} if action == "rollback" else {}
    again = Bench(tmp_path, Snapshot(2, 1, {}, cleared, vetoes))
    before = again.latch("m"), again.latch("m", "int8")
    again.actuator.load(stored)
    again.actuator.resume()
    await again.settle()
    assert again.posts == []
    assert again.actuator.waiting == 0
    assert (again.latch("m"), again.latch("m", "int8")) == before


@pytest.mark.parametrize(("model", "path"), [("m", "/admin/v1/models/m:kill"), ("*", "/admin/v1/kill-switch")])
async def test_a_kill_that_only_this_nodes_word_knows_is_told_until_it_is_published(
    tmp_path: Path, model: str, path: str
) -> None:
    bench = Bench(tmp_path, Snapshot(1, 1, {}, {model: Latch(1, 1)}))
    ControlWord.open(bench.path).latch_on(slot_key(model), at_least=2)
    await bench.actuator.report_kills(["m"])
    assert bench.posts == []  # the control plane may have written it, and be about to publish it
    bench.status = 503
    with pytest.raises(httpx.HTTPStatusError):
        await bench.actuator.report_kills(["m"])
    bench.status = 200
    await bench.actuator.report_kills(["m"])
    assert [(where, body["kill_seq"]) for where, body in bench.posts] == [(path, 2)] * 2
    for published in (Latch(2, 1), Latch(2, 2)):  # taken over, and re-armed, of which this word hears nothing
        bench.snapshot = Snapshot(2, 1, {}, {model: published})
        for _ in range(2):
            await bench.actuator.report_kills(["m"])
    assert len(bench.posts) == 2


async def test_a_kill_by_a_guard_is_told_by_that_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Snapshot(1, 1, {}), status=503)
    bench.actuator.submit(trip("kill"))
    await bench.settle()
    for _ in range(3):
        await bench.actuator.report_kills(["m"])
    assert [body["reason"] for _, body in bench.posts] == ["int8 fails"]
    await bench.actuator.close()


async def test_the_time_of_the_last_heartbeat_is_that_of_the_word(tmp_path: Path) -> None:
    clock, broken = FakeClock(), tmp_path / "absent" / "word"
    path = broken
    actuator = Actuator(clock, httpx.AsyncClient(), lambda: ControlWord.open(path), lambda: None, "test")
    started = clock.wall_ns()
    clock.advance(30)
    with pytest.raises(OSError, match="No such file"):
        actuator.beat()
    assert actuator.last_beat_ns == started
    path = tmp_path / "word"
    actuator.beat()
    assert actuator.last_beat_ns == clock.wall_ns()


async def test_no_fault_of_the_client_ends_the_attempts(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bad = msgspec.structs.replace(trip(), statistic={"events": float("nan")})  # not JSON
    bench.actuator.submit(bad)
    await bench.settle()
    assert (bench.actuator.waiting, bench.actuator.failures) == (1, 1)
    await bench.actuator.close()
