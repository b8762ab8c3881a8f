"""What becomes of callers when a batch, a worker or all of them fail."""

from __future__ import annotations

import asyncio

import pytest
from batcher_kit import Doubler, TimedLoop, pause, rig, simulate

from serving.contract import Cause
from serving.errors import ErrorKind, RequestError
from serving.gateway.worker_base import WorkerFailure


def test_one_poison_request_does_not_fail_its_batch_mates() -> None:
    async def main(loop: TimedLoop) -> None:
        worker = Doubler()
        at = rig(loop, worker)
        at.send(0)
        await pause(0.001)
        for value in (1, -1, 2):
            at.send(value)
        _, one, poison, two = await at.outcomes()
        assert (one.outputs["y"][0, 0], two.outputs["y"][0, 0]) == (2, 4)
        assert isinstance(poison, WorkerFailure)
        assert poison.cause is Cause.ERROR
        assert poison.batch_key not in (0, one.batch_key, two.batch_key)
        assert [len(batch) for batch in worker.batches] == [1, 3, 1, 1, 1]
        await at.batcher.close()

    simulate(main)


def test_outputs_that_do_not_match_the_rows_are_found_out_request_by_request() -> None:
    async def main(loop: TimedLoop) -> None:
        at = rig(loop, Doubler(script=["short", "ok", "ok"]))
        at.send(1)
        at.send(2)
        assert [result.outputs["y"][0, 0] for result in await at.outcomes()] == [2, 4]
        await at.batcher.close()

    simulate(main)


def test_a_death_fails_the_whole_batch_as_one_event_and_what_is_queued_for_want_of_a_worker() -> None:
    async def main(loop: TimedLoop) -> None:
        at = rig(loop, Doubler(script=["die"]), max_batch=2)
        for value in range(3):
            at.send(value)
        first, second, queued = await at.outcomes()
        assert {first.cause, second.cause, queued.cause} == {Cause.DIED}
        assert first.batch_key == second.batch_key != 0
        assert first is not second  # each caller has a traceback of its own
        assert queued.batch_key not in (0, first.batch_key)  # the outage is one event of its own
        with pytest.raises(WorkerFailure, match="v has no worker"):
            await at.send(4)
        await at.batcher.close()

    simulate(main)


def test_work_goes_on_with_the_workers_that_are_left_and_with_new_ones() -> None:
    async def main(loop: TimedLoop) -> None:
        bad, good, new = Doubler("bad", script=["die"]), Doubler("good"), Doubler("new")
        at = rig(loop, bad, good, max_batch=1)
        for value in range(5):
            at.send(value)
        results = await at.outcomes()
        assert sum(isinstance(result, WorkerFailure) for result in results) == 1
        assert at.batcher.workers_available == 1
        at.batcher.set_workers([])
        with pytest.raises(WorkerFailure):
            await at.send(1)
        at.batcher.set_workers([new])
        assert (await at.send(2)).outputs["y"][0, 0] == 4
        await at.batcher.close()

    simulate(main)


def test_a_removed_worker_finishes_its_batch() -> None:
    async def main(loop: TimedLoop) -> None:
        old, new = Doubler("old"), Doubler("new")
        at = rig(loop, old)
        running = at.send(1)
        await pause(0.001)
        at.batcher.set_workers([new])
        at.send(2)
        assert (await running).outputs["y"][0, 0] == 2
        await at.outcomes()
        assert (len(old.batches), len(new.batches)) == (1, 1)
        at.send(3)
        await pause(0.001)
        at.batcher.set_workers([])
        await at.batcher.close()
        assert isinstance((await at.outcomes())[-1], RequestError)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    simulate(main)


def test_a_hung_worker_is_quarantined_until_it_answers() -> None:
    async def main(loop: TimedLoop) -> None:
        worker = Doubler(script=["hang"])
        at = rig(loop, worker)
        with pytest.raises(WorkerFailure, match="w has not answered a batch for 1 s") as caught:
            await at.send(1)
        assert caught.value.cause is Cause.TIMEOUT
        assert at.batcher.workers_available == 0
        with pytest.raises(WorkerFailure, match="quarantined"):
            await at.send(2)
        worker.recover()
        assert (await at.send(3)).outputs["y"][0, 0] == 6
        await at.batcher.close()

    simulate(main)


def test_a_bug_in_a_worker_fails_its_callers_and_not_the_batcher() -> None:
    async def main(loop: TimedLoop) -> None:
        at = rig(loop, Doubler(script=["bug"]))
        with pytest.raises(WorkerFailure, match="KeyError"):
            await at.send(1)
        await at.send(2)
        await at.batcher.close()

    simulate(main)


def test_the_search_for_poison_ends_with_the_deadlines_of_its_mates() -> None:
    async def main(loop: TimedLoop) -> None:
        worker = Doubler(took_s=0.03)
        at = rig(loop, worker)
        at.send(0)
        await pause(0.001)
        for value in (-1, 1, 2, 3):  # run together from 30 to 60 ms, then one by one
            at.send(value, timeout_s=0.125)
        after = at.send(4)
        _, poison, one, *late, _ = await at.outcomes()
        assert isinstance(poison, WorkerFailure)
        assert one.outputs["y"][0, 0] == 2
        assert [error.kind for error in late] == [ErrorKind.DEADLINE] * 2
        assert (await after).queue_ns == pytest.approx(149e6, abs=1e5)  # three of four were tried again
        assert at.batcher.expired == 0  # their time passed while they were with the worker, not in the queue
        await at.batcher.close()

    simulate(main)


def test_closing_in_the_search_for_poison_fails_those_too_whose_turn_has_not_come() -> None:
    async def main(loop: TimedLoop) -> None:
        worker = Doubler()
        at = rig(loop, worker)
        at.send(0)
        await pause(0.001)
        for value in (1, -1, 2):
            at.send(value)
        await pause(0.025)  # the first of them runs alone
        assert [len(batch) for batch in worker.batches] == [1, 3, 1]
        await at.batcher.close()
        await pause(0)
        assert all(task.done() for task in at.tasks)
        assert [error.kind for error in (await at.outcomes())[1:]] == [ErrorKind.UNAVAILABLE] * 3

    simulate(main)


def test_shadow_mates_of_poison_are_shed_when_live_work_waits() -> None:
    async def main(loop: TimedLoop) -> None:
        worker = Doubler()
        at = rig(loop, worker)
        at.send(0)
        await pause(0.001)
        for value in (-1, 51, 52):
            at.send(value, live=False)
        await pause(0.015)  # their batch runs
        live = at.send(1)
        _, *shadow, _ = await at.outcomes()
        assert [error.kind for error in shadow] == [ErrorKind.OVERLOADED] * 3
        assert [batch[:, 0].tolist() for batch in worker.batches] == [[0], [-1, 51, 52], [1]]
        assert (await live).queue_ns == pytest.approx(4e6, abs=1e5)
        assert (at.batcher.shed, at.batcher.shadow_shed) == (0, 3)
        await at.batcher.close()

    simulate(main)
