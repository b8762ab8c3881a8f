"""An application that answers when it is told to, and a reader of answers that knows nothing of the server's code."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import h11

from serving.transport.exchanges import Head, Response
from serving.transport.http1 import Http1Server
from tests.support.transport import FakeTransport


class Answer(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Exchange:
    """Echoes its body; paths have meanings: `/wait` is answered when the test says so, `/no` is refused at once."""

    def __init__(self, app: App, head: Head) -> None:
        self.app, self.head = app, head
        self.held = 0
        self.ended = self.cancelled = False
        self.refusal = app.malformed(404, "no") if head.path == "/no" else None
        self.gate = asyncio.Event()

    def receive(self, count: int) -> bool:
        self.held += count
        self.app.held += count
        if self.held > self.app.limit:
            self.refusal = self.app.malformed(413, "too large")
            return False
        return True

    async def respond(self, body: bytes) -> Response:
        self.app.asked.append((self.head, body))
        if self.head.path == "/wait":
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        if self.head.path == "/breaks":
            raise ValueError("an application must not")
        if self.head.path == "/large":
            return Response(200, b"", [bytes(100_000)])
        return Response(200, b"x-path: %b\r\n" % self.head.path.encode(), [body])

    def end(self) -> None:
        self.app.held -= self.held
        self.held = 0
        self.ended = True


class App:
    def __init__(self) -> None:
        self.limit = 1 << 20
        self.held = 0
        self.begun: list[Exchange] = []
        self.asked: list[tuple[Head, bytes]] = []

    def begin(self, head: Head) -> Exchange:
        exchange = Exchange(self, head)
        self.begun.append(exchange)
        return exchange

    def malformed(self, status: int, message: str) -> Response:
        return Response(status, b"", [message.encode()])


class Peer(FakeTransport):
    """One client of a server."""

    def __init__(self, server: Http1Server) -> None:
        super().__init__(server.connection)

    def answers(self, *methods: str) -> list[Answer]:
        """Everything that was answered since the last time, to requests of these methods (GET, if it is not said)."""
        data, found = self.take(), []
        while data:
            client = h11.Connection(h11.CLIENT)
            method = methods[len(found)] if len(found) < len(methods) else "GET"
            client.send(h11.Request(method=method, target="/", headers=[("host", "h")]))
            client.send(h11.EndOfMessage())
            client.receive_data(data)
            body = b""
            while True:
                event = client.next_event()
                if isinstance(event, h11.Response):
                    status, headers = event.status_code, dict(event.headers)
                elif isinstance(event, h11.InformationalResponse):
                    found.append(Answer(event.status_code, {}, b""))
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    raise AssertionError(f"the answer stops: {event} after {data!r}")
            found.append(Answer(status, headers, body))
            data = client.trailing_data[0]
        return found

    def answer(self, method: str = "GET") -> Answer:
        """The one answer."""
        (only,) = self.answers(method)
        return only


def post(body: bytes, path: str = "/echo", *fields: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: h", f"content-length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def get(path: str = "/", *fields: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: h", *fields, "", ""]).encode()
