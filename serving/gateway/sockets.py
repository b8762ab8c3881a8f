"""Isolated variants on this node: connections to their replicas' Unix sockets."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from serving.clock import Clock
from serving.contract import Cause
from serving.gateway.frames import MAX_FRAME, Frame, FrameError, FrameKind, FrameReader, decode, encode, encode_text
from serving.gateway.worker_base import WorkerBase, WorkerFailure, json_object

log = logging.getLogger(__name__)

#: Frames up to this size are joined and written with one call.
_JOIN_BYTES = 1 << 16


class SocketWorker(WorkerBase, asyncio.BufferedProtocol):
    """An isolated variant on this node: one connection to one replica's Unix socket.

    Made by `SocketWorker.connect`; when the connection ends, what is in flight fails with
    DIED at once, and the worker is of no more use.
    """

    def __init__(self, name: str, *, max_frame: int = MAX_FRAME, on_lost: Callable[[SocketWorker], None] | None = None):
        super().__init__(name)
        self._max_frame = max_frame
        self._on_lost = on_lost
        self._reader = FrameReader(max_frame)
        self._transport: asyncio.Transport | None = None
        self._pending: dict[int, asyncio.Future[Frame]] = {}
        self._overdue: set[int] = set()
        self._last_id = 0
        self._leaving = False
        self._why_lost = "its connection closed"

    @classmethod
    async def connect(
        cls,
        path: str,
        name: str,
        *,
        timeout_s: float = 1.0,
        max_frame: int = MAX_FRAME,
        on_lost: Callable[[SocketWorker], None] | None = None,
    ) -> SocketWorker:
        """Connect to a replica's socket. Raises `OSError` (also on timeout)."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(timeout_s):
            worker = cls(name, max_frame=max_frame, on_lost=on_lost)
            await loop.create_unix_connection(lambda: worker, path)
        return worker

    @property
    def available(self) -> bool:
        return self._transport is not None and not self._overdue and not self._leaving

    @property
    def hung(self) -> bool:
        return bool(self._overdue)

    @property
    def connected(self) -> bool:
        """Whether the connection still stands; never true again once false."""
        return self._transport is not None

    async def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            frame = await self._ask(lambda number: encode(FrameKind.RUN, number, inputs, self._max_frame))
        except FrameError as error:
            raise WorkerFailure(Cause.ERROR, f"the batch cannot be sent to {self.name}: {error}") from error
        return self._outputs(frame)

    async def ping(self) -> dict[str, Any]:
        """Ask the replica's event loop for its state; answered even while a batch runs."""
        return json_object((await self._ask_text(FrameKind.PING)).text)

    async def describe(self) -> dict[str, Any]:
        """What the replica says of itself."""
        return json_object((await self._ask_text(FrameKind.DESCRIBE)).text)

    async def close(self) -> None:
        self.on_audits = None
        if self._transport is not None:
            self._why_lost = "it was closed"
            self._transport.abort()

    async def _ask_text(self, kind: FrameKind) -> Frame:
        frame = await self._ask(lambda number: [encode_text(kind, number)])
        if frame.kind is FrameKind.ERROR:
            raise WorkerFailure(frame.cause, frame.text)
        return frame

    async def _ask(self, build: Callable[[int], list[Any]]) -> Frame:
        transport = self._transport
        if transport is None:
            raise WorkerFailure(Cause.DIED, f"{self.name} is not connected")
        self._last_id = number = self._last_id + 1
        buffers = build(number)
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        if len(buffers) == 1 or sum(map(len, buffers)) <= _JOIN_BYTES:
            transport.write(b"".join(buffers))
        else:
            transport.writelines(buffers)
        try:
            return await future
        except asyncio.CancelledError:
            if self._pending.pop(number, None) is not None and self._transport is not None:
                self._overdue.add(number)
                self._changed()
            raise

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for frame in self._reader.received(nbytes):
                self._answered(decode(frame, self._max_frame))
        except FrameError as error:
            log.error("%s sent a malformed frame, the connection is dropped: %s", self.name, error)
            self._why_lost = f"it sent a malformed frame: {error}"
            if self._transport is not None:
                self._transport.abort()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._overdue.clear()
        pending, self._pending = self._pending, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(WorkerFailure(Cause.DIED, f"{self.name} was lost: {self._why_lost}"))
        if self._on_lost is not None:
            self._on_lost(self)
        self._changed()

    def _answered(self, frame: Frame) -> None:
        if frame.kind is FrameKind.LEAVING:
            self._leaving = True
            self._why_lost = "its replica shut down"
            self._changed()
        elif (future := self._pending.pop(frame.request_id, None)) is not None:
            if not future.done():
                future.set_result(frame)
        elif frame.request_id in self._overdue:
            self._overdue.remove(frame.request_id)
            self._changed()
        elif frame.kind is FrameKind.ERROR:  # about the connection as a whole
            self._why_lost = frame.text
        else:
            raise FrameError(f"an answer to request {frame.request_id}, which is not open")
        if self._leaving and not self._pending and not self._overdue and self._transport is not None:
            self._transport.close()


class SocketPool:
    """The connections to all replicas of one variant on this node.

    Watches a directory for `*.sock` files and connects to each: every `poll_s`, and at once
    when a connection is lost. A replica that cannot be reached is tried again with a doubling
    pause; a socket nobody listens on is removed after a few refusals.

    Args:
        directory: the variant's socket directory; it need not exist yet.
        name: the variant, for names and logs; by default the directory's last part.
        on_change: called on the loop with the live workers when the list has changed.
    """

    REFUSALS = 5

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        clock: Clock,
        on_change: Callable[[Sequence[SocketWorker]], None] | None = None,
        name: str = "",
        poll_s: float = 0.2,
        connect_timeout_s: float = 1.0,
        max_backoff_s: float = 2.0,
        max_frame: int = MAX_FRAME,
    ) -> None:
        self._directory = os.fspath(directory)
        self.name = name or os.path.basename(self._directory)
        self.on_change = on_change
        self._clock = clock
        self._poll_s = poll_s
        self._connect_timeout_s = connect_timeout_s
        self._max_backoff_s = max_backoff_s
        self._max_frame = max_frame
        self._workers: dict[_SocketKey, SocketWorker] = {}
        self._retries: dict[_SocketKey, tuple[int, int]] = {}  # attempts so far, time of the next (ns)
        self._wake: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def workers(self) -> list[SocketWorker]:
        """Workers that are connected now."""
        return list(self._workers.values())

    async def start(self) -> None:
        """Connect to what is there and begin to watch."""
        if self._task is None:
            self._wake = asyncio.Event()
            await self._scan()
            if not self._workers:
                self._tell()
            self._task = asyncio.get_running_loop().create_task(self._watch(), name=f"sockets-{self.name}")

    async def close(self) -> None:
        """Stop watching and close every connection; batches in flight fail."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        for worker in self.workers:
            await worker.close()
        self.on_change = None

    async def _watch(self) -> None:
        assert self._wake is not None
        while True:
            try:
                await self._scan()
            except Exception:
                log.exception("%s: looking for workers in %s failed", self.name, self._directory)
            try:
                async with asyncio.timeout(self._poll_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def _scan(self) -> None:
        found = _sockets(self._directory)
        now = self._clock.monotonic_ns()
        self._retries = {key: retry for key, retry in self._retries.items() if key in found}
        due = [key for key in found if key not in self._workers and self._retries.get(key, (0, 0))[1] <= now]
        if due:
            await asyncio.gather(*(self._connect(key) for key in due))

    async def _connect(self, key: _SocketKey) -> None:
        path = os.path.join(self._directory, key.file)
        try:
            worker = await SocketWorker.connect(
                path,
                f"{self.name}/{key.file.removesuffix('.sock')}",
                timeout_s=self._connect_timeout_s,
                max_frame=self._max_frame,
                on_lost=lambda _: self._lost(key),
            )
        except OSError as error:
            attempts = self._retries.get(key, (0, 0))[0] + 1
            pause = min(self._max_backoff_s, 0.05 * 2 ** min(attempts, 10))
            self._retries[key] = (attempts, self._clock.monotonic_ns() + int(pause * 1e9))
            if attempts == 1:
                log.warning("%s: cannot connect to %s: %s", self.name, path, error)
            if isinstance(error, ConnectionRefusedError) and attempts >= self.REFUSALS:
                _unlink_if_same(path, key.inode)
            return
        if not worker.connected:  # lost again before we were resumed
            return
        self._retries.pop(key, None)
        self._workers[key] = worker
        log.info("%s: connected to %s", self.name, path)
        self._tell()

    def _lost(self, key: _SocketKey) -> None:
        if self._workers.pop(key, None) is None:
            return
        log.warning("%s: lost %s", self.name, key.file)
        # The same socket again only after a pause; a new one at once.
        self._retries[key] = (1, self._clock.monotonic_ns() + 100_000_000)
        if self._wake is not None:
            self._wake.set()
        self._tell()

    def _tell(self) -> None:
        if self.on_change is not None:
            self.on_change(self.workers)


class _SocketKey(NamedTuple):
    """A socket file; the inode tells a new replica from an old one of the same name."""

    file: str
    inode: int


def _sockets(directory: str) -> set[_SocketKey]:
    try:
        with os.scandir(directory) as entries:
            return {
                _SocketKey(entry.name, entry.inode())
                for entry in entries
                if entry.name.endswith(".sock") and stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)
            }
    except FileNotFoundError:
        return set()


def _unlink_if_same(path: str, inode: int) -> None:
    try:
        if os.stat(path).st_ino == inode:
            os.unlink(path)
    except FileNotFoundError:
        pass
