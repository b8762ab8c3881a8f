"""Who waits too long is refused at once, and overload costs nobody else its answer."""

from __future__ import annotations

import asyncio
import random

import pytest
from batcher_kit import Doubler, TimedLoop, pause, rig, simulate

from serving.config import parse_config
from serving.core.admission import LEAST, Pace
from serving.errors import ErrorKind, RequestError

MS = 1_000_000


def paced(rows: int, took_ns: int) -> Pace:
    """A pace that is known: of full batches like this one."""
    pace = Pace()
    for _ in range(LEAST):
        pace.measured(rows, took_ns, full=True)
    return pace


def test_an_unknown_pace_promises_no_wait() -> None:
    pace = Pace()
    pace.started(1, 16, 0)
    assert pace.wait_ns(1000, 1, 0) == 0


def test_what_is_ahead_is_queued_rows_and_what_is_left_of_running_batches() -> None:
    pace = paced(4, 8 * MS)
    assert pace.wait_ns(10, 1, 0) == 20 * MS
    assert pace.wait_ns(10, 4, 0) == 5 * MS
    pace.started(7, 4, 100 * MS)
    assert pace.wait_ns(0, 1, 103 * MS) == 5 * MS
    assert pace.wait_ns(0, 1, 200 * MS) == 0  # overdue: nobody knows for how long
    pace.ended(7)
    assert pace.wait_ns(0, 1, 103 * MS) == 0


def test_a_batch_that_was_not_full_may_lower_the_pace_and_never_raises_it() -> None:
    pace = Pace()
    pace.measured(1, 10 * MS, full=False)
    assert not pace.row_ns  # a lone row pays the whole fixed cost of a batch
    pace = paced(32, 32 * MS)
    assert pace.row_ns == MS
    pace.measured(1, 10 * MS, full=False)
    assert pace.row_ns == MS
    pace.measured(8, 4 * MS, full=False)
    assert pace.row_ns < MS
    pace.measured(32, 640 * MS, full=True)
    assert pace.row_ns > MS


def test_capacity_is_that_of_full_batches_and_before_them_a_lower_bound() -> None:
    pace = Pace()
    assert (pace.capacity(2), pace.capacity_at_least(2)) == (0.0, 0.0)
    pace.measured(1, 10 * MS, full=False)
    assert (pace.capacity(2), pace.capacity_at_least(2)) == (0.0, 200.0)
    pace = paced(16, 32 * MS)
    assert pace.capacity(2) == pace.capacity_at_least(2) == 1000.0


def test_one_stalled_batch_hardly_changes_the_pace_and_lasting_slowness_does() -> None:
    pace = paced(8, 8 * MS)
    pace.measured(8, 800 * MS, full=True)
    assert pace.row_ns == pytest.approx(1.2 * MS)
    for _ in range(30):
        pace.measured(8, 40 * MS, full=True)
    assert pace.row_ns == pytest.approx(5 * MS, rel=0.02)


def test_a_stall_before_the_pace_is_known_has_no_light_traffic_refused() -> None:
    async def main(loop: TimedLoop) -> None:
        worker = Doubler(took_s=0.3)
        at = rig(loop, worker, max_batch=8, max_rows=64, max_wait_ms=50)
        for value in range(60):  # 70 a second, which is a tenth of what it can do once the host has woken up
            worker.took_s = 0.3 if value < 1 else 0.1 if value < 25 else 0.01
            at.send(value)
            await pause(1 / 70)
        assert not any(isinstance(outcome, Exception) for outcome in await at.outcomes())
        assert at.batcher.shed == 0
        await at.batcher.close()

    simulate(main)


def test_batches_that_leave_the_rest_to_a_free_worker_have_no_burst_refused() -> None:
    async def main(loop: TimedLoop) -> None:
        workers = Doubler("a", took_s=0.01, row_s=0.0005), Doubler("b", took_s=0.01, row_s=0.0005)
        at = rig(loop, *workers, max_batch=16, max_rows=64, max_wait_ms=50)
        for _ in range(3 * LEAST):  # pairs, of which each worker runs one row
            at.send(1)
            at.send(2)
            await pause(0.05)
        assert {len(batch) for worker in workers for batch in worker.batches} == {1}
        assert at.batcher.capacity == 0  # nobody has seen a full batch
        at.send(0, rows=8)
        at.send(0, rows=8)
        await pause(0)
        for value in range(16):
            at.send(value)
        assert not any(isinstance(outcome, Exception) for outcome in await at.outcomes())
        assert at.batcher.shed == 0
        await at.batcher.close()

    simulate(main)


def test_capacity_is_by_the_workers_own_time_and_a_wait_by_what_a_batch_takes_here() -> None:
    async def main(loop: TimedLoop) -> None:
        worker = Doubler(took_s=0.04)
        worker.ran_ns = 10 * MS  # the rest of the time it runs the batches of three other gateways
        at = rig(loop, worker)
        for value in range(4 * LEAST):
            at.send(value)
        await at.outcomes()
        assert at.batcher.capacity == pytest.approx(400)
        for value in range(12):
            at.send(value)
        await pause(0)
        with pytest.raises(RequestError, match="expected to begin in 120 ms"):
            await at.batcher.submit({"x": worker.one_row}, 1, loop.monotonic_ns() + 100 * MS)
        await at.outcomes()
        await at.batcher.close()

    simulate(main)


def test_a_request_that_would_wait_too_long_is_refused_when_it_comes() -> None:
    async def main(loop: TimedLoop) -> None:
        at = rig(loop, Doubler(took_s=0.04), max_wait_ms=50)
        for value in range(4 * LEAST):  # full batches of four: 10 ms a row
            at.send(value)
        await at.outcomes()
        at.tasks.clear()
        for value in range(4):
            at.send(value)
        await pause(0.001)  # 39 ms of it are left
        for value in range(2):
            at.send(value)
        await pause(0)
        with pytest.raises(RequestError, match="expected to begin in 59 ms, the request can wait 50 ms") as caught:
            await at.send(7)
        at.tasks.pop()
        assert caught.value.kind is ErrorKind.OVERLOADED
        assert caught.value.retry_after_s == 1
        assert at.batcher.shed == 1
        await pause(0.015)
        at.send(8)  # 44 ms: welcome again
        assert not any(isinstance(outcome, Exception) for outcome in await at.outcomes())
        await at.batcher.close()

    simulate(main)


def test_a_deadline_that_cannot_be_met_is_refused_and_shadow_work_delays_no_live_work() -> None:
    async def main(loop: TimedLoop) -> None:
        at = rig(loop, Doubler(took_s=0.04))
        for value in range(4 * LEAST):
            at.send(value)
        await at.outcomes()
        for value in range(8):
            at.send(value, live=False)
        await pause(0)  # four of them run, four wait, behind all live work
        assert (await at.send(1, timeout_s=0.1)).queue_ns == pytest.approx(40e6, abs=1e5)
        for value in range(4):
            at.send(value)
        await pause(0)
        with pytest.raises(RequestError, match="the request can wait 20 ms"):
            await at.send(2, timeout_s=0.03)
        at.tasks.pop()
        await at.outcomes()
        await at.batcher.close()

    simulate(main)


@pytest.mark.parametrize("max_batch", [4, 8, 16])
def test_at_120_percent_load_goodput_stays_and_accepted_requests_meet_the_objective(max_batch: int) -> None:
    row_s, seconds, threshold_ms = 0.0025, 60, 100
    rate = 1.2 / row_s

    async def main(loop: TimedLoop) -> None:
        worker = Doubler(row_s=row_s, jitter=random.Random(1))
        at = rig(loop, worker, max_batch=max_batch, max_rows=256, max_wait_ms=threshold_ms / 2)
        chance, latencies, refused = random.Random(0), [], 0

        async def caller() -> None:
            nonlocal refused
            began = loop.time()
            try:
                await at.batcher.submit({"x": worker.one_row}, 1, loop.monotonic_ns() + 10**9)
            except RequestError:
                refused += 1
                return
            latencies.append((loop.time() - began) * 1e3)

        async with asyncio.TaskGroup() as group:
            for _ in range(int(rate * seconds)):
                group.create_task(caller())
                await pause(chance.expovariate(rate))
        latencies.sort()
        assert len(latencies) >= 0.95 * seconds / row_s  # the worker was never idle for want of admitted work
        assert latencies[int(0.99 * len(latencies))] < threshold_ms
        assert refused == at.batcher.shed > 0
        await at.batcher.close()

    simulate(main)


def test_the_longest_wait_is_half_of_what_a_request_may_take() -> None:
    def wait_ms(**model: object) -> float | None:
        document = {"baseline": "a", "variants": {"a": {"artifact": "m/a:1"}}, **model}
        return parse_config({"apiVersion": "canarium/v1", "models": {"m": document}}).models["m"].queue.max_wait_ms

    latency = {"name": "latency", "objective": 0.99, "threshold_ms": 80}
    assert wait_ms() == 500
    assert wait_ms(slo=[latency]) == 40
    assert wait_ms(slo=[latency], routing={"queue": {"max_wait_ms": 70}}) == 70
    assert wait_ms(routing={"queue": {"default_timeout_ms": 300}}) == 150
