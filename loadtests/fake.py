"""Time that passes only when nothing else can happen: runs load generators without sockets or waiting."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

Result = TypeVar("Result")
#: Turns of the event loop after which whatever could run has run.
_TURNS = 12


class VirtualTime:
    """A clock (see `serving.clock.Clock`) and the `sleep` that belongs to it.

    `run` drives a coroutine: whenever all tasks wait, time jumps to the next sleeper.
    """

    def __init__(self, wall_ns: int = 1_700_000_000_000_000_000) -> None:
        self._wall_start = wall_ns
        self._now = 0
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._number = itertools.count()

    def monotonic_ns(self) -> int:
        return self._now

    def wall_ns(self) -> int:
        return self._wall_start + self._now

    async def sleep(self, seconds: float) -> None:
        """Wait until virtual time has moved on by so much."""
        future = asyncio.get_running_loop().create_future()
        due = self._now + max(1, math.ceil(seconds * 1e9))
        heapq.heappush(self._sleepers, (due, next(self._number), future))
        await future

    async def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """The coroutine's result. Raises `RuntimeError` if it waits for something that nobody will bring."""
        task = asyncio.ensure_future(coroutine)
        idle = 0
        while not task.done():
            for _ in range(_TURNS):
                await _turn()
            if task.done():
                break
            if self._sleepers:
                idle = 0
                self._wake_next()
            elif (idle := idle + 1) > 100:
                task.cancel()
                raise RuntimeError("all tasks wait and nobody sleeps: this would wait for ever")
        return task.result()

    def _wake_next(self) -> None:
        due, _, future = heapq.heappop(self._sleepers)
        self._now = max(self._now, due)
        if not future.done():
            future.set_result(None)


@types.coroutine
def _turn() -> Generator[None, None, None]:
    yield
