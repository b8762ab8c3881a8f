"""The load generator's HTTP client against a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from loadtests.transport import HttpTransport, Request, Response, TransportError
from serving.processes import free_ports

pytestmark = pytest.mark.integration


class Server:
    """Answers every request with the next prepared bytes; None hangs, b"" closes the connection."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.heads: list[bytes] = []
        self.connections = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                await reader.readexactly(length)
                self.heads.append(head)
                answer = self.answers.pop(0)
                if answer is None:
                    await asyncio.sleep(30)
                if not answer:
                    return
                writer.write(answer)
                if b"connection: close" in answer.lower() or b"HTTP/1.0" in answer:
                    await writer.drain()
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def talking_to(*answers: bytes | None, timeout_s: float = 20) -> AsyncIterator[tuple[Server, HttpTransport]]:
    server = Server(*answers)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    transport = HttpTransport(f"http://127.0.0.1:{port}/prefix", timeout_s=timeout_s)
    try:
        yield server, transport
    finally:
        await transport.close()
        listening.close()


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", "")
    return "\r\n".join(lines).encode() + body


async def test_one_connection_is_kept_and_used_again() -> None:
    async with talking_to(answer(b"one", "X-Canarium-Variant: int8"), answer(b"", status="503 No")) as (server, http):
        first = await http.send(Request("/infer", b"{}", (("x-user-id", "u"),)))
        second = await http.send(Request("/infer", b"{}"))
    assert first == Response(200, {"content-length": "3", "x-canarium-variant": "int8"}, b"one")
    assert second.status == 503
    assert server.connections == 1
    assert server.heads[0].startswith(b"POST /prefix/infer HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"x-user-id: u\r\n" in server.heads[0]


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: v\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nabcde",
        b"HTTP/1.0 200 OK\r\n\r\nabcde",
    ],
    ids=["chunked", "closing", "until the end"],
)
async def test_every_way_to_end_a_body_is_understood(data: bytes) -> None:
    async with talking_to(data, data) as (_, http):
        assert (await http.send(Request("/"))).body == b"abcde"
        assert (await http.send(Request("/"))).body == b"abcde"


async def test_many_at_once_use_many_connections() -> None:
    async with talking_to(*[answer(b"x")] * 8) as (server, http):
        await asyncio.gather(*(http.send(Request("/")) for _ in range(8)))
    assert server.connections == 8


@pytest.mark.parametrize(
    ("data", "cause"),
    [(b"", "connection lost"), (None, "no answer within 0.2 s"), (b"SSH-2.0\r\n\r\n", "not an HTTP/1.1 answer")],
)
async def test_no_answer_has_a_countable_cause(data: bytes | None, cause: str) -> None:
    async with talking_to(data, answer(b"again"), timeout_s=0.2 if data is None else 20) as (server, http):
        with pytest.raises(TransportError, match=cause):
            await http.send(Request("/"))
        http._timeout_s = 20
        server.answers[:] = [answer(b"again")] * 2  # one that is late may not have got its own, or come for it yet
        assert (await http.send(Request("/"))).body == b"again"  # on a connection of its own


async def test_nobody_listening_is_refused() -> None:
    (port,) = free_ports(1)
    with pytest.raises(TransportError, match="connection refused"):
        await HttpTransport(f"http://127.0.0.1:{port}").send(Request("/"))


@pytest.mark.parametrize("url", ["https://127.0.0.1:1", "127.0.0.1:1", "http://"])
def test_an_address_that_it_cannot_use_is_refused(url: str) -> None:
    make: Callable[[str], HttpTransport] = HttpTransport
    with pytest.raises(ValueError, match="expected http://host:port"):
        make(url)
