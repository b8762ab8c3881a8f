"""What a caller is owed while its request waits or runs: an answer by its deadline, and no work after it left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from serving.control.auth import Auth
from serving.errors import ErrorKind, RequestError
from serving.gateway.budget import InflightBudget
from serving.gateway.http import HttpGateway
from serving.gateway.variants import VariantPlane
from serving.transport.http1 import Http1Server
from tests.support.gateway import InProcessGateway, published
from tests.support.http1_kit import Peer, post


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[InProcessGateway]:
    """`hangs` works for three seconds on a text with "boom" in it, then its run is ended."""
    async with published(tmp_path, {"hangs": "hangs?"}, hang_timeout_s=3.0) as running:
        yield running


def plane_of(gateway: InProcessGateway) -> VariantPlane:
    plane = gateway.plane.planes.get("tiny", "hangs")
    assert plane is not None
    return plane


async def until(what: Any) -> None:
    async with asyncio.timeout(60):
        while not what():  # noqa: ASYNC110  what a session's thread changes sets no event
            await asyncio.sleep(0)


async def test_a_deadline_that_passes_while_the_batch_runs_is_kept_and_the_late_answer_discarded(
    gateway: InProcessGateway,
) -> None:
    plane = plane_of(gateway)
    began = gateway.clock.monotonic_ns()
    with pytest.raises(RequestError) as caught:
        await gateway.ask("boom", override="hangs", timeout_ms=500)
    took_ms = (gateway.clock.monotonic_ns() - began) / 1e6
    assert caught.value.kind is ErrorKind.DEADLINE
    assert caught.value.http_status == 504
    assert took_ms >= 500
    assert plane.batcher._pace._running  # it did not wait for the end of the batch
    assert plane.batcher.queue_rows == 0
    await until(lambda: plane.ready and not plane.batcher._pace._running)
    assert (await gateway.ask("ham", override="hangs")).variant == "hangs"
    assert plane.stats.batches == {1: (1, plane.stats.batches[1][1])}  # the late answer counts nowhere


async def test_work_that_expired_in_the_queue_is_never_run(gateway: InProcessGateway) -> None:
    plane = plane_of(gateway)
    running = asyncio.create_task(gateway.ask("boom", override="hangs", timeout_ms=20_000))
    await until(lambda: plane.batcher._pace._running)
    with pytest.raises(RequestError) as caught:
        await gateway.ask("ham", override="hangs", timeout_ms=500)
    assert caught.value.kind is ErrorKind.DEADLINE
    assert plane.batcher.queue_rows == 0
    assert plane.batcher.expired == 1
    await asyncio.gather(running, return_exceptions=True)
    await until(lambda: plane.ready)
    assert not plane.stats.batches


async def test_queued_work_of_a_client_that_disconnects_is_dropped_and_counted(gateway: InProcessGateway) -> None:
    plane = plane_of(gateway)
    running = asyncio.create_task(gateway.ask("boom", override="hangs", timeout_ms=20_000))
    await until(lambda: plane.batcher._pace._running)
    budget = InflightBudget(1 << 20)
    app = HttpGateway(gateway.config, gateway.plane, Auth.from_config("none", None), gateway.clock, budget)
    peer = Peer(Http1Server(app))
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["ham"]}
    peer.feed(post(orjson.dumps({"inputs": [tensor]}), "/v2/models/tiny/infer", "x-canarium-variant: hangs"))
    await until(lambda: plane.batcher.queue_rows)
    peer.hang_up()
    await until(lambda: not plane.batcher.queue_rows)
    assert not peer.sent
    assert budget.held == 0
    assert plane.batcher.queue_rows == 0
    assert plane.batcher.dropped_cancelled == 1
    assert gateway.records()[-1]["status"] == 499
    await asyncio.gather(running, return_exceptions=True)
    await until(lambda: plane.ready)
    assert not plane.stats.batches
