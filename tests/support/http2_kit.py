"""An application that echoes when it is told to, and the `h2` library as an independent peer of the server."""

from __future__ import annotations

import asyncio
import struct
from collections import defaultdict

import h2.config
import h2.connection
import h2.events
import hpack

from serving.transport.grpc_calls import GrpcReply
from serving.transport.hpack import Headers
from serving.transport.http2 import Http2Server
from tests.support.transport import FakeTransport, turns

_FIELDS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/s/Echo"),
    (":authority", "h"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
PROTOCOL_ERROR, FLOW_CONTROL, STREAM_CLOSED, FRAME_SIZE, COMPRESSION, CALM = 1, 3, 5, 6, 9, 11
UPDATE = struct.Struct(">I").pack


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def block(path: str = "/s/Echo", **more: str) -> bytes:
    return hpack.Encoder().encode(headers(path, **more))


def message(payload: bytes) -> bytes:
    return b"\0" + len(payload).to_bytes(4) + payload


def headers(path: str = "/s/Echo", **more: str) -> list[tuple[str, str]]:
    return [(name, path if name == ":path" else value) for name, value in _FIELDS] + list(more.items())


class Call:
    """`/s/Echo` echoes, `/s/Wait` does when the test says so, `/s/No` is refused, `/s/Breaks` raises."""

    def __init__(self, app: App, given: Headers) -> None:
        self.app, self.headers = app, given
        self.path = given.get(b":path", b"").decode()
        self.held = 0
        self.ended = self.cancelled = False
        self.refusal = GrpcReply(12, message="no 100 % sure: ü") if self.path == "/s/No" else None
        self.gate = asyncio.Event()

    def receive(self, count: int) -> bool:
        self.held += count
        self.app.held += count
        if self.held > self.app.limit:
            self.refusal = GrpcReply(8, message="too large")
            return False
        return True

    async def respond(self, body: bytes) -> GrpcReply:
        self.app.asked.append(self.path)
        if self.path == "/s/Wait":
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        if self.path == "/s/Breaks":
            raise ValueError("an application must not")
        return GrpcReply(0, body[5:])

    def end(self) -> None:
        self.app.held -= self.held
        self.held = 0
        self.ended = True


class App:
    def __init__(self) -> None:
        self.limit = 8 << 20
        self.held = 0
        self.begun: list[Call] = []
        self.asked: list[str] = []

    def begin(self, given: Headers, peer: str) -> Call:
        call = Call(self, given)
        self.begun.append(call)
        return call


class Peer(FakeTransport):
    """One client. What the server says is checked by `h2` and kept by stream."""

    def __init__(self, server: Http2Server, *, hello: bool = True) -> None:
        super().__init__(server.connection)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.data: dict[int, bytes] = defaultdict(bytes)
        self.trailers: dict[int, dict[bytes, bytes]] = {}
        self.first: dict[int, dict[bytes, bytes]] = {}
        self.resets: dict[int, int] = {}
        self.frames: list[int] = []  # bytes of each DATA frame
        self.goaway: int | None = None
        self.acknowledged: list[bytes] = []  # of PINGs
        self.acknowledge = True  # give the windows of what is received back at once
        if hello:
            self.h2.initiate_connection()
            self.flush()
            self.read()

    def flush(self, size: int = 1 << 18) -> None:
        """Send what `h2` has to say."""
        self.feed(self.h2.data_to_send(), size)

    def read(self) -> None:
        """Take in what the server has said."""
        while data := self.take():
            for event in self.h2.receive_data(data):
                self._seen(event)
            self.flush()

    def _seen(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self.first[event.stream_id] = dict(event.headers)
            if event.stream_ended:
                self.trailers[event.stream_id] = dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            self.data[event.stream_id] += event.data
            self.frames.append(len(event.data))
            if self.acknowledge and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.TrailersReceived):
            self.trailers[event.stream_id] = dict(event.headers)
        elif isinstance(event, h2.events.StreamReset):
            self.resets[event.stream_id] = int(event.error_code)
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = int(event.error_code)
        elif isinstance(event, h2.events.PingAckReceived):
            self.acknowledged.append(event.ping_data)

    def open(self, path: str = "/s/Echo", *, end: bool = False, **more: str) -> int:
        """Begin a call."""
        number: int = self.h2.get_next_available_stream_id()
        self.h2.send_headers(number, headers(path, **more), end_stream=end)
        self.flush()
        return number

    async def send(self, number: int, data: bytes, *, end: bool = True, padding: int | None = None) -> None:
        """Send DATA as the server's windows allow it."""
        at = 0
        while at < len(data) or end:
            room = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size)
            room -= 0 if padding is None else padding + 1
            piece = data[at : at + room]
            assert room > 0 or not data, "the server's window stays shut"
            at += len(piece)
            last = at >= len(data)
            self.h2.send_data(number, piece, end_stream=end and last, pad_length=padding)
            self.flush()
            await turns(2)
            self.read()
            if last:
                break

    async def call(self, payload: bytes, path: str = "/s/Echo", **more: str) -> int:
        """One whole call; returns its stream."""
        number = self.open(path, **more)
        await self.send(number, message(payload))
        await turns()
        self.read()
        return number

    def status(self, number: int) -> int:
        return int(self.trailers[number][b"grpc-status"])
