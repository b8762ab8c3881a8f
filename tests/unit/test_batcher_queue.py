"""What waits: bounds, priorities, deadlines, cancelled callers, kills."""

from __future__ import annotations

import asyncio

import pytest
from batcher_kit import Doubler, TimedLoop, pause, rig, simulate

from serving.contract import Cause
from serving.errors import ErrorKind, RequestError
from serving.gateway.worker_base import WorkerFailure


def test_a_full_queue_refuses_with_a_time_to_retry_and_counts_it() -> None:
    async def main(loop: TimedLoop) -> None:
        at = rig(loop, Doubler(), max_rows=2)
        at.send(0)
        await pause(0.001)
        tasks = [at.send(value) for value in range(3)]
        with pytest.raises(RequestError, match=r"the queue of v is full \(2 of 2 rows\)") as caught:
            await tasks[2]
        assert caught.value.kind is ErrorKind.OVERLOADED
        assert caught.value.retry_after_s == 1
        assert at.batcher.shed == 1
        assert at.batcher.queue_rows == 2
        await at.outcomes()
        await at.batcher.close()

    simulate(main)


def test_live_work_evicts_queued_shadow_work_and_goes_first() -> None:
    async def main(loop: TimedLoop) -> None:
        worker = Doubler()
        at = rig(loop, worker, max_rows=2)
        at.send(0)
        await pause(0.001)
        evicted, shadow = at.send(50, live=False), at.send(51, live=False)
        await pause(0)
        live = at.send(1)
        refused = at.send(52, live=False)
        for task in (evicted, refused):
            with pytest.raises(RequestError, match="is full"):
                await task
        await asyncio.gather(live, shadow)
        assert [batch[0, 0] for batch in worker.batches] == [0, 1, 51]
        assert (at.batcher.shed, at.batcher.shadow_shed) == (0, 2)
        await at.batcher.close()

    simulate(main)


def test_expired_requests_are_dropped_before_they_are_run() -> None:
    async def main(loop: TimedLoop) -> None:
        worker = Doubler(took_s=0.1)
        at = rig(loop, worker)
        at.send(0)
        await pause(0.001)
        late, good = at.send(1, timeout_s=0.05), at.send(2)
        with pytest.raises(RequestError) as caught:
            await late
        assert caught.value.kind is ErrorKind.DEADLINE
        assert (await good).outputs["y"][0, 0] == 4
        assert [batch[:, 0].tolist() for batch in worker.batches] == [[0], [2]]
        assert at.batcher.expired == 1
        await at.batcher.close()

    simulate(main)


def test_a_cancelled_caller_is_not_run_and_is_counted() -> None:
    async def main(loop: TimedLoop) -> None:
        worker = Doubler()
        at = rig(loop, worker)
        running = at.send(0)
        await pause(0.001)
        gone, split_gone = at.send(1), at.send(2, rows=7)
        await pause(0)
        assert at.batcher.queue_rows == 8
        for task in (gone, split_gone):
            task.cancel()
        await pause(0)
        assert at.batcher.queue_rows == 0
        running.cancel()  # already running: its batch goes on, nobody is disturbed
        good = at.send(3)
        assert (await good).outputs["y"][0, 0] == 6
        assert at.batcher.dropped_cancelled == 2
        assert len(worker.batches) == 2
        await at.batcher.close()

    simulate(main)


def test_a_kill_re_routes_what_is_queued_and_leaves_what_runs() -> None:
    async def main(loop: TimedLoop) -> None:
        at = rig(loop, Doubler())
        running = at.send(0)
        await pause(0.001)
        queued = [at.send(1), at.send(2, rows=6)]
        await pause(0)
        assert at.batcher.fail_queued(WorkerFailure(Cause.KILLED, "killed")) == 2
        for task in queued:
            with pytest.raises(WorkerFailure, match="killed"):
                await task
        await running
        await at.batcher.close()

    simulate(main)


def test_a_kill_that_nobody_announced_is_seen_when_the_batch_closes() -> None:
    async def main(loop: TimedLoop) -> None:
        killed: list[Exception] = []
        worker = Doubler()
        at = rig(loop, worker, close_check=lambda: killed[0] if killed else None)
        await at.send(1)
        killed.append(WorkerFailure(Cause.KILLED, "killed"))
        with pytest.raises(WorkerFailure, match="killed"):
            await at.send(2)
        assert len(worker.batches) == 1
        killed.clear()
        await at.send(3)
        await at.batcher.close()

    simulate(main)


def test_closing_fails_everybody_with_unavailable() -> None:
    async def main(loop: TimedLoop) -> None:
        at = rig(loop, Doubler())
        at.send(0)
        await pause(0.001)
        at.send(1)
        await pause(0)
        await at.batcher.close()
        at.send(2)
        for outcome in await at.outcomes():
            assert isinstance(outcome, RequestError)
            assert outcome.kind is ErrorKind.UNAVAILABLE

    simulate(main)
