"""Whatever arrives, fails, dies or leaves: every caller gets its own rows or a reason, once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
from batcher_kit import Doubler, TimedLoop, pause, rig, simulate
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import ErrorKind, RequestError
from serving.gateway.batcher import BatchResult
from serving.gateway.worker_base import WorkerFailure


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
            task = at.send(-7 if call.poison else 7, call.rows, width=call.width, timeout_s=100, live=call.live)
            outcome = (await asyncio.gather(task, return_exceptions=True))[0]
            if isinstance(outcome, RequestError):  # shadow mates of poison are not tried again while live work waits
                assert outcome.kind is ErrorKind.OVERLOADED
                assert not call.live
                assert any(other.poison and not other.live for other in traffic)
            elif call.poison:
                assert isinstance(outcome, WorkerFailure)
                assert outcome.message == "poison"
            else:
                assert isinstance(outcome, BatchResult)
                assert outcome.outputs["y"].tolist() == [[14] * call.width] * call.rows

        await asyncio.gather(*map(caller, traffic))
        await at.batcher.close()

    simulate(main)
