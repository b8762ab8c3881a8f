"""A transport on a real socket, in a thread of its own, for clients that block."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvloop

from serving.transport.http1 import Http1Server
from serving.transport.http2 import Http2Server
from serving.transport.listeners import listen


class Served:
    """A running server; `port` is where. `call` runs something on its loop."""

    def __init__(self, server: Http1Server | Http2Server) -> None:
        self.server = server
        self.loop = uvloop.new_event_loop()
        self._socket = listen("127.0.0.1", 0)
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._listener = self.call(lambda: self.loop.create_server(self.server.connection, sock=self._socket))

    def call(self, make: Callable[[], Any]) -> Any:
        """The result of an awaitable that is made and awaited on the loop."""

        async def run() -> Any:
            return await make()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(60)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self._listener.close)
        self.call(lambda: self.server.drain(0.2))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@contextlib.contextmanager
def served(make: Callable[[], Http1Server | Http2Server]) -> Iterator[Served]:
    """A started server that is stopped, whatever happens."""
    running = Served(make())
    running.start()
    try:
        yield running
    finally:
        running.stop()
