"""gRPC over HTTP/2 on asyncio: unary calls, one task a call, one write an answer.

Own code because the gRPC library's asyncio server takes four times as long for a call on one connection
(measured: `loadtests/RESULTS.md`). What a server of unary calls needs of RFC 9113 is here, no more: no push,
no priorities, no streaming calls. Every peer's resources are bounded: streams, header blocks, resets, windows.
Sources: RFC 9113; gRPC over HTTP/2 (`PROTOCOL-HTTP2.md` of the gRPC project).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from typing import cast

from serving.transport.grpc_calls import GrpcApp, GrpcCall, GrpcReply
from serving.transport.hpack import MAX_BLOCK, HeaderDecoder, HeaderError, encode

log = logging.getLogger(__name__)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0x0, 0x1, 0x2, 0x3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL = 0x5, 0x6, 0x7, 0x8
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 0x9, 0xB
_MAX_STREAMS_ID, _INITIAL_WINDOW_ID, _MAX_FRAME_ID, _HEADER_LIST_ID = 3, 4, 5, 6

#: Streams at once of one connection; connections of one server.
MAX_STREAMS, MAX_CONNECTIONS = 1024, 4096
#: Bytes of one frame, of what a stream and a connection may send ahead.
MAX_FRAME, STREAM_WINDOW, CONNECTION_WINDOW = 1 << 20, 4 << 20, 16 << 20
#: Calls that a client may take back beyond those that it let finish (CVE-2023-44487).
MAX_RESETS = 1000
_LARGEST_WINDOW = (1 << 31) - 1

_FRAME = struct.Struct(">HBBBI")  # length (high 16, low 8 bits), type, flags, stream
_U32 = struct.Struct(">I")
_SETTING = struct.Struct(">HI")
_OK_HEADERS = b"\x88" + encode(
    [(b"content-type", b"application/grpc"), (b"grpc-accept-encoding", b"identity, deflate, gzip")]
)
_OK_TRAILERS = encode([(b"grpc-status", b"0")])


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
        self._empty = asyncio.Event()

    def connection(self) -> Http2Connection:
        """The protocol factory for `loop.create_server`."""
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


class _ConnectionError(Exception):
    """The peer broke the protocol; the connection ends with GOAWAY."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class _Stream:
    """One call."""

    __slots__ = ("call", "complete", "message", "outgoing", "received", "send_window", "task")

    def __init__(self, call: GrpcCall, send_window: int) -> None:
        self.call = call
        self.message: list[bytes] = []  # DATA as it came, the 5 bytes before the message included
        self.received = 0  # bytes since the last WINDOW_UPDATE
        self.complete = False  # the client has said all
        self.send_window = send_window
        self.outgoing = memoryview(b"")  # DATA that waits for the peer's window
        self.task: asyncio.Task[None] | None = None


class Http2Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: Http2Server) -> None:
        self._server = server
        self._app = server.app
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._peer = ""
        self._decoder = HeaderDecoder()
        self._rest = b""  # of a frame that has not come to its end
        self._started = False  # the client's preface has come
        self._streams: dict[int, _Stream] = {}
        self._last_stream = 0
        self._block: tuple[int, bool, bytearray] | None = None  # HEADERS that wait for CONTINUATION
        self._received = 0
        self._send_window = 65_535
        self._peer_window = 65_535  # of each new stream
        self._peer_frame = 16_384
        self._resets = 0
        self._leaving = False

    # ------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        if len(self._server.connections) >= self._server.max_connections or self._server.draining:
            self._server.refused += 1
            transport.close()
            return
        self._server.connections.add(self)
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else ""
        settings = (
            _SETTING.pack(_MAX_STREAMS_ID, MAX_STREAMS)
            + _SETTING.pack(_INITIAL_WINDOW_ID, STREAM_WINDOW)
            + _SETTING.pack(_MAX_FRAME_ID, MAX_FRAME)
            + _SETTING.pack(_HEADER_LIST_ID, MAX_BLOCK)
        )
        more = _frame(WINDOW_UPDATE, 0, 0, _U32.pack(CONNECTION_WINDOW - 65_535))
        self._transport.write(_frame(SETTINGS, 0, 0, settings) + more)

    def data_received(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._rest:
            data = self._rest + data
        at, have = 0, len(data)
        try:
            if not self._started:
                if not PREFACE.startswith(data[:24]):
                    self._not_http2()
                    return
                if have < 24:
                    self._rest = data
                    return
                self._started, at = True, 24
            while have - at >= 9:
                high, low, kind, flags, stream = _FRAME.unpack_from(data, at)
                size = high << 8 | low
                if size > MAX_FRAME:
                    raise _ConnectionError(FRAME_SIZE_ERROR, f"a frame of {size} bytes, at most {MAX_FRAME} are taken")
                end = at + 9 + size
                if end > have:
                    break
                self._frame(kind, flags, stream & _LARGEST_WINDOW, data[at + 9 : end])
                at = end
            self._rest = data[at:]
        except (_ConnectionError, HeaderError) as error:
            log.info("a gRPC connection from %s is closed: %s", self._peer, error)
            self.go_away(error.code if isinstance(error, _ConnectionError) else COMPRESSION_ERROR, close=True)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._server.closed(self)
        for stream in tuple(self._streams.values()):
            self._cancel(stream)
        self._streams.clear()

    def pause_writing(self) -> None:  # the peer does not read what it asked for: take nothing more from it
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    # ------------------------------------------------------------ frames

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._block is not None and kind != CONTINUATION:
            raise _ConnectionError(PROTOCOL_ERROR, "a header block is not continued")
        if kind == DATA:
            self._data(flags, number, payload)
        elif kind == HEADERS:
            self._headers(flags, number, payload)
        elif kind == CONTINUATION:
            self._continuation(flags, number, payload)
        elif kind == WINDOW_UPDATE:
            self._window_update(number, payload)
        elif kind == SETTINGS:
            self._settings(flags, number, payload)
        elif kind == PING:
            if len(payload) != 8 or number:
                raise _ConnectionError(FRAME_SIZE_ERROR, "a PING has 8 bytes and no stream")
            if not flags & ACK:
                self._write(_frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM:
            self._reset(number, payload)
        elif kind == PUSH_PROMISE:
            raise _ConnectionError(PROTOCOL_ERROR, "a client cannot push")
        # PRIORITY, GOAWAY and unknown kinds ask for nothing.

    def _headers(self, flags: int, number: int, payload: bytes) -> None:
        payload = _unpadded(flags, payload)
        if flags & WITH_PRIORITY:
            payload = payload[5:]
        if not number & 1:
            raise _ConnectionError(PROTOCOL_ERROR, f"HEADERS on stream {number}: clients' streams are odd")
        if flags & END_HEADERS:
            self._open(number, bool(flags & END_STREAM), payload)
        else:
            self._block = (number, bool(flags & END_STREAM), bytearray(payload))

    def _continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != number:
            raise _ConnectionError(PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        _, ended, block = self._block
        block += payload
        if len(block) > MAX_BLOCK:
            raise _ConnectionError(ENHANCE_YOUR_CALM, f"a header block is over {MAX_BLOCK} bytes")
        if flags & END_HEADERS:
            self._block = None
            self._open(number, ended, bytes(block))

    def _open(self, number: int, ended: bool, block: bytes) -> None:
        headers = self._decoder.decode(block)  # always, even of what is refused: it carries the table on
        if number in self._streams:  # trailers
            if not ended:
                raise _ConnectionError(PROTOCOL_ERROR, "trailers that do not end their stream")
            self._ended(number, self._streams[number])
            return
        if number <= self._last_stream:
            if ended:
                return  # trailers of a stream that we have closed
            raise _ConnectionError(STREAM_CLOSED, f"HEADERS on stream {number}, which is closed")
        self._last_stream = number
        if self._leaving or len(self._streams) >= MAX_STREAMS:
            self._write(_frame(RST_STREAM, 0, number, _U32.pack(REFUSED_STREAM)))
            return
        call = self._app.begin(headers, self._peer)
        stream = self._streams[number] = _Stream(call, self._peer_window)
        if call.refusal is not None:
            self._reply(number, stream, call.refusal)
        elif ended:
            self._ended(number, stream)

    def _data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)  # the padding counts as well
        self._received += size
        if self._received > CONNECTION_WINDOW:
            raise _ConnectionError(FLOW_CONTROL_ERROR, "more DATA than the connection's window")
        if self._received >= CONNECTION_WINDOW // 4:
            self._write(_frame(WINDOW_UPDATE, 0, 0, _U32.pack(self._received)))
            self._received = 0
        stream = self._streams.get(number)
        if stream is None or stream.complete:
            if number > self._last_stream or not number & 1:
                raise _ConnectionError(PROTOCOL_ERROR, f"DATA on stream {number}, which is not open")
            return  # we have answered or refused it already
        payload = _unpadded(flags, payload)
        if not stream.call.receive(len(payload)) and stream.call.refusal is not None:
            self._reply(number, stream, stream.call.refusal)
            return
        if payload:
            stream.message.append(payload)
        if flags & END_STREAM:
            self._ended(number, stream)
            return
        stream.received += size
        if stream.received >= STREAM_WINDOW // 4:
            self._write(_frame(WINDOW_UPDATE, 0, number, _U32.pack(stream.received)))
            stream.received = 0

    def _reset(self, number: int, payload: bytes) -> None:
        if len(payload) != 4 or not number:
            raise _ConnectionError(FRAME_SIZE_ERROR, "RST_STREAM has 4 bytes and a stream")
        if number > self._last_stream:
            raise _ConnectionError(PROTOCOL_ERROR, f"RST_STREAM on stream {number}, which is not open")
        if number in self._streams:
            self._abandon(number)

    def _window_update(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise _ConnectionError(FRAME_SIZE_ERROR, "WINDOW_UPDATE has 4 bytes")
        more = _U32.unpack(payload)[0] & _LARGEST_WINDOW
        if not number:
            self._send_window += more
            if not more or self._send_window > _LARGEST_WINDOW:
                raise _ConnectionError(FLOW_CONTROL_ERROR, "an impossible window")
            for waiting in [key for key, stream in self._streams.items() if stream.outgoing]:
                self._flush(waiting, self._streams[waiting])
            return
        stream = self._streams.get(number)
        if stream is None:
            return
        stream.send_window += more
        if not more or stream.send_window > _LARGEST_WINDOW:
            self._write(_frame(RST_STREAM, 0, number, _U32.pack(FLOW_CONTROL_ERROR)))
            self._abandon(number)
        elif stream.outgoing:
            self._flush(number, stream)

    def _settings(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) % 6 or (flags & ACK and payload):
            raise _ConnectionError(FRAME_SIZE_ERROR, "malformed SETTINGS")
        if flags & ACK:
            return
        for setting, value in _SETTING.iter_unpack(payload):
            if setting == _INITIAL_WINDOW_ID:
                if value > _LARGEST_WINDOW:
                    raise _ConnectionError(FLOW_CONTROL_ERROR, "an impossible initial window")
                change, self._peer_window = value - self._peer_window, value
                for stream in self._streams.values():
                    stream.send_window += change
            elif setting == _MAX_FRAME_ID:
                if not 16_384 <= value < 1 << 24:
                    raise _ConnectionError(PROTOCOL_ERROR, "an impossible frame size")
                self._peer_frame = value
        self._write(_frame(SETTINGS, ACK, 0, b""))
        for waiting in [key for key, stream in self._streams.items() if stream.outgoing]:
            self._flush(waiting, self._streams[waiting])

    # ------------------------------------------------------------ calls

    def _ended(self, number: int, stream: _Stream) -> None:
        """The client has said all: answer it."""
        if not stream.complete:
            stream.complete = True
            stream.task = self._loop.create_task(self._answer(number, stream))

    async def _answer(self, number: int, stream: _Stream) -> None:
        parts = stream.message
        message = parts[0] if len(parts) == 1 else b"".join(parts)
        stream.message = []
        try:
            reply = await stream.call.respond(message)
        except asyncio.CancelledError:
            return  # the client took its call back, or is gone
        except Exception:
            log.exception("answering a call failed")
            self._write(_frame(RST_STREAM, 0, number, _U32.pack(INTERNAL_ERROR)))
            self._cancel(stream)
            self._streams.pop(number, None)
            return
        stream.task = None
        self._resets = max(0, self._resets - 1)
        self._reply(number, stream, reply)

    def _reply(self, number: int, stream: _Stream, reply: GrpcReply) -> None:
        """Send an answer and be done with the stream; what does not fit the peer's window waits for it."""
        if reply.status:
            block = b"\x88" + encode(
                [
                    (b"content-type", b"application/grpc"),
                    (b"grpc-status", b"%d" % reply.status),
                    (b"grpc-message", _percent_encoded(reply.message)),
                ]
            )
            out = _frame(HEADERS, END_HEADERS | END_STREAM, number, block)
            if not stream.complete:  # the client need not go on sending (RFC 9113, section 8.1)
                out += _frame(RST_STREAM, 0, number, _U32.pack(NO_ERROR))
            self._write(out)
            self._finish(number, stream)
            return
        body = b"\0" + _U32.pack(len(reply.payload)) + reply.payload
        size = len(body)
        head = _frame(HEADERS, END_HEADERS, number, _OK_HEADERS)
        if size <= self._send_window and size <= stream.send_window and size <= self._peer_frame:
            self._send_window -= size
            trailers = _frame(HEADERS, END_HEADERS | END_STREAM, number, _OK_TRAILERS)
            self._write(b"".join((head, _frame(DATA, 0, number, body), trailers)))
            self._finish(number, stream)
            return
        self._write(head)
        stream.outgoing = memoryview(body)
        self._flush(number, stream)

    def _flush(self, number: int, stream: _Stream) -> None:
        out = []
        while stream.outgoing:
            size = min(len(stream.outgoing), self._send_window, stream.send_window, self._peer_frame)
            if size <= 0:
                break
            out.append(_frame(DATA, 0, number, bytes(stream.outgoing[:size])))
            stream.outgoing = stream.outgoing[size:]
            self._send_window -= size
            stream.send_window -= size
        done = not stream.outgoing
        if done:
            out.append(_frame(HEADERS, END_HEADERS | END_STREAM, number, _OK_TRAILERS))
        if out:
            self._write(b"".join(out))
        if done:
            self._finish(number, stream)

    def _finish(self, number: int, stream: _Stream) -> None:
        self._streams.pop(number, None)
        stream.call.end()
        self._leave_if_done()

    def _abandon(self, number: int) -> None:
        """The client wants no answer to this call, or broke its rules; work thrown away is bounded."""
        self._cancel(self._streams.pop(number))
        self._resets += 1
        if self._resets > MAX_RESETS:
            raise _ConnectionError(ENHANCE_YOUR_CALM, "the client takes back too many calls")
        self._leave_if_done()

    @staticmethod
    def _cancel(stream: _Stream) -> None:
        if stream.task is not None:
            stream.task.cancel()
        stream.call.end()

    # ------------------------------------------------------------ the end

    def go_away(self, code: int, *, close: bool = False) -> None:
        """Take no more calls; hang up when those under way are answered, or now."""
        if self._transport is None:
            return
        self._leaving = True
        self._write(_frame(GOAWAY, 0, 0, _U32.pack(self._last_stream) + _U32.pack(code)))
        if close:
            self._transport.close()
        else:
            self._leave_if_done()

    def _leave_if_done(self) -> None:
        if self._leaving and not self._streams and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Hang up at once."""
        if self._transport is not None:
            self._transport.abort()

    def _not_http2(self) -> None:
        assert self._transport is not None
        self._transport.write(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: 44\r\n\r\n"
            b"this port speaks gRPC (HTTP/2 without TLS).\n"
        )
        self._transport.close()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    size = len(payload)
    return _FRAME.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise _ConnectionError(PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]


def _percent_encoded(message: str) -> bytes:
    """`grpc-message`: printable ASCII but `%` as it is, all else as UTF-8 in hexadecimal."""
    return b"".join(
        bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte
        for byte in message.encode("utf-8", "replace")
    )
