"""Where a session's batches run: in a thread of its own, or on the event loop if that is cheaper."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Protocol

import numpy as np


class RunsArrays(Protocol):
    """The part of `serving.runtimes.base.Session` that a worker needs."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...

    def close(self) -> None: ...


Call = Callable[[], dict[str, np.ndarray]]
Done = Callable[[dict[str, np.ndarray] | None, BaseException | None], None]

#: Nanoseconds: a run that usually takes less is done on the loop. Waking a thread and being woken takes 50 to 70 µs,
#: so that in a gateway, whose loop has other work, only the smallest models gain by it.
INLINE_BELOW_NS = 100_000
#: Quick runs in a row after which a session is run on the loop, and after one there that was slow.
QUICK_RUNS, QUICK_RUNS_AGAIN = 20, 1000
#: A run on the loop that takes so many times as long as the bound is slow; one that takes this long (s) is ended.
SLOW_FACTOR, STUCK_S = 10, 0.25
#: Runs that may get stuck on the loop before a session is never run there again.
STUCK_RUNS = 3


class _Signal(Enum):
    """What the thread is told besides jobs."""

    STOP = 0
    WATCH = 1  # batches run on the loop now: look after them


def short_message(error: BaseException) -> str:
    """One line of at most 300 characters about an exception, without its traceback."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]


class SessionThread:
    """Runs a session's batches in order, one at a time.

    They run in a daemon thread; runtimes release the GIL while they compute, so the loop goes on. A session whose runs
    are shorter than handing them to a thread is run on the loop itself. Should such a run get stuck all the same, the
    thread ends it, and after a few of those the session stays in its thread for good; so only sessions that can be
    ended (`terminate`) are ever run on the loop. `submit` may be called from the loop only, and `done` is called on it.

    Args:
        inline_below_ns: how short the runs must usually be for that.
    """

    def __init__(self, name: str, session: RunsArrays, *, inline_below_ns: int = INLINE_BELOW_NS) -> None:
        self._session = session
        self._may_inline = hasattr(session, "terminate")
        self._inline_below_ns = inline_below_ns
        self._inline = False
        self._quick_left = QUICK_RUNS
        self._inline_since_ns = 0
        self._stuck_left = STUCK_RUNS
        self._queued = 0
        self._jobs: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, Call, Done] | _Signal] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"canarium-{name}", daemon=True)
        self._thread.start()

    @property
    def inline(self) -> bool:
        """Whether the next batch will be run on the loop."""
        return self._inline and not self._queued

    def submit(self, call: Call, done: Done) -> None:
        """Call `call()` after what was submitted before; then `done(outputs, error)`, maybe before this returns."""
        if self._inline and not self._queued:
            outputs: dict[str, np.ndarray] | None = None
            error: BaseException | None = None
            try:
                outputs = self.run_now(call)
            except BaseException as raised:  # whatever it is, it is the session's failure and must not end the loop
                error = raised
            done(outputs, error)
            return
        self._queued += 1
        self._jobs.put((asyncio.get_running_loop(), call, done))

    def terminate(self) -> None:
        """Ask the runtime to abandon the run in progress, where it offers that."""
        terminate = getattr(self._session, "terminate", None)
        if terminate is not None:
            terminate()

    def stop(self) -> None:
        """End the thread after the submitted runs, closing the session there. Does not wait."""
        self._inline = False
        self._jobs.put(_Signal.STOP)

    def run_now(self, call: Call) -> dict[str, np.ndarray]:
        """Call `call()` on the loop; for when `inline` says so. Raises what it raises."""
        self._inline_since_ns = time.monotonic_ns()
        began = time.thread_time_ns()  # processor time: what else the machine does says nothing of the session
        try:
            return call()
        finally:
            self._inline_since_ns = 0
            if time.thread_time_ns() - began > SLOW_FACTOR * self._inline_below_ns:
                self._not_inline()

    def _not_inline(self) -> None:
        self._inline, self._quick_left = False, QUICK_RUNS_AGAIN

    def _finished(
        self, took_ns: int, done: Done, outputs: dict[str, np.ndarray] | None, error: BaseException | None
    ) -> None:
        """On the loop, after a run in the thread."""
        self._queued -= 1
        if self._may_inline:
            if took_ns >= self._inline_below_ns:
                self._quick_left = max(self._quick_left, QUICK_RUNS)
            elif self._quick_left > 0:
                self._quick_left -= 1
                if not self._quick_left:
                    self._inline = True
                    self._jobs.put(_Signal.WATCH)
        done(outputs, error)

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=STUCK_S if self._inline else None)
            except queue.Empty:
                self._end_stuck()
                continue
            if job is _Signal.STOP:
                break
            if isinstance(job, _Signal):
                continue
            loop, call, done = job
            outputs: dict[str, np.ndarray] | None = None
            error: BaseException | None = None
            began = time.thread_time_ns()
            try:
                outputs = call()
            except BaseException as raised:  # whatever it is, it is the session's failure and must not end the thread
                error = raised
            try:
                loop.call_soon_threadsafe(self._finished, time.thread_time_ns() - began, done, outputs, error)
            except RuntimeError:  # the loop is closed: nobody is left to tell
                return
            del job, call, done, outputs, error  # hold no arrays while waiting for the next batch
        self._session.close()

    def _end_stuck(self) -> None:
        since_ns = self._inline_since_ns
        if since_ns and time.monotonic_ns() - since_ns > STUCK_S * 1e9:
            self._stuck_left -= 1
            self._may_inline = self._stuck_left > 0
            self._not_inline()
            self.terminate()
