"""One connection of gRPC over HTTP/2: frames in, calls to the application, frames out (RFC 9113)."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, cast

from serving.transport.frames import (
    ACK,
    CANCEL,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADER_LIST_ID,
    HEADERS,
    INITIAL_WINDOW_ID,
    INTERNAL_ERROR,
    MAX_FRAME_ID,
    MAX_STREAMS_ID,
    NO_ERROR,
    PING,
    PREFACE,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTING,
    SETTINGS,
    STREAM_CLOSED,
    U32,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    PeerError,
    frame,
    unpadded,
)
from serving.transport.grpc_calls import OK_HEADERS, OK_TRAILERS, GrpcReply, refusal_headers
from serving.transport.hpack import MAX_BLOCK, HeaderDecoder, HeaderError
from serving.transport.outbox import LARGEST_WINDOW, Outbox, Stream
from serving.transport.pieces import keep

if TYPE_CHECKING:
    from serving.transport.http2 import Http2Server

log = logging.getLogger(__name__)

#: Streams at once.
MAX_STREAMS = 1024
#: Bytes of one frame, of what a stream and a connection may send ahead.
MAX_FRAME, STREAM_WINDOW, CONNECTION_WINDOW = 1 << 20, 4 << 20, 16 << 20
#: Calls that a client may take back beyond those that it let finish (CVE-2023-44487).
MAX_RESETS = 1000
#: Seconds for a preface, frame or message that has begun to come to its end, and for a peer to take what it is sent.
PATIENCE_S = 30.0
#: Bytes that a peer takes in that time if it reads at all.
TAKEN_LEAST = 16_384
_DEADLINE_EXCEEDED = 4


class Http2Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: Http2Server) -> None:
        self._server = server
        self._app = server.app
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._peer = ""
        self._decoder = HeaderDecoder()
        self._parts: list[bytes] = []  # of a frame that has not come to its end
        self._missing = 0  # bytes until it does
        self._begun = server.now  # how long there has been something unfinished; infinite if there is nothing
        self._stalled = math.inf  # since when the peer does not read as fast as it is answered
        self._unsent = 0  # bytes that it had not taken then, and what was written since
        self._heard = server.now  # since when it is listened to; infinite while it is not
        self._started = False  # the client's preface has come
        self._streams: dict[int, Stream] = {}
        self._last_stream = 0
        self._block: tuple[int, bool, bytearray] | None = None  # HEADERS that wait for CONTINUATION
        self._received = 0
        self._outbox = Outbox()
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
            SETTING.pack(MAX_STREAMS_ID, MAX_STREAMS)
            + SETTING.pack(INITIAL_WINDOW_ID, STREAM_WINDOW)
            + SETTING.pack(MAX_FRAME_ID, MAX_FRAME)
            + SETTING.pack(HEADER_LIST_ID, MAX_BLOCK)
        )
        more = frame(WINDOW_UPDATE, 0, 0, U32.pack(CONNECTION_WINDOW - 65_535))
        self._transport.write(frame(SETTINGS, 0, 0, settings) + more)

    def data_received(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._parts:
            keep(self._parts, data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data, self._parts = b"".join(self._parts), []
        at, have = 0, len(data)
        try:
            if not self._started:
                if not PREFACE.startswith(data[:24]):
                    self._not_http2()
                    return
                if have < 24:
                    self._parts, self._missing = [data], 24 - have
                    return
                self._started, at = True, 24
            missing = 9
            while have - at >= 9:
                high, low, kind, flags, stream = FRAME.unpack_from(data, at)
                size = high << 8 | low
                if size > MAX_FRAME:
                    raise PeerError(FRAME_SIZE_ERROR, f"a frame of {size} bytes, at most {MAX_FRAME} are taken")
                end = at + 9 + size
                if end > have:
                    missing = end - at
                    break
                self._frame(kind, flags, stream & LARGEST_WINDOW, data[at + 9 : end])
                at, missing = end, 9
            if at < have:
                self._parts, self._missing = [data[at:]], missing - (have - at)
            self._begun = self._server.now if self._parts or self._block is not None else math.inf
        except (PeerError, HeaderError) as error:
            log.info("a gRPC connection from %s is closed: %s", self._peer, error)
            self.go_away(error.code if isinstance(error, PeerError) else COMPRESSION_ERROR, close=True)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._server.closed(self)
        for stream in tuple(self._streams.values()):
            self._cancel(stream)
        self._streams.clear()

    def pause_writing(self) -> None:  # the peer does not read what it asked for: take nothing more from it
        self._heard = math.inf
        self._await_peer()
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._stalled = math.inf
        self._heard = self._server.now
        if self._transport is not None:
            self._transport.resume_reading()

    # ------------------------------------------------------------ frames

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._block is not None and kind != CONTINUATION:
            raise PeerError(PROTOCOL_ERROR, "a header block is not continued")
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
                raise PeerError(FRAME_SIZE_ERROR, "a PING has 8 bytes and no stream")
            if not flags & ACK:
                self._write(frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM:
            self._reset(number, payload)
        elif kind == PUSH_PROMISE:
            raise PeerError(PROTOCOL_ERROR, "a client cannot push")
        # PRIORITY, GOAWAY and unknown kinds ask for nothing.

    def _headers(self, flags: int, number: int, payload: bytes) -> None:
        payload = unpadded(flags, payload)
        if flags & WITH_PRIORITY:
            if len(payload) < 5:
                raise PeerError(FRAME_SIZE_ERROR, "a priority has 5 bytes")
            payload = payload[5:]
        if len(payload) > MAX_BLOCK:
            raise PeerError(ENHANCE_YOUR_CALM, f"a header block is over {MAX_BLOCK} bytes")
        if not number & 1:
            raise PeerError(PROTOCOL_ERROR, f"HEADERS on stream {number}: clients' streams are odd")
        if flags & END_HEADERS:
            self._open(number, bool(flags & END_STREAM), payload)
        else:
            self._block = (number, bool(flags & END_STREAM), bytearray(payload))

    def _continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != number:
            raise PeerError(PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        _, ended, block = self._block
        block += payload
        if len(block) > MAX_BLOCK or not (payload or flags & END_HEADERS):  # the latter could go on for ever
            raise PeerError(ENHANCE_YOUR_CALM, f"a header block is over {MAX_BLOCK} bytes, or does not end")
        if flags & END_HEADERS:
            self._block = None
            self._open(number, ended, bytes(block))

    def _open(self, number: int, ended: bool, block: bytes) -> None:
        headers = self._decoder.decode(block)  # always, even of what is refused: it carries the table on
        if number in self._streams:  # trailers
            if not ended:
                raise PeerError(PROTOCOL_ERROR, "trailers that do not end their stream")
            self._ended(number, self._streams[number])
            return
        if number <= self._last_stream:
            if ended:
                return  # trailers of a stream that we have closed
            raise PeerError(STREAM_CLOSED, f"HEADERS on stream {number}, which is closed")
        self._last_stream = number
        if self._leaving or len(self._streams) >= MAX_STREAMS:
            self._write(frame(RST_STREAM, 0, number, U32.pack(REFUSED_STREAM)))
            return
        call = self._app.begin(headers, self._peer)
        stream = self._streams[number] = Stream(call, self._server.now)
        if call.refusal is not None:
            self._reply(number, stream, call.refusal)
        elif ended:
            self._ended(number, stream)

    def _data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)  # the padding counts as well
        self._received += size
        if self._received >= CONNECTION_WINDOW // 4:
            self._write(frame(WINDOW_UPDATE, 0, 0, U32.pack(self._received)))
            self._received = 0
        stream = self._streams.get(number)
        if stream is None or stream.complete:
            if number > self._last_stream or not number & 1:
                raise PeerError(PROTOCOL_ERROR, f"DATA on stream {number}, which is not open")
            return  # we have answered or refused it already
        payload = unpadded(flags, payload)
        if not stream.call.receive(len(payload)) and stream.call.refusal is not None:
            self._reply(number, stream, stream.call.refusal)
            return
        if payload:
            keep(stream.message, payload)
        if flags & END_STREAM:
            self._ended(number, stream)
            return
        stream.received += size
        if stream.received >= STREAM_WINDOW // 4:
            self._write(frame(WINDOW_UPDATE, 0, number, U32.pack(stream.received)))
            stream.received = 0

    def _reset(self, number: int, payload: bytes) -> None:
        if len(payload) != 4 or not number:
            raise PeerError(FRAME_SIZE_ERROR, "RST_STREAM has 4 bytes and a stream")
        if number > self._last_stream:
            raise PeerError(PROTOCOL_ERROR, f"RST_STREAM on stream {number}, which is not open")
        if number in self._streams:
            self._abandon(number)

    def _window_update(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise PeerError(FRAME_SIZE_ERROR, "WINDOW_UPDATE has 4 bytes")
        more = U32.unpack(payload)[0] & LARGEST_WINDOW
        if not number:
            self._outbox.enlarge(more)
            self._flush_ready()
            return
        stream = self._streams.get(number)
        if stream is None:
            return
        if not self._outbox.enlarge_of(stream, more):
            self._write(frame(RST_STREAM, 0, number, U32.pack(FLOW_CONTROL_ERROR)))
            self._abandon(number)
        elif stream.outgoing:
            self._flush(number, stream)

    def _settings(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) % 6 or (flags & ACK and payload):
            raise PeerError(FRAME_SIZE_ERROR, "malformed SETTINGS")
        if flags & ACK:
            return
        self._outbox.settings(payload, self._streams)
        self._write(frame(SETTINGS, ACK, 0, b""))
        self._flush_ready()

    # ------------------------------------------------------------ calls

    def _ended(self, number: int, stream: Stream) -> None:
        """The client has said all: answer it."""
        if not stream.complete:
            stream.complete = True
            stream.since = math.inf
            stream.task = self._loop.create_task(self._answer(number, stream))

    async def _answer(self, number: int, stream: Stream) -> None:
        parts = stream.message
        message = parts[0] if len(parts) == 1 else b"".join(parts)
        stream.message = []
        try:
            reply = await stream.call.respond(message)
        except asyncio.CancelledError:
            return  # the client took its call back, or is gone
        except Exception:
            log.exception("answering a call failed")
            stream.task = None
            self._drop(number, INTERNAL_ERROR)
            return
        stream.task = None
        self._resets = max(0, self._resets - 1)
        self._reply(number, stream, reply)

    def _reply(self, number: int, stream: Stream, reply: GrpcReply) -> None:
        """Send an answer and be done with the stream; what does not fit the peer's window waits for it."""
        stream.call.end()  # now, not when the peer has taken the answer: others need what its message held
        if reply.status:
            out = frame(HEADERS, END_HEADERS | END_STREAM, number, refusal_headers(reply))
            if not stream.complete:  # the client need not go on sending (RFC 9113, section 8.1)
                out += frame(RST_STREAM, 0, number, U32.pack(NO_ERROR))
            self._write(out)
            self._finish(number, stream)
            return
        body = b"\0" + U32.pack(len(reply.payload)) + reply.payload
        size = len(body)
        head = frame(HEADERS, END_HEADERS, number, OK_HEADERS)
        box = self._outbox
        if size <= box.window and size <= box.initial + stream.given and size <= box.frame_size:
            box.window -= size
            trailers = frame(HEADERS, END_HEADERS | END_STREAM, number, OK_TRAILERS)
            self._write(b"".join((head, frame(DATA, 0, number, body), trailers)))
            self._finish(number, stream)
            return
        self._write(head)
        stream.outgoing = memoryview(body)
        self._flush(number, stream)
        box.wait(stream, self._server.now)

    def _flush(self, number: int, stream: Stream) -> None:
        """Send what the peer's windows let through of an answer."""
        out = self._outbox.take(number, stream)
        done = not stream.outgoing
        if done:
            out.append(frame(HEADERS, END_HEADERS | END_STREAM, number, OK_TRAILERS))
        if out:
            self._write(b"".join(out))
        if done:
            self._finish(number, stream)

    def _flush_ready(self) -> None:
        while (ready := self._outbox.next()) is not None:
            self._flush(*ready)

    def _finish(self, number: int, stream: Stream) -> None:
        self._streams.pop(number, None)
        self._outbox.forget(number)
        self._leave_if_done()

    def _drop(self, number: int, code: int) -> None:
        """Give a call up that is not the client's to answer for."""
        self._write(frame(RST_STREAM, 0, number, U32.pack(code)))
        self._outbox.forget(number)
        self._cancel(self._streams.pop(number))
        self._leave_if_done()

    def _abandon(self, number: int) -> None:
        """The client wants no answer to this call, or broke its rules; work thrown away is bounded."""
        self._outbox.forget(number)
        self._cancel(self._streams.pop(number))
        self._resets += 1
        if self._resets > MAX_RESETS:
            raise PeerError(ENHANCE_YOUR_CALM, "the client takes back too many calls")
        self._leave_if_done()

    @staticmethod
    def _cancel(stream: Stream) -> None:
        if stream.task is not None:
            stream.task.cancel()
        stream.call.end()

    # ------------------------------------------------------------ the end

    def sweep(self, late: float) -> None:
        """Give up what has waited for the peer since before `late` (loop time)."""
        if self._stalled < late and self._transport is not None:
            if self._unsent - self._transport.get_write_buffer_size() < TAKEN_LEAST:
                self.abort()
                return
            self._await_peer()  # it reads, if slowly
        self._outbox.sweep()
        if not self._heard < late:
            return  # what was not read is not late
        if self._begun < late:
            self.abort()
            return
        for number, stream in [(number, stream) for number, stream in self._streams.items() if stream.since < late]:
            if not stream.outgoing:
                words = f"the message was not complete after {PATIENCE_S:g} s"
                self._reply(number, stream, GrpcReply(_DEADLINE_EXCEEDED, message=words))
            elif self._outbox.taken(number, stream) < TAKEN_LEAST:
                self._drop(number, CANCEL)
            else:
                self._outbox.wait(stream, self._server.now)  # it reads, if slowly

    def _await_peer(self) -> None:
        """Give the peer time to take what it is sent."""
        self._stalled = self._server.now
        if self._transport is not None:
            self._unsent = self._transport.get_write_buffer_size()

    def go_away(self, code: int, *, close: bool = False) -> None:
        """Take no more calls; hang up when those under way are answered, or now."""
        if self._transport is None:
            return
        self._leaving = True
        self._write(frame(GOAWAY, 0, 0, U32.pack(self._last_stream) + U32.pack(code)))
        if close:
            if self._stalled == math.inf:
                self._await_peer()
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
            self._unsent += len(data)
            self._transport.write(data)
