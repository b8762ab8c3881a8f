"""The deadlines of all that wait in one batcher, on one timer.

A timer a request would cost more than the request's place in the queue does. Here a request costs one push on a heap;
those that were answered in time are thrown away when their deadline comes, or before if too many gather.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count

from serving.clock import Clock
from serving.gateway.requests import Request

#: After so many additions the answered ones are thrown away.
PURGE_EVERY = 4096


def _nobody(request: Request) -> None:
    """Whom a closed `Deadlines` tells."""


class Deadlines:
    """Calls `expire` with each request that is not answered when its deadline passes, on the event loop."""

    def __init__(self, clock: Clock, expire: Callable[[Request], None]) -> None:
        self._clock = clock
        self._expire = expire
        self._heap: list[tuple[int, int, Request]] = []
        self._order = count()
        self._until_purge = PURGE_EVERY
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, deadline_ns: int, request: Request) -> None:
        """Watch a request; `deadline_ns` on the clock's monotonic scale."""
        heappush(self._heap, (deadline_ns, next(self._order), request))
        self._until_purge -= 1
        if not self._until_purge:
            self._until_purge = PURGE_EVERY
            self._heap = [item for item in self._heap if not item[2].done]
            heapify(self._heap)
        if self._timer is None or deadline_ns < self._timer_ns:
            self._arm()

    def close(self) -> None:
        """Watch nothing any more, and let go of whoever was to be told."""
        self._heap.clear()
        self._expire = _nobody
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        heap = self._heap
        while heap and heap[0][2].done:
            heappop(heap)
        if heap:
            self._timer_ns = heap[0][0]
            wait_s = max(0.0, (self._timer_ns - self._clock.monotonic_ns()) / 1e9)
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = self._clock.monotonic_ns()
        heap = self._heap
        while heap and (heap[0][0] <= now or heap[0][2].done):
            request = heappop(heap)[2]
            if not request.done:
                self._expire(request)
        self._arm()
