"""HTTP/1.1 over real sockets, with the standard library and plain bytes as clients."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.transport.http1 import Http1Server
from tests.support.http1_kit import App, get, post
from tests.support.served import Served, served
from tests.support.stack import wait_for

pytestmark = pytest.mark.integration


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def server(app: App) -> Iterator[Served]:
    with served(lambda: Http1Server(app)) as running:
        yield running


def connect(server: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def test_many_connections_that_stay_open(server: Served, app: App) -> None:
    def client(number: int) -> list[bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        bodies = []
        for turn in range(30):
            connection.request("POST", "/echo", b"%d-%d" % (number, turn) * (turn * turn + 1))
            bodies.append(connection.getresponse().read())
        connection.close()
        return bodies

    with ThreadPoolExecutor(32) as pool:
        for number, bodies in enumerate(pool.map(client, range(64))):
            assert bodies == [b"%d-%d" % (number, turn) * (turn * turn + 1) for turn in range(30)]
    wait_for(lambda: not server.server.connections)
    assert app.held == 0


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_comes_back_whole(server: Served, app: App, chunked: bool) -> None:
    app.limit = 64 << 20
    body = bytes(range(256)) * (40 << 12)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    if chunked:
        pieces = (body[at : at + 300_000] for at in range(0, len(body), 300_000))
        connection.request("POST", "/echo", pieces, encode_chunked=True, headers={"transfer-encoding": "chunked"})
    else:
        connection.request("POST", "/echo", body)
    assert connection.getresponse().read() == body
    connection.close()


def test_a_client_that_sends_too_much_can_read_why(server: Served, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that closes while bytes are under way resets the connection, and the answer is lost with it."""
    monkeypatch.setattr("serving.transport.http1.LINGER_S", 60.0)  # this client is not one that never ends
    app.limit = 100_000
    for _ in range(20):
        with connect(server) as client:
            client.sendall(post(bytes(8_000_000)))
            answer = b""
            while piece := client.recv(65_536):
                answer += piece
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert answer.endswith(b"too large")
    assert app.held == 0


def test_a_client_that_goes_away_takes_its_work_with_it(server: Served, app: App) -> None:
    waiting, sending = connect(server), connect(server)
    waiting.sendall(get("/wait"))
    sending.sendall(post(bytes(50_000))[:-1])
    wait_for(lambda: app.asked and app.held == 50_000 - 1)
    waiting.close()
    sending.close()
    wait_for(lambda: all(exchange.ended for exchange in app.begun))
    assert app.held == 0
    wait_for(lambda: any(exchange.cancelled for exchange in app.begun))


@pytest.mark.parametrize("first", [b"", get("/large") * 45 + b"nonsense\r\n\r\n"], ids=["valid", "refused"])
def test_a_client_that_does_not_read_does_not_make_the_server_work_or_hoard(
    server: Served, app: App, first: bytes
) -> None:
    with connect(server) as client:
        client.sendall(first)
        client.setblocking(False)
        requests, sent = get("/large") * 50, 0
        still, answered = 0, -1
        deadline = time.monotonic() + 20
        while still < 20:  # until nothing more goes out and nothing more is answered
            assert time.monotonic() < deadline, "the server goes on reading"
            try:
                sent, still = sent + client.send(requests[sent % len(requests) :]), 0
            except BlockingIOError:
                time.sleep(0.05)
                still = still + 1 if len(app.asked) == answered else 0
                answered = len(app.asked)
        assert sent > len(requests)  # and then the server read no more
        assert answered < 300  # 100 kB each: what the two socket buffers hold


def test_draining_lets_no_answer_get_lost(server: Served, app: App) -> None:
    with ThreadPoolExecutor(8) as pool:

        def ask(_: int) -> int:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
            connection.request("GET", "/wait")
            return connection.getresponse().status

        answers = [pool.submit(ask, number) for number in range(8)]
        wait_for(lambda: len(app.asked) == 8)

        async def drain() -> None:
            for exchange in app.begun:
                exchange.gate.set()
            await server.server.drain(10)

        server.call(drain)
        assert [answer.result(10) for answer in answers] == [200] * 8
