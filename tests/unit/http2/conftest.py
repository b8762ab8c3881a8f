"""A server of HTTP/2 and one client of it, without sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from serving.transport.http2 import Http2Server
from tests.support.http2_kit import App, Peer
from tests.support.transport import LoopClock, turns


@pytest.fixture
async def app() -> App:
    return App()


@pytest.fixture
async def server(app: App) -> AsyncIterator[Http2Server]:
    server = Http2Server(app, max_connections=3)
    yield server
    await server.drain(0)
    await turns()


@pytest.fixture
async def peer(server: Http2Server) -> Peer:
    return Peer(server)


@pytest.fixture
async def clock() -> LoopClock:
    return LoopClock()
