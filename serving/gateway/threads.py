"""A session's own thread: batches run there in order while the event loop goes on."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np


class RunsArrays(Protocol):
    """The part of `serving.runtimes.base.Session` that a worker needs."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...

    def close(self) -> None: ...


Call = Callable[[], dict[str, np.ndarray]]
Done = Callable[[dict[str, np.ndarray] | None, BaseException | None], None]


def short_message(error: BaseException) -> str:
    """One line of at most 300 characters about an exception, without its traceback."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]


class SessionThread:
    """One daemon thread that runs a session's batches in order.

    Runtimes release the GIL while they compute, so the loop goes on. `submit` may be called
    from the loop only; `done` is called on the loop.
    """

    def __init__(self, name: str, session: RunsArrays) -> None:
        self._session = session
        self._jobs: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, Call, Done] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"canarium-{name}", daemon=True)
        self._thread.start()

    def submit(self, call: Call, done: Done) -> None:
        """Call `call()` in the thread after what was submitted before; then `done(outputs, error)`."""
        self._jobs.put((asyncio.get_running_loop(), call, done))

    def terminate(self) -> None:
        """Ask the runtime to abandon the run in progress, where it offers that."""
        terminate = getattr(self._session, "terminate", None)
        if terminate is not None:
            terminate()

    def stop(self) -> None:
        """End the thread after the submitted runs, closing the session there. Does not wait."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, call, done = job
            outputs: dict[str, np.ndarray] | None = None
            error: BaseException | None = None
            try:
                outputs = call()
            except BaseException as raised:  # whatever it is, it is the session's failure and must not end the thread
                error = raised
            try:
                loop.call_soon_threadsafe(done, outputs, error)
            except RuntimeError:  # the loop is closed: nobody is left to tell
                return
            del job, call, done, outputs, error  # hold no arrays while waiting for the next batch
        self._session.close()
