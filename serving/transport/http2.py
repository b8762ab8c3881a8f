"""gRPC over HTTP/2 on asyncio: unary calls, one task a call, one write an answer.

Own code because the gRPC library's asyncio server takes four times as long for a call on one connection
(measured: `loadtests/RESULTS.md`). What a server of unary calls needs of RFC 9113 is here, no more: no push,
no priorities, no streaming calls. Every peer's resources are bounded: streams, header blocks, resets, windows.
Sources: RFC 9113; gRPC over HTTP/2 (`PROTOCOL-HTTP2.md` of the gRPC project).
"""

from __future__ import annotations

import asyncio
import contextlib

from serving.transport.frames import NO_ERROR
from serving.transport.grpc_calls import GrpcApp
from serving.transport.http2_connection import PATIENCE_S, Http2Connection

#: Connections of one server.
MAX_CONNECTIONS = 4096
#: Seconds between two looks at what has waited too long.
SWEEP_S = 1.0


class Http2Server:
    """All connections of one process.

    Args:
        app: answers calls.
        max_connections: more are closed at once and counted in `refused`.
    """

    def __init__(self, app: GrpcApp, *, max_connections: int = MAX_CONNECTIONS) -> None:
        self.app = app
        self.max_connections = max_connections
        self.refused = 0
        self.draining = False
        self.connections: set[Http2Connection] = set()
        self.now = 0.0  # loop time, as of the last sweep
        self._empty = asyncio.Event()
        self._sweeper: asyncio.TimerHandle | None = None

    def connection(self) -> Http2Connection:
        """The protocol factory for `loop.create_server`."""
        if self._sweeper is None:
            self._sweep()
        return Http2Connection(self)

    def closed(self, connection: Http2Connection) -> None:
        """A connection is no more."""
        self.connections.discard(connection)
        if self.draining and not self.connections:
            self._empty.set()

    async def drain(self, limit_s: float) -> None:
        """Answer the calls under way and take no new ones; after `limit_s` seconds hang up."""
        self.draining = True
        for connection in tuple(self.connections):
            connection.go_away(NO_ERROR)
        if self.connections:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await self._empty.wait()
        for connection in tuple(self.connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self.now = loop.time()
        for connection in tuple(self.connections):
            connection.sweep(self.now - PATIENCE_S)
        self._sweeper = loop.call_later(SWEEP_S, self._sweep)
