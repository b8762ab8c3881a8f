"""The server inside an isolated variant's replica: frames in, batches through one session, frames out.

It listens on a Unix socket of its own (mode 0600, in a directory of mode 0700), which appears
under its final name only once it accepts connections. One thread runs one batch at a time, in
order of arrival over all connections; the event loop answers pings meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast

import numpy as np

from serving.clock import Clock, SystemClock
from serving.contract import Cause
from serving.errors import StartError
from serving.gateway.auditor import AUDIT, Auditor, packed
from serving.gateway.frames import (
    HEADER,
    MAX_FRAME,
    Buffer,
    Frame,
    FrameError,
    FrameKind,
    FrameReader,
    decode,
    encode,
    encode_error,
    encode_text,
)
from serving.gateway.threads import RunsArrays, SessionThread, short_message

log = logging.getLogger(__name__)

#: Runs shorter than this (ns) are done on the loop, which has nothing else to do but to answer pings.
INLINE_BELOW_NS = 2_000_000
#: sun_path holds 108 bytes, the closing zero included.
MAX_SOCKET_PATH = 107
#: Where a frame says its kind.
_KIND = 4

_Reply = Callable[[list[Buffer]], None]


class _AbandonedError(Exception):
    """The caller of a queued batch hung up before its turn."""


class WorkerServer:
    """Serves one session.

    Args:
        session: runs the batches; closed with the server.
        socket_path: where to listen; None to serve `handle_frame` only.
        clock: measures runs.
        max_queue: batches waiting or running, over all connections; more get OVERLOADED.
        max_connections: connections at once; more are closed.
        on_batch: called on the loop with rows and nanoseconds of every batch that succeeded.
        description: what DESCRIBE answers, JSON-encodable.
        auditor: looks at one row of a batch now and then, once that is answered; its audits go with later answers.
    """

    def __init__(
        self,
        session: RunsArrays,
        socket_path: str | os.PathLike[str] | None,
        *,
        clock: Clock | None = None,
        max_queue: int = 32,
        max_connections: int = 128,
        max_frame: int = MAX_FRAME,
        on_batch: Callable[[int, int], None] | None = None,
        description: Mapping[str, Any] | None = None,
        auditor: Auditor | None = None,
    ) -> None:
        self.path = os.fspath(socket_path) if socket_path is not None else None
        self._session = session
        self._clock = clock or SystemClock()
        self._max_queue = max_queue
        self._max_connections = max_connections
        self._max_frame = max_frame
        self._on_batch = on_batch
        self._auditor = auditor
        self._description = {**(description or {}), "pid": os.getpid()}
        self._thread = SessionThread(os.path.basename(self.path or "worker"), session, inline_below_ns=INLINE_BELOW_NS)
        self._connections: set[_Connection] = set()
        self._server: asyncio.AbstractServer | None = None
        self._inode = 0
        self._open = 0
        self._busy_since_ns = 0
        self._closing = False
        self._settled = asyncio.Event()

    @property
    def busy_since_ns(self) -> int:
        """Monotonic time at which the running batch began; 0 when idle. A health check compares it."""
        return self._busy_since_ns

    @property
    def queued(self) -> int:
        """Batches waiting or running."""
        return self._open

    async def start(self) -> None:
        """Listen, replacing a stale socket file. Raises `StartError`."""
        if self.path is None:
            return
        try:
            listener, self._inode = _listen(self.path)
        except OSError as error:
            raise StartError(f"cannot listen on {self.path}: {error.strerror or error}") from error
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: _Connection(self), sock=listener)

    async def close(self, drain_s: float = 5.0) -> None:
        """Take the socket away, let gateways finish what they have sent, then hang up.

        Args:
            drain_s: for how long to wait for open batches and for the gateways to hang up.
        """
        if self._closing:
            return
        self._closing = True
        if self._server is not None and self.path is not None:
            _unlink_own(self.path, self._inode)
            self._server.close()
        for connection in tuple(self._connections):
            connection.send([encode_text(FrameKind.LEAVING, 0)])
        try:
            async with asyncio.timeout(drain_s):
                self._settle()
                await self._settled.wait()
        except TimeoutError:
            log.warning("closing with %d batches open", self._open)
        for connection in tuple(self._connections):
            connection.abort()
        self._thread.stop()

    async def handle_frame(self, frame: bytes) -> bytes:
        """Answer one frame that came another way (a Serve handle). Never raises for a bad frame."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def reply(buffers: list[Buffer]) -> None:
            if not future.done():
                future.set_result(b"".join(buffers))

        try:
            self._handle(decode(frame, self._max_frame), reply, future.cancelled)
        except FrameError as error:
            return encode_error(_request_id(frame), Cause.ERROR, f"malformed frame: {error}")
        return await future

    def _settle(self) -> None:
        if self._closing and not self._open and not self._connections:
            self._settled.set()

    def _handle(self, frame: Frame, reply: _Reply, gone: Callable[[], bool]) -> None:
        number = frame.request_id
        if frame.kind is FrameKind.RUN:
            self._enqueue(frame, reply, gone)
        elif frame.kind is FrameKind.PING:
            since = self._busy_since_ns
            busy_ns = self._clock.monotonic_ns() - since if since else 0
            reply([encode_text(FrameKind.PONG, number, json.dumps({"busy_ns": busy_ns, "queued": self._open}))])
        elif frame.kind is FrameKind.DESCRIBE:
            reply([encode_text(FrameKind.DESCRIPTION, number, json.dumps(self._description))])
        else:
            raise FrameError(f"a worker takes RUN, PING and DESCRIBE, not {frame.kind.name}")

    def _enqueue(self, frame: Frame, reply: _Reply, gone: Callable[[], bool]) -> None:
        number = frame.request_id
        if self._open >= self._max_queue:
            message = f"the worker's queue is full ({self._max_queue} batches)"
            reply([encode_error(number, Cause.OVERLOADED, message)])
            return
        self._open += 1
        took_ns = 0

        def run() -> dict[str, np.ndarray]:
            nonlocal took_ns
            if gone():
                raise _AbandonedError
            started = self._busy_since_ns = self._clock.monotonic_ns()
            try:
                return self._session.run(frame.tensors)
            finally:
                self._busy_since_ns = 0
                took_ns = self._clock.monotonic_ns() - started

        def done(outputs: dict[str, np.ndarray] | None, error: BaseException | None) -> None:
            self._open -= 1
            self._settle()
            if isinstance(error, _AbandonedError):
                return
            reply(self._answer(number, outputs, error, took_ns))
            if error is None and self._on_batch is not None:
                self._on_batch(_rows(frame.tensors), took_ns)
            if error is None and self._auditor is not None:
                self._auditor.offer(frame.tensors)

        self._thread.submit(run, done)

    def _answer(
        self, number: int, outputs: dict[str, np.ndarray] | None, error: BaseException | None, took_ns: int
    ) -> list[Buffer]:
        if error is None:
            try:
                return self._success(number, outputs or {}, took_ns)
            except Exception as unfit:  # outputs that are not arrays, or not of a kind that travels
                error = unfit
        log.warning("a batch failed", exc_info=error)
        return [encode_error(number, Cause.ERROR, short_message(error))]

    def _success(self, number: int, outputs: dict[str, np.ndarray], took_ns: int) -> list[Buffer]:
        """The answer's frame, with the audits that were finished meanwhile; without them if they do not fit.

        Raises what `encode` raises.
        """
        if self._auditor is not None and (audits := self._auditor.take()):
            with suppress(FrameError):
                return encode(FrameKind.OK, number, outputs | {AUDIT: packed(audits)}, self._max_frame, took_ns)
        return encode(FrameKind.OK, number, outputs, self._max_frame, took_ns)


class _Connection(asyncio.BufferedProtocol):
    """One gateway."""

    def __init__(self, server: WorkerServer) -> None:
        self._worker = server
        self._reader = FrameReader(server._max_frame)
        self._transport: asyncio.Transport | None = None

    def gone(self) -> bool:
        return self._transport is None

    def send(self, buffers: list[Buffer]) -> None:
        if self._transport is None:
            return
        if len(buffers) == 1:
            self._transport.write(buffers[0])
        elif sum(map(len, buffers)) <= 1 << 16:
            self._transport.write(b"".join(buffers))
        else:
            self._transport.writelines(buffers)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        if len(self._worker._connections) >= self._worker._max_connections or self._worker._closing:
            self._drop("the worker takes no more connections")
            return
        self._worker._connections.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for raw in self._reader.received(nbytes):
                try:
                    self._worker._handle(decode(raw, self._worker._max_frame), self.send, self.gone)
                except FrameError as error:
                    if raw[_KIND] != FrameKind.RUN:
                        self._drop(f"malformed frame: {error}", _request_id(raw))
                        return
                    # Where it ends is known: one batch fails, and not all that are under way on this connection.
                    log.error("a batch cannot be read: %s", error)
                    self.send([encode_error(_request_id(raw), Cause.ERROR, f"malformed frame: {error}")])
        except FrameError as error:
            self._drop(f"malformed frame: {error}")

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._worker._connections.discard(self)
        self._worker._settle()

    def pause_writing(self) -> None:  # the peer does not read its answers: take no more of its batches
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def _drop(self, why: str, request_id: int = 0) -> None:
        log.error("a connection is dropped: %s", why)
        if self._transport is not None:
            self._transport.write(encode_error(request_id, Cause.ERROR, why))
            self._transport.close()


def _listen(path: str) -> tuple[socket.socket, int]:
    directory = os.path.dirname(path) or "."
    early = os.path.join(directory, f".{os.getpid()}")
    if max(len(os.fsencode(path)), len(os.fsencode(early))) > MAX_SOCKET_PATH:
        raise StartError(
            f"the socket path {path} is longer than the {MAX_SOCKET_PATH} bytes that Unix allows: "
            "use a shorter socket directory"
        )
    os.makedirs(directory, mode=0o700, exist_ok=True)
    if os.stat(directory).st_mode & 0o077:
        os.chmod(directory, 0o700)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.lexists(early):
            os.unlink(early)
        listener.bind(early)
        os.chmod(early, 0o600)
        listener.listen(128)
        os.rename(early, path)  # replaces a stale socket, and appears only now that it accepts
        return listener, os.stat(path).st_ino
    except BaseException:
        listener.close()
        raise


def _unlink_own(path: str, inode: int) -> None:
    try:
        if os.stat(path).st_ino == inode:
            os.unlink(path)
    except OSError:
        pass


def _request_id(raw: Buffer) -> int:
    return int(HEADER.unpack_from(raw)[4]) if len(raw) >= HEADER.size else 0


def _rows(tensors: Mapping[str, np.ndarray]) -> int:
    first = next(iter(tensors.values()), None)
    return int(first.shape[0]) if first is not None and first.ndim else 1
