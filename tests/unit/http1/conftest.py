"""A server of HTTP/1.1 and one client of it, without sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from serving.transport.http1 import Http1Server
from tests.support.http1_kit import App, Peer
from tests.support.transport import LoopClock, turns


@pytest.fixture
async def app() -> App:
    return App()


@pytest.fixture
async def server(app: App) -> AsyncIterator[Http1Server]:
    server = Http1Server(app, max_connections=3)
    yield server
    await server.drain(0)
    await turns()


@pytest.fixture
async def peer(server: Http1Server) -> Peer:
    return Peer(server)


@pytest.fixture
async def clock() -> LoopClock:
    return LoopClock()
