"""Who is blamed when there was too little time, and what a burst of long texts holds up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from batcher_kit import TimedLoop, simulate

from serving.contract import AGG_OFFSET, C_LIVE_ERROR, CELLS, Cause, Flag, Reason
from serving.errors import ErrorKind, RequestError
from serving.gateway import offload
from serving.gateway.kept import KeptSnapshot
from serving.gateway.offload import offloaded
from serving.gateway.variants import Fault, VariantPlane
from tests.support.gateway import InProcessGateway, labels

Start = Callable[..., Any]
DEFAULT_MS, SHORT_MS = 20_000, 6_000


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    running: list[InProcessGateway] = []

    async def make(weight: float = 100, **routing: Any) -> InProcessGateway:
        # Deadlines so long that it does not matter how busy the machine is that runs the tests.
        queue = {"default_timeout_ms": DEFAULT_MS}
        running.append(InProcessGateway(tmp_path, {"candidate": ""}, **{"queue": queue, **routing}))
        await running[-1].publish({"candidate": weight})
        return running[-1]

    yield make
    for gateway in running:
        await gateway.plane.close()


@pytest.fixture
def full() -> Iterator[threading.Event]:
    """All threads for the contents of requests are busy until the event is set."""
    free, before = threading.Event(), offload._threads
    offload._threads = ThreadPoolExecutor(1)
    offload._threads.submit(free.wait, 30)
    yield free
    free.set()
    offload._threads.shutdown()
    offload._threads = before


def plane(gateway: InProcessGateway, name: str) -> VariantPlane:
    found = gateway.plane.planes.get("tiny", name)
    assert found is not None
    return found


def times_out(gateway: InProcessGateway, name: str) -> None:
    async def run(*_: object, **__: object) -> Any:
        raise Fault(name, Cause.TIMEOUT, f"{name} did not answer within the deadline")

    plane(gateway, name).run = run  # type: ignore[method-assign]


def is_busy(gateway: InProcessGateway, name: str, wait_ms: int) -> None:
    """A variant behind whose work a request is to wait for so long."""
    pace = plane(gateway, name).batcher._pace
    for _ in range(3):
        pace.measured(1, wait_ms * 1_000_000, full=True)
    pace.started(1, 1, gateway.clock.monotonic_ns())


def judged(gateway: InProcessGateway) -> bool:
    return bool(gateway.records()[-1]["flags"] & Flag.LIVE)


async def test_a_candidate_is_not_blamed_that_could_not_begin_in_its_half_of_a_short_deadline(start: Start) -> None:
    gateway = await start(fallback={"budget_ms": 3_000})
    is_busy(gateway, "candidate", wait_ms=4_000)
    assert (await gateway.ask("ham", timeout_ms=SHORT_MS)).reason == "fallback:overloaded"
    assert not judged(gateway)


async def test_but_for_a_queue_that_nobody_can_wait_for(start: Start) -> None:
    gateway = await start()
    is_busy(gateway, "candidate", wait_ms=50_000)
    assert (await gateway.ask("ham")).reason == "fallback:overloaded"
    assert judged(gateway)


@pytest.mark.parametrize(("timeout_ms", "blamed"), [(SHORT_MS, False), (DEFAULT_MS, True)])
async def test_a_timeout_that_is_not_answered_by_the_baseline_is_judged_likewise(
    start: Start, timeout_ms: int, blamed: bool
) -> None:
    gateway = await start(fallback={"on": ["error"]})
    times_out(gateway, "candidate")
    with pytest.raises(RequestError) as caught:
        await gateway.ask("ham", timeout_ms=timeout_ms)
    assert caught.value.kind is ErrorKind.DEADLINE
    assert judged(gateway) == blamed


@pytest.mark.parametrize(("timeout_ms", "blamed"), [(1, False), (20, False), (100, True)])
async def test_a_default_deadline_under_the_budget_is_shared_like_any_other(
    start: Start, timeout_ms: int, blamed: bool
) -> None:
    gateway = await start(queue={"default_timeout_ms": 100}, fallback={"budget_ms": 200})
    times_out(gateway, "candidate")
    clock, now = gateway.clock, gateway.clock.monotonic_ns()
    clock.monotonic_ns = lambda: now  # type: ignore[method-assign]  # of 100 ms a busy machine would take its part
    await gateway.ask("ham", timeout_ms=timeout_ms)
    assert judged(gateway) == blamed


@pytest.mark.parametrize("weight", [0, 100])
@pytest.mark.parametrize(("timeout_ms", "blamed"), [(SHORT_MS, False), (DEFAULT_MS, True)])
async def test_baseline_and_candidate_are_judged_by_the_same_rule(
    start: Start, weight: float, timeout_ms: int, blamed: bool
) -> None:
    gateway = await start(weight)
    for name in ("teacher", "candidate"):
        times_out(gateway, name)
    with pytest.raises(RequestError):
        await gateway.ask("ham", timeout_ms=timeout_ms)
    assert judged(gateway) == blamed
    routed = "candidate" if weight else "teacher"
    series = gateway.recorder.series("tiny", routed)
    assert gateway.records()[-1]["series"] == series
    assert gateway.spool._cells[AGG_OFFSET // 8 + series * CELLS + C_LIVE_ERROR] == 1  # a service level is kept or not


# ---------------------------------------------------------------- long texts


def test_what_cannot_be_begun_in_time_is_given_up_then_and_never_done(full: threading.Event) -> None:
    done: list[str] = []

    async def main(loop: TimedLoop) -> None:
        began = loop.time()
        with pytest.raises(TimeoutError):
            await offloaded(lambda: done.append("late"), 0.1)
        assert loop.time() - began == pytest.approx(0.1)

    simulate(main)
    full.set()
    offload._threads.shutdown()
    assert done == []


async def test_a_request_whose_text_cannot_be_tokenized_in_time_fails_then_and_blames_nobody(
    start: Start, full: threading.Event
) -> None:
    gateway = await start()
    with pytest.raises(RequestError) as caught:
        await gateway.ask(*["ham"] * 9, timeout_ms=1)
    assert caught.value.kind is ErrorKind.DEADLINE
    record = gateway.records()[-1]
    assert (record["cause"], record["reason"]) == (Cause.TIMEOUT, Reason.CANARY)
    assert not judged(gateway)


async def test_a_burst_of_long_texts_does_not_keep_a_gateway_from_its_tables(
    start: Start, full: threading.Event
) -> None:
    gateway = await start()
    waiting = asyncio.ensure_future(gateway.ask(*["ham"] * 9, timeout_ms=60_000))
    for _ in range(10):
        await asyncio.sleep(0)
    table = gateway.snapshot.tables["tiny"]
    entry = msgspec.structs.replace(table.variants["candidate"], max_batch=2)  # is opened anew, in a thread
    moved = msgspec.structs.replace(table, variants={**table.variants, "candidate": entry}, epoch=table.epoch + 1)
    gateway.snapshot = msgspec.structs.replace(gateway.snapshot, tables={"tiny": moved})
    await gateway.publish({"candidate": 0})
    assert (await gateway.ask("spam")).variant == "teacher"
    full.set()
    assert labels(await waiting) == ["ham"] * 9


async def test_a_snapshot_is_kept_beside_what_follows_and_the_newest_is_the_last(tmp_path: Path) -> None:
    free, written = threading.Event(), list[bytes]()

    def write(path: Path, encoded: bytes) -> None:
        free.wait(30)
        written.append(encoded)

    kept = KeptSnapshot(tmp_path / "snapshot.json", write)
    for encoded in (b"1", b"2", b"3"):
        kept.keep(encoded)
        await asyncio.sleep(0)
    assert not written
    free.set()
    await kept.written()
    assert written == [b"1", b"3"]


async def test_a_baseline_is_replaced_only_when_those_are_answered_whose_text_is_being_tokenized(
    start: Start, full: threading.Event
) -> None:
    gateway = await start(0)
    waiting = asyncio.ensure_future(gateway.ask(*["spam"] * 9, timeout_ms=60_000))
    for _ in range(10):
        await asyncio.sleep(0)
    table = gateway.snapshot.tables["tiny"]
    entry = msgspec.structs.replace(table.variants["teacher"], max_batch=2)
    moved = msgspec.structs.replace(table, variants={**table.variants, "teacher": entry}, epoch=table.epoch + 1)
    gateway.snapshot = msgspec.structs.replace(gateway.snapshot, tables={"tiny": moved})
    await gateway.publish()
    for _ in range(10):
        await asyncio.sleep(0)
    full.set()
    assert labels(await waiting) == ["spam"] * 9
    await gateway.plane.planes.closed()
