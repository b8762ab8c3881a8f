"""Whatever arrives, fails, dies, hangs, leaves or is killed: every caller gets its own rows or a reason, once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from batcher_kit import Rig, TimedLoop, pause, rig, simulate
from batcher_ledger import Accountable, Call, Ledger
from hypothesis import given
from hypothesis import strategies as st

from serving.contract import Cause
from serving.core.arrays import PLAIN, Layout
from serving.gateway.worker_base import WorkerFailure

MAX_BATCH, MAX_ROWS = 4, 12
SETTLE_S = 10  # longer than any script of a worker

calls = st.builds(
    Call,
    at_ms=st.integers(0, 60),
    rows=st.sampled_from([1, 1, 1, 2, 3, 4, 9, 12]),
    width=st.sampled_from([2, 3, 5]),
    live=st.booleans(),
    wide=st.sampled_from([False, False, True]),
    poison=st.sampled_from([False] * 7 + [True]),
    timeout_ms=st.sampled_from([5, 40, 5000, 5000]),
    cancel_ms=st.sampled_from([None, None, None, 0, 7, 15, 50]),
)
scripts = st.lists(st.sampled_from(["ok", "ok", "ok", "error", "die", "hang", "short", "bug"]), max_size=8)
fleets = st.lists(st.tuples(st.sampled_from([0.001, 0.01, 0.03]), scripts), min_size=1, max_size=3)
#: What an operator or the cluster does meanwhile: (when, what, to which worker).
events = st.lists(
    st.tuples(
        st.integers(0, 80), st.sampled_from(["kill", "recover", "recover", "remove", "bring back"]), st.integers(0, 2)
    ),
    max_size=8,
)


@contextmanager
def no_surprises() -> Iterator[None]:
    """Fail if the batcher met something that it has no answer to, which it only logs."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "unexpectedly" in record.getMessage():
                found.append(f"{record.getMessage()}: {record.exc_info}")

    log, handler = logging.getLogger("serving.gateway.batcher"), Handler()
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
    assert not found


def kept(
    loop: TimedLoop, workers: list[tuple[float, list[str]]], *, apart: bool = True, **options: object
) -> tuple[Rig, Ledger]:
    ledger = Ledger(loop, max_batch=MAX_BATCH, max_rows=MAX_ROWS, apart=apart)
    fleet = [Accountable(ledger, str(number), took, list(script)) for number, (took, script) in enumerate(workers)]
    at = rig(loop, *fleet, max_batch=MAX_BATCH, max_rows=MAX_ROWS, **options)
    ledger.batcher = at.batcher
    return at, ledger


async def disturb(at: Rig, fleet: list[Accountable], schedule: list[tuple[int, str, int]]) -> None:
    """Carry out the events, in order of time."""
    began = at.loop.time()
    out: set[int] = set()
    for at_ms, what, number in sorted(schedule):
        await pause(max(0.0, began + at_ms / 1000 - at.loop.time()))
        worker = number % len(fleet)
        if what == "kill":
            at.batcher.fail_queued(WorkerFailure(Cause.KILLED, "killed"))
        elif what == "recover":
            fleet[worker].recover()
        else:
            (out.add if what == "remove" else out.discard)(worker)
            at.batcher.set_workers([one for number, one in enumerate(fleet) if number not in out])


@given(
    st.lists(calls, min_size=1, max_size=25),
    fleets,
    events,
    st.booleans(),
    st.sampled_from([0, 0, 4]),
    st.sampled_from([None, 10, 30]),
    st.booleans(),
)
def test_every_caller_gets_its_own_rows_or_a_reason_once_and_the_counters_add_up(
    traffic: list[Call],
    workers: list[tuple[float, list[str]]],
    schedule: list[tuple[int, str, int]],
    padded: bool,
    delay_ms: float,
    max_wait_ms: float | None,
    apart: bool,
) -> None:
    async def main(loop: TimedLoop) -> None:
        at, ledger = kept(
            loop,
            workers,
            max_queue_delay_ms=delay_ms,
            max_wait_ms=max_wait_ms,
            layout=Layout(pad=frozenset({"x"})) if padded else PLAIN,
            hang_timeout_s=0.05,
            apart=apart,
        )
        fleet = [slot.worker for slot in at.batcher._slots.values()]
        await asyncio.gather(disturb(at, fleet, schedule), *map(ledger.call, traffic))
        ledger.check_end()
        assert sum(ledger.outcomes.values()) == len(traffic)
        await pause(SETTLE_S)
        at.batcher.set_workers(fleet)
        for worker in fleet:  # whatever happened, it works again
            worker.script.clear()
            worker.recover()
        await ledger.call(Call(0, 1, 2, True, False, False, 5000, None))
        assert ledger.callers[-1].outcome == "answered"
        await at.batcher.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with no_surprises():
        simulate(main)


@given(st.lists(calls, min_size=1, max_size=25), st.booleans())
def test_without_faults_everybody_who_stays_is_answered_but_poison(traffic: list[Call], padded: bool) -> None:
    async def main(loop: TimedLoop) -> None:
        patient = [replace(call, rows=min(call.rows, 2), timeout_ms=60_000, cancel_ms=None) for call in traffic]
        at, ledger = kept(loop, [(0.01, [])], layout=Layout(pad=frozenset({"x"})) if padded else PLAIN)
        at.batcher._queue.max_rows = ledger.max_rows = 1000
        await asyncio.gather(*map(ledger.call, patient))
        ledger.check_end()
        poisoned = any(call.poison and not call.live for call in patient)
        for caller in ledger.callers:
            if caller.call.poison and caller.call.live:
                assert caller.outcome == "failed"
            elif caller.call.live or not poisoned:
                assert caller.outcome == "answered"
            else:  # shadow mates of poison are not tried again one by one while live work waits
                assert caller.outcome in ("answered", "failed", "shadow shed")
        await at.batcher.close()

    with no_surprises():
        simulate(main)


@given(st.lists(calls, min_size=2, max_size=25), st.integers(0, 60), st.sampled_from([0, 4]))
def test_closing_ends_everybody_and_leaves_nothing(traffic: list[Call], close_ms: int, delay_ms: float) -> None:
    async def main(loop: TimedLoop) -> None:
        at, ledger = kept(loop, [(0.03, ["ok", "hang"])], max_queue_delay_ms=delay_ms)
        ended = []

        async def call(one: Call) -> None:
            await pause(one.at_ms / 1000)
            task = at.send(1, one.rows, width=one.width, live=one.live)
            ended.append((await asyncio.gather(task, return_exceptions=True))[0])

        ledger.dispatched = lambda x: [None]  # type: ignore[assignment,method-assign,list-item]
        running = [loop.create_task(call(one)) for one in traffic]
        await pause(close_ms / 1000)
        await at.batcher.close()
        await asyncio.gather(*running)
        assert len(ended) == len(traffic)
        assert at.batcher.queue_rows == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with no_surprises():
        simulate(main)
