"""Batchers over real workers, and waiting for what these do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import numpy as np

from serving.clock import SystemClock
from serving.gateway.batcher import Batcher
from serving.gateway.workers import Worker, WorkerFailure

CLOCK = SystemClock()


def batcher(*workers: Worker, **options: object) -> Batcher:
    settings = {"max_batch": 8, "max_rows": 1000, "max_queue_delay_ms": 0, "hang_timeout_s": 10.0} | options
    made = Batcher("v", clock=CLOCK, **settings)  # type: ignore[arg-type]
    made.set_workers(workers)
    return made


def soon(seconds: float = 30) -> int:
    return CLOCK.monotonic_ns() + int(seconds * 1e9)


async def until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.005)


async def answered_again(target: Batcher, inputs: dict[str, np.ndarray]) -> None:
    """Until it is answered: where a batch hangs after a tenth of a second, any may, on a machine that stands still."""
    async with asyncio.timeout(30):
        while True:
            try:
                await target.submit(inputs, 1, soon())
                return
            except WorkerFailure:
                await asyncio.sleep(0.05)
