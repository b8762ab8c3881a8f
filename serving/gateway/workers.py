"""Those who run batches: a session in this process, a replica's Unix socket, a Serve handle.

The batcher neither knows nor cares which: all follow `Worker`. A worker whose `run` is
cancelled (the batcher does so when a batch is overdue) takes no more until it answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import numpy as np

from serving.contract import Cause
from serving.gateway.auditor import Auditor
from serving.gateway.frames import MAX_FRAME, FrameError, FrameKind, decode, encode
from serving.gateway.sockets import SocketPool, SocketWorker
from serving.gateway.threads import RunsArrays, SessionThread, short_message
from serving.gateway.worker_base import RunNow, Worker, WorkerBase, WorkerFailure

__all__ = ["HandleWorker", "LocalWorker", "SocketPool", "SocketWorker", "Worker", "WorkerFailure"]

log = logging.getLogger(__name__)


class LocalWorker(WorkerBase):
    """A colocated variant: a session in this process, run in a thread of its own."""

    def __init__(self, name: str, session: RunsArrays, auditor: Auditor | None = None) -> None:
        super().__init__(name)
        self._session = session
        self._auditor = auditor
        self._thread = SessionThread(name, session)
        self._overdue = 0
        self._closed = False

    @property
    def available(self) -> bool:
        return not self._overdue and not self._closed

    @property
    def hung(self) -> bool:
        return bool(self._overdue)

    @property
    def run_now(self) -> RunNow | None:
        return self._run_now if self._thread.inline and self.available else None

    def _run_now(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            outputs = self._thread.run_now(partial(self._session.run, inputs))
        except Exception as error:
            log.warning("%s: a batch failed", self.name, exc_info=error)
            raise WorkerFailure(Cause.ERROR, short_message(error)) from error
        self._audit(inputs)
        return outputs

    def _audit(self, inputs: Mapping[str, np.ndarray]) -> None:
        if self._auditor is not None:
            self._audited(self._auditor.take())
            self._auditor.offer(inputs)

    async def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not self.available:
            raise WorkerFailure(Cause.TIMEOUT if self._overdue else Cause.DIED, f"{self.name} takes no batches now")
        future: asyncio.Future[dict[str, np.ndarray]] = asyncio.get_running_loop().create_future()

        def done(outputs: dict[str, np.ndarray] | None, error: BaseException | None) -> None:
            if future.cancelled():
                self._overdue -= 1
                self._changed()
            elif error is not None or outputs is None:
                log.warning("%s: a batch failed", self.name, exc_info=error)
                future.set_exception(WorkerFailure(Cause.ERROR, short_message(error or TypeError("no outputs"))))
            else:
                future.set_result(outputs)

        self._thread.submit(partial(self._session.run, inputs), done)
        try:
            outputs = await future
        except asyncio.CancelledError:
            if future.cancelled():
                self._overdue += 1
                self._thread.terminate()
                self._changed()
            raise
        self._audit(inputs)
        return outputs

    async def close(self) -> None:
        self._closed = True
        self.on_audits = None
        self._thread.stop()


class HandleWorker(WorkerBase):
    """An isolated variant on another node: the same frames through an asynchronous call.

    Args:
        call: takes a frame, returns the answer's frame; raises if no replica answered.
        retry_s: for how long a failed call makes the worker unavailable.
    """

    def __init__(
        self, name: str, call: Callable[[bytes], Awaitable[bytes]], *, retry_s: float = 0.5, max_frame: int = MAX_FRAME
    ) -> None:
        super().__init__(name)
        self.rank = 1
        self._call = call
        self._retry_s = retry_s
        self._max_frame = max_frame
        self._last_id = 0
        self._overdue = 0
        self._resting: asyncio.TimerHandle | None = None
        self._calls: set[asyncio.Future[bytes]] = set()
        self._closed = False

    @property
    def available(self) -> bool:
        return not self._overdue and self._resting is None and not self._closed

    @property
    def hung(self) -> bool:
        return bool(self._overdue)

    async def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._last_id += 1
        try:
            request = b"".join(encode(FrameKind.RUN, self._last_id, inputs, self._max_frame))
        except FrameError as error:
            raise WorkerFailure(Cause.ERROR, f"the batch cannot be sent to {self.name}: {error}") from error
        answer: asyncio.Future[bytes] = asyncio.ensure_future(self._ask(request))
        self._calls.add(answer)
        answer.add_done_callback(self._calls.discard)
        try:
            frame = decode(await asyncio.shield(answer), self._max_frame)
        except asyncio.CancelledError:
            if not answer.done():
                self._overdue += 1
                self._changed()
                answer.add_done_callback(self._answered_late)
                raise
            if not answer.cancelled():
                raise
            self._rest()
            raise WorkerFailure(Cause.DIED, f"{self.name}: the call was cancelled") from None
        except FrameError as error:
            self._rest()
            raise WorkerFailure(Cause.DIED, f"{self.name} sent a malformed frame: {error}") from error
        except Exception as error:
            self._rest()
            raise WorkerFailure(Cause.DIED, f"{self.name}: {short_message(error)}") from error
        return self._outputs(frame)

    async def close(self) -> None:
        self._closed = True
        self.on_audits = None
        if self._resting is not None:
            self._resting.cancel()
        for answer in tuple(self._calls):
            answer.cancel()

    async def _ask(self, request: bytes) -> bytes:
        return await self._call(request)

    def _answered_late(self, answer: asyncio.Future[bytes]) -> None:
        self._overdue -= 1
        if not answer.cancelled() and answer.exception() is not None:
            self._rest()
        self._changed()

    def _rest(self) -> None:
        if self._resting is None and not self._closed:
            self._resting = asyncio.get_running_loop().call_later(self._retry_s, self._rested)
            self._changed()

    def _rested(self) -> None:
        self._resting = None
        self._changed()
