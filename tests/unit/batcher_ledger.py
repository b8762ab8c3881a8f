"""Everything that is true of a batcher at every moment, checked while a generated schedule runs.

The ledger knows of every row whose it is, by when it is wanted and what became of its caller, so that
a worker can tell at each dispatch whether the batch is one that may run.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from batcher_kit import Doubler, TimedLoop, pause

from serving.errors import ErrorKind, RequestError
from serving.gateway.batcher import Batcher, BatchResult
from serving.gateway.worker_base import WorkerFailure

#: Distance between the marks of two rows; wider than any row.
STRIDE = 100


@dataclass(frozen=True)
class Call:
    """One caller: when it comes, what it asks, when it leaves."""

    at_ms: int
    rows: int
    width: int
    live: bool
    wide: bool  # float64 instead of float32: another signature
    poison: bool
    timeout_ms: int
    cancel_ms: int | None

    @property
    def dtype(self) -> type[np.floating[Any]]:
        return np.float64 if self.wide else np.float32


@dataclass
class Caller:
    """A call on its way. `marks` are its rows', in order; `outcome` is set once."""

    call: Call
    marks: list[int]
    deadline_ns: int
    dispatched: set[int] = field(default_factory=set)
    cut_short: bool = False
    outcome: str = ""


class Ledger:
    """Submits calls, keeps what became of them, and judges every batch that a worker is given.

    With `apart` nobody leaves in the very moment in which something else happens. Otherwise a caller may leave
    between the end of its request and its own next step: then it sees that it left, and the batcher had counted
    something else.
    """

    def __init__(self, loop: TimedLoop, *, max_batch: int, max_rows: int, apart: bool = False) -> None:
        self.loop = loop
        self.apart = apart
        self.max_batch = max_batch
        self.max_rows = max_rows
        self.batcher: Batcher = None  # type: ignore[assignment]
        self.callers: list[Caller] = []
        self.violations: list[str] = []  # the batcher takes what a worker raises for the worker's failure
        self._owners: dict[int, Caller] = {}
        self._marks = 0

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(caller.outcome for caller in self.callers)

    async def call(self, call: Call) -> None:
        """Submit one call and judge its end."""
        await pause(call.at_ms / 1000)
        marks = [self._marks + 1 + row for row in range(call.rows)]
        self._marks += call.rows
        caller = Caller(call, marks, self.loop.monotonic_ns() + call.timeout_ms * 1_000_000)
        self.callers.append(caller)
        self._owners |= dict.fromkeys(marks, caller)
        x = np.array(marks, call.dtype)[:, None] * STRIDE + np.arange(call.width, dtype=call.dtype)
        x = -x if call.poison else x
        task = self.loop.create_task(self.batcher.submit({"x": x}, call.rows, caller.deadline_ns, live=call.live))
        if call.cancel_ms is not None:
            self.loop.call_later((call.cancel_ms + 0.3 * self.apart) / 1000, task.cancel)
        outcome = await self._judge(caller, x, task)
        assert not caller.outcome, f"{caller} ends again, as {outcome}"
        caller.outcome = outcome
        self.check_bounds()

    async def _judge(self, caller: Caller, x: np.ndarray, task: asyncio.Task[BatchResult]) -> str:
        call = caller.call
        try:
            result = await task
        except asyncio.CancelledError:
            assert call.cancel_ms is not None, "cancelled, and not by its caller"
            if caller.dispatched.issuperset(caller.marks):
                return "cancelled while running"
            return "cancelled"
        except WorkerFailure:
            return "failed"
        except RequestError as error:
            return self._refused(caller, error)
        assert not call.poison, "poison was answered"
        y = result.outputs["y"]
        if caller.cut_short:  # alone in its batch: for the gateway's check to judge
            return "answered"
        assert y.shape[0] == call.rows
        assert np.array_equal(y[:, : call.width], x * 2), "somebody else's rows"
        assert not y[:, call.width :].any(), "padding with something in it"
        assert y.dtype == call.dtype
        assert 0 < result.batch_rows <= self.max_batch
        assert result.batch_key
        return "answered"

    def _refused(self, caller: Caller, error: RequestError) -> str:
        if error.kind is ErrorKind.OVERLOADED:
            return "shed" if caller.call.live else "shadow shed"
        assert error.kind is ErrorKind.DEADLINE, error
        assert self.loop.monotonic_ns() >= caller.deadline_ns, "expired before its deadline"
        return "late" if caller.dispatched.issuperset(caller.marks) else "expired"

    def check_bounds(self) -> None:
        assert self.batcher.queue_rows <= self.max_rows, "over max_rows"

    def dispatched(self, x: np.ndarray) -> list[Caller]:
        """Judge a batch that is about to run; returns whose rows it has, row by row."""
        now = self.loop.monotonic_ns()
        self.check_bounds()
        assert 0 < len(x) <= self.max_batch, "over max_batch"
        owners = [self._owners[int(abs(value) // STRIDE)] for value in x[:, 0].tolist()]
        for caller, value in zip(owners, x[:, 0].tolist(), strict=True):
            caller.dispatched.add(int(abs(value) // STRIDE))
            assert not caller.outcome, f"a row is run whose caller has ended: {caller}"
            assert caller.deadline_ns > now, f"expired work is run: {caller}"
            assert caller.call.dtype == x.dtype, "two types in one batch"
        assert len({caller.call.live for caller in owners}) == 1, "live and shadow work in one batch"
        if not owners[0].call.live:
            # Asked of the queue: a caller that has ended in this very moment has not been told yet.
            assert not self.batcher._queue.live_rows, "live work waits behind shadow work"
        return owners

    def check_end(self) -> None:
        """Everybody has ended, nothing is left, and the batcher counted what the callers saw."""
        batcher, outcomes = self.batcher, self.outcomes
        assert not self.violations, self.violations
        assert batcher.queue_rows == 0, "something is left in the queue"
        assert all(caller.outcome for caller in self.callers), "somebody never ended"
        counted = {
            "shed": batcher.shed,
            "shadow shed": batcher.shadow_shed,
            "expired": batcher.expired,
            "cancelled": batcher.dropped_cancelled,
        }
        seen = {name: outcomes[name] for name in counted}
        assert counted == seen or not self.apart, f"the batcher counted {counted}, the callers saw {seen}"


class Accountable(Doubler):
    """A `Doubler` that shows every batch to the ledger before it runs it."""

    def __init__(self, ledger: Ledger, name: str, took_s: float, script: list[str]) -> None:
        super().__init__(name, took_s, script)
        self.ledger = ledger

    async def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            owners = self.ledger.dispatched(inputs["x"])
        except AssertionError as error:
            self.ledger.violations.append(str(error))
            raise
        if self.script[:1] == ["short"] and len(set(map(id, owners))) == 1:
            owners[0].cut_short = True
        return await super().run(inputs)
