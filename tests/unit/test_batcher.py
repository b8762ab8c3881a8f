"""The batcher on a loop whose time moves only when everybody waits: exact, and without sleeping."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contract import Cause
from serving.errors import ErrorKind, RequestError
from serving.gateway.batcher import Batcher, BatchResult
from serving.gateway.worker_base import WorkerFailure


class _Jump(selectors.SelectSelector):
    """Instead of waiting, moves the loop's time."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise AssertionError("everybody waits and no timer is set: the test would hang")
        self.now_s += max(0.0, timeout)
        return super().select(0)


class TimedLoop(asyncio.SelectorEventLoop):
    """An event loop in simulated time; also a `Clock`."""

    def __init__(self) -> None:
        self.jump = _Jump()
        super().__init__(self.jump)

    def time(self) -> float:
        return self.jump.now_s

    def monotonic_ns(self) -> int:
        return round(self.jump.now_s * 1e9)

    wall_ns = monotonic_ns


def simulate(main: Callable[[TimedLoop], Coroutine[Any, Any, None]]) -> None:
    loop = TimedLoop()
    try:
        loop.run_until_complete(main(loop))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def pause(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    handle = loop.call_later(seconds, lambda: done.done() or done.set_result(None))
    try:
        await done
    finally:
        handle.cancel()


class Doubler:
    """A worker that answers 2x after `took_s`, or does what `script` says of the next batches."""

    rank = 0

    def __init__(self, name: str = "w", took_s: float = 0.01, script: list[str] | None = None) -> None:
        self.name = name
        self.on_change: Callable[[], None] | None = None
        self.took_s = took_s
        self.script = script or []
        self.batches: list[np.ndarray] = []
        self.available = True
        self.hung = False

    async def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        x = inputs["x"]
        self.batches.append(x)
        what = self.script.pop(0) if self.script else "ok"
        if what == "hang":
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self.hung, self.available = True, False
                self.tell()
        await pause(self.took_s)
        if what == "die":
            self.available = False
            self.tell()
            raise WorkerFailure(Cause.DIED, "killed")
        if what == "error" or (x < 0).any():
            raise WorkerFailure(Cause.ERROR, "poison")
        if what == "bug":
            raise KeyError("oops")
        if what == "short":
            return {"y": x[:-1] * 2}
        return {"y": x * 2}

    def recover(self) -> None:
        self.hung, self.available = False, True
        self.tell()

    def tell(self) -> None:
        if self.on_change is not None:
            self.on_change()

    async def close(self) -> None:
        pass


def rows_of(value: float, rows: int = 1, width: int = 2) -> dict[str, np.ndarray]:
    return {"x": np.full((rows, width), value)}


@dataclass
class Rig:
    """A batcher, its workers and short ways to use them."""

    loop: TimedLoop
    batcher: Batcher
    tasks: list[asyncio.Task[BatchResult]] = field(default_factory=list)

    def send(
        self, value: float, rows: int = 1, *, width: int = 2, timeout_s: float = 5, live: bool = True
    ) -> asyncio.Task[BatchResult]:
        deadline = self.loop.monotonic_ns() + int(timeout_s * 1e9)
        task = self.loop.create_task(
            self.batcher.submit(rows_of(value, rows, width), rows, deadline, live=live)  # type: ignore[arg-type]
        )
        self.tasks.append(task)
        return task

    async def outcomes(self) -> list[Any]:
        return await asyncio.gather(*self.tasks, return_exceptions=True)


def rig(loop: TimedLoop, *workers: Doubler, **options: Any) -> Rig:
    settings: dict[str, Any] = {"max_batch": 4, "max_rows": 16, "max_queue_delay_ms": 0, "hang_timeout_s": 1.0}
    batcher = Batcher("v", clock=loop, **(settings | options))
    batcher.set_workers(workers)
    return Rig(loop, batcher)


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
        at = rig(loop, worker, pad_inputs=frozenset({"x"}))
        at.send(1, width=8)
        at.send(2, width=7)
        first, second = await at.outcomes()
        assert len(worker.batches) == 1
        assert worker.batches[0].tolist() == [[1] * 8, [2] * 7 + [0]]
        assert first.outputs["y"].tolist() == [[2] * 8]
        assert second.outputs["y"].tolist() == [[4] * 7 + [0]]
        await at.batcher.close()

    simulate(main)


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


# ---------------------------------------------------------------- whatever happens


@dataclass(frozen=True)
class Call:
    at_ms: int
    rows: int
    width: int
    live: bool
    poison: bool
    timeout_ms: int
    cancel_ms: int | None


calls = st.builds(
    Call,
    at_ms=st.integers(0, 60),
    rows=st.sampled_from([1, 1, 1, 2, 3, 9]),
    width=st.sampled_from([2, 3, 5]),
    live=st.booleans(),
    poison=st.sampled_from([False] * 7 + [True]),
    timeout_ms=st.sampled_from([5, 40, 5000, 5000]),
    cancel_ms=st.sampled_from([None, None, None, 0, 7, 15]),
)
scripts = st.lists(st.sampled_from(["ok", "ok", "ok", "error", "die", "hang", "short", "bug"]), max_size=6)


@given(
    st.lists(calls, min_size=1, max_size=25),
    st.lists(st.tuples(st.sampled_from([0.001, 0.01, 0.03]), scripts), min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from([0, 0, 4]),
)
def test_every_caller_gets_its_own_rows_or_a_reason_whatever_happens(
    traffic: list[Call], workers: list[tuple[float, list[str]]], padded: bool, delay_ms: float
) -> None:
    async def main(loop: TimedLoop) -> None:
        fleet = [Doubler(str(number), took, list(script)) for number, (took, script) in enumerate(workers)]
        pad = frozenset({"x"}) if padded else frozenset()
        at = rig(loop, *fleet, max_rows=12, max_queue_delay_ms=delay_ms, pad_inputs=pad, hang_timeout_s=0.05)

        async def caller(number: int, call: Call) -> None:
            await pause(call.at_ms / 1000)
            # Every row is unlike any other; the last value tells the lane.
            x = (number + 1) * 100.0 + np.arange(call.rows * call.width).reshape(call.rows, call.width)
            x[:, -1] = 1 if call.live else 2
            x = -x if call.poison else x
            deadline = loop.monotonic_ns() + call.timeout_ms * 1_000_000
            task = loop.create_task(at.batcher.submit({"x": x}, call.rows, deadline, live=call.live))
            if call.cancel_ms is not None:
                loop.call_later(call.cancel_ms / 1000, task.cancel)
            try:
                result = await task
            except (WorkerFailure, RequestError):
                return
            except asyncio.CancelledError:
                assert call.cancel_ms is not None
                return
            assert not call.poison
            if len(result.outputs["y"]) != call.rows:  # alone in its batch: for the gateway's check to judge
                assert any("short" in script for _, script in workers)
                return
            assert np.array_equal(result.outputs["y"][:, : call.width], x * 2)
            assert not result.outputs["y"][:, call.width :].any()
            assert result.batch_rows <= 4
            assert result.batch_key

        await asyncio.gather(*(caller(number, call) for number, call in enumerate(traffic)))
        assert at.batcher.queue_rows == 0
        for worker in fleet:
            for batch in worker.batches:
                assert len(batch) <= 4
                lanes = {next(value for value in reversed(row) if value) for row in np.abs(batch).tolist()}
                assert len(lanes) == 1  # live and shadow never share a batch
        await pause(10)
        for worker in fleet:  # whatever happened, it works again
            worker.script.clear()
            worker.recover()
        assert (await at.send(1)).outputs["y"].tolist() == [[2, 2]]
        await at.batcher.close()

    simulate(main)


@given(st.lists(calls, min_size=1, max_size=25))
def test_without_faults_only_poison_fails(traffic: list[Call]) -> None:
    async def main(loop: TimedLoop) -> None:
        at = rig(loop, Doubler(), max_rows=1000)

        async def caller(call: Call) -> None:
            await pause(call.at_ms / 1000)
            sign = -1 if call.poison else 1
            task = at.send(sign * 7, call.rows, width=call.width, timeout_s=100, live=call.live)
            if call.poison:
                with pytest.raises(WorkerFailure, match="poison"):
                    await task
            else:
                assert (await task).outputs["y"].tolist() == [[14] * call.width] * call.rows

        await asyncio.gather(*map(caller, traffic))
        await at.batcher.close()

    simulate(main)
