"""The batcher on a loop whose time moves only when everybody waits: exact, and without sleeping."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serving.contract import Cause
from serving.gateway.batcher import Batcher, BatchResult
from serving.gateway.worker_base import WorkerFailure


class _Jump(selectors.DefaultSelector):
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
    """A worker that answers 2x after `took_s` and `row_s` a row, or does what `script` says of the next batches.

    With `jitter` a batch takes 0.8 to 1.2 times as long.
    """

    rank = 0
    ran_ns = 0
    run_now = None
    one_row = np.ones((1, 2))

    def __init__(
        self,
        name: str = "w",
        took_s: float | None = None,
        script: list[str] | None = None,
        *,
        row_s: float = 0.0,
        jitter: random.Random | None = None,
    ) -> None:
        self.name = name
        self.on_change: Callable[[], None] | None = None
        self.took_s = (0.0 if row_s else 0.01) if took_s is None else took_s
        self.row_s = row_s
        self.jitter = jitter
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
        took_s = self.took_s + self.row_s * len(x)
        await pause(took_s * self.jitter.uniform(0.8, 1.2) if self.jitter else took_s)
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
