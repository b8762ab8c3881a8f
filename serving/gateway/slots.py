"""The workers of one batcher while they run batches, and those whose batch takes too long."""

from __future__ import annotations

import asyncio

from serving.clock import Clock
from serving.gateway.worker_base import Worker


class Slot:
    """A worker, the task that feeds it (until that ends), and what the task waits for."""

    __slots__ = ("overdue", "retired", "since_ns", "task", "waiter", "worker")

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.task: asyncio.Task[None] | None = None
        self.retired = False
        self.waiter: asyncio.Future[None] | None = None
        self.since_ns = 0  # when its batch began
        self.overdue = False  # its task is cancelled because the batch takes too long

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class HangWatch:
    """Cancels the task of a slot whose batch runs for `limit_ns`, on one timer for all slots.

    The timer looks again when the batch that runs longest would be overdue, so that quick batches cost none.
    """

    def __init__(self, clock: Clock, limit_ns: int) -> None:
        self.limit_ns = limit_ns
        self._clock = clock
        self._busy: set[Slot] = set()
        self._timer: asyncio.TimerHandle | None = None

    def began(self, slot: Slot, now_ns: int) -> None:
        """The slot's worker has been given a batch."""
        slot.since_ns = now_ns
        self._busy.add(slot)
        if self._timer is None:
            self._look_in(self.limit_ns)

    def ended(self, slot: Slot) -> None:
        """That batch is over, whatever came of it."""
        self._busy.discard(slot)
        slot.overdue = False

    def close(self) -> None:
        """Watch nothing any more."""
        self._busy.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_in(self, wait_ns: int) -> None:
        self._timer = asyncio.get_running_loop().call_later(wait_ns / 1e9, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._clock.monotonic_ns()
        left_ns = 0
        for slot in self._busy:
            left = slot.since_ns + self.limit_ns - now
            if slot.overdue or slot.task is None:
                continue
            if left <= 0:
                slot.overdue = True
                slot.task.cancel()
            else:
                left_ns = min(left_ns or left, left)
        if left_ns:
            self._look_in(left_ns)
