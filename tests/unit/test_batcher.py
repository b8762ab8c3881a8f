"""Who shares a batch, which worker takes it, and that everybody gets his own rows."""

from __future__ import annotations

import numpy as np
import pytest
from batcher_kit import Doubler, TimedLoop, pause, rig, simulate

from serving.core.arrays import Layout
from serving.errors import ErrorKind, RequestError


def test_an_idle_worker_takes_a_request_at_once() -> None:
    async def main(loop: TimedLoop) -> None:
        at = rig(loop, Doubler(took_s=0.01))
        result = await at.send(3)
        assert result.outputs["y"].tolist() == [[6, 6]]
        assert result.queue_ns == 0
        assert result.infer_ns == 10_000_000
        assert result.batch_rows == 1
        await at.batcher.close()

    simulate(main)


def test_a_freed_worker_takes_what_has_queued_up() -> None:
    async def main(loop: TimedLoop) -> None:
        worker, seen = Doubler(), []
        at = rig(loop, worker, on_batch=lambda rows, ns: seen.append((rows, ns)))
        at.send(0)
        await pause(0.001)
        for value in range(1, 7):
            at.send(value)
        results = await at.outcomes()
        assert [result.outputs["y"][0, 0] for result in results] == [0, 2, 4, 6, 8, 10, 12]
        assert seen == [(1, 10_000_000), (4, 10_000_000), (2, 10_000_000)]
        keys = [result.batch_key for result in results]
        assert len(set(keys[1:5])) == 1
        assert len(set(keys)) == 3
        await at.batcher.close()

    simulate(main)


def test_all_workers_are_used() -> None:
    async def main(loop: TimedLoop) -> None:
        workers = [Doubler("a"), Doubler("b"), Doubler("c")]
        at = rig(loop, *workers, max_batch=2)
        for value in range(6):
            at.send(value)
        await at.outcomes()
        assert [len(worker.batches) for worker in workers] == [1, 1, 1]
        await at.batcher.close()

    simulate(main)


def test_a_burst_is_shared_out_evenly() -> None:
    async def main(loop: TimedLoop) -> None:
        workers = [Doubler("a"), Doubler("b")]
        at = rig(loop, *workers, max_batch=8)
        for value in range(8):
            at.send(value)
        await at.outcomes()
        # The first to wake sees eight rows for two workers.
        assert [[len(batch) for batch in worker.batches] for worker in workers] == [[4], [4]]
        await at.batcher.close()

    simulate(main)


def test_what_a_busy_worker_runs_counts_as_its_share() -> None:
    async def main(loop: TimedLoop) -> None:
        workers = [Doubler("a", took_s=0.05), Doubler("b", took_s=0.01)]
        at = rig(loop, *workers, max_batch=8)
        for value in range(8):
            at.send(value)
        await pause(0.005)
        for value in range(4):
            at.send(value)
        await at.outcomes()
        # At 10 ms four rows are queued and four run on a: all of the queue is b's half.
        assert [[len(batch) for batch in worker.batches] for worker in workers] == [[4], [4, 4]]
        await at.batcher.close()

    simulate(main)


def test_a_worker_elsewhere_is_used_only_when_those_here_are_busy() -> None:
    async def main(loop: TimedLoop) -> None:
        here, there = Doubler("here"), Doubler("there")
        there.rank = 1
        at = rig(loop, there, here)
        for _ in range(3):
            await at.send(1)
        assert (len(here.batches), len(there.batches)) == (3, 0)
        at.send(1)
        await pause(0.001)
        at.send(1)
        await at.outcomes()
        assert (len(here.batches), len(there.batches)) == (4, 1)
        await at.batcher.close()

    simulate(main)


def test_a_delay_lets_a_batch_fill_up_but_a_full_one_goes_at_once() -> None:
    async def main(loop: TimedLoop) -> None:
        at = rig(loop, Doubler(), max_queue_delay_ms=20)
        first = at.send(1)
        await pause(0.005)
        second = at.send(2)
        assert (await first).queue_ns == pytest.approx(20e6, abs=1e5)
        assert (await second).queue_ns == pytest.approx(15e6, abs=1e5)
        four = [at.send(value) for value in range(4)]
        assert [(await task).queue_ns for task in four] == [0, 0, 0, 0]
        await at.batcher.close()

    simulate(main)


def test_a_large_request_is_split_and_put_together_again() -> None:
    async def main(loop: TimedLoop) -> None:
        worker = Doubler()
        at = rig(loop, worker)
        x = np.arange(20.0).reshape(10, 2)
        result = await at.batcher.submit({"x": x}, 10, loop.monotonic_ns() + 10**9)
        assert np.array_equal(result.outputs["y"], x * 2)
        assert [len(batch) for batch in worker.batches] == [4, 4, 2]
        assert result.batch_rows == 4
        assert result.infer_ns == pytest.approx(30e6, abs=1e5)
        await at.batcher.close()

    simulate(main)


def test_a_request_that_can_never_fit_is_told_the_limit() -> None:
    async def main(loop: TimedLoop) -> None:
        at = rig(loop, Doubler())
        with pytest.raises(RequestError, match=r"17 rows is more than the queue of v holds \(16 rows\)") as caught:
            await at.send(1, rows=17)
        assert caught.value.kind is ErrorKind.TOO_LARGE
        with pytest.raises(RequestError, match="send at least one"):
            await at.send(1, rows=0)
        await at.batcher.close()

    simulate(main)


def test_different_lengths_share_a_batch_when_the_input_may_be_padded() -> None:
    async def main(loop: TimedLoop) -> None:
        worker = Doubler()
        at = rig(loop, worker, layout=Layout(pad=frozenset({"x"})))
        at.send(1, width=8)
        at.send(2, width=7)
        first, second = await at.outcomes()
        assert len(worker.batches) == 1
        assert worker.batches[0].tolist() == [[1] * 8, [2] * 7 + [0]]
        assert first.outputs["y"].tolist() == [[2] * 8]
        assert second.outputs["y"].tolist() == [[4] * 7 + [0]]
        await at.batcher.close()

    simulate(main)
