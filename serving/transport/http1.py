"""HTTP/1.1 on asyncio: one protocol object a connection, one task a request, one write an answer.

Parsing is llhttp's (httptools). Requests of one connection are answered in order; while one is being
answered, what the client sends next is parsed and waits. Source: RFC 9110 and RFC 9112.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from email.utils import formatdate
from http import HTTPStatus
from itertools import chain
from typing import NamedTuple, cast
from urllib.parse import unquote, urlsplit

import httptools

from serving.transport.exchanges import Exchange, Head, HttpApp, Response
from serving.transport.pieces import keep
from serving.transport.upgrade import parser_behind

log = logging.getLogger(__name__)

#: Bytes of a request line and its headers, and of what else is no body; headers of one request; connections of one
#: server.
MAX_HEAD, MAX_HEADERS, MAX_CONNECTIONS = 65_536, 256, 10_000
#: Parsed requests that may wait behind the one that is being answered before reading pauses.
MAX_PIPELINED = 16
#: Seconds: an idle connection, a head that arrives, a body that arrives, a client that does not read its answer, a
#: refused client that goes on sending.
IDLE_S, HEAD_S, BODY_S, WRITE_S, LINGER_S = 75.0, 30.0, 30.0, 30.0, 2.0
#: Bytes that a client takes in `WRITE_S` if it reads its answer at all.
WRITE_LEAST = 16_384
SWEEP_S = 0.5

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("ascii") for status in HTTPStatus
} | {499: b"HTTP/1.1 499 Client Closed Request\r\n"}
_TOO_LONG = f"the request's head or trailers are over {MAX_HEAD >> 10} KiB"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSE = b"connection: close\r\n"


class _Nowhere(dict[bytes, bytes]):
    """Where trailers go: they must not pass for headers (RFC 9110, section 6.5.1)."""

    def __setitem__(self, name: bytes, value: bytes) -> None:
        pass


_NOWHERE = _Nowhere()


class _Turn(NamedTuple):
    """A request that waits for its turn to be answered."""

    exchange: Exchange
    body: bytes
    keep_alive: bool
    bodiless: bool = False  # HEAD
    unread: bool = False  # refused before it was read to its end


class _Refused:
    """An exchange that is nothing but its refusal."""

    def __init__(self, refusal: Response) -> None:
        self.refusal: Response | None = refusal

    def receive(self, count: int) -> bool:
        return False

    async def respond(self, body: bytes) -> Response:
        assert self.refusal is not None
        return self.refusal

    def end(self) -> None:
        pass


class Http1Server:
    """All connections of one process.

    Args:
        app: answers.
        max_connections: more are closed at once and counted in `refused`.
    """

    def __init__(self, app: HttpApp, *, max_connections: int = MAX_CONNECTIONS) -> None:
        self.app = app
        self.max_connections = max_connections
        self.refused = 0
        self.connections: set[Http1Connection] = set()
        self.leaving = False  # each answer ends its connection; new ones are still taken
        self.draining = False
        self.date = b""
        self._empty = asyncio.Event()
        self._sweeper: asyncio.TimerHandle | None = None

    def connection(self) -> Http1Connection:
        """The protocol factory for `loop.create_server`."""
        if self._sweeper is None:
            self._sweep()
        return Http1Connection(self)

    async def drain(self, limit_s: float) -> None:
        """Answer what was asked, closing each connection behind its answer; after `limit_s` seconds hang up."""
        self.leaving = self.draining = True
        for connection in tuple(self.connections):
            connection.close_if_idle()
        if self.connections:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await self._empty.wait()
        for connection in tuple(self.connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()

    def closed(self, connection: Http1Connection) -> None:
        """A connection is no more."""
        self.connections.discard(connection)
        if self.draining and not self.connections:
            self._empty.set()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self.date = b"date: %b\r\n" % formatdate(usegmt=True).encode("ascii")
        now = loop.time()
        for connection in tuple(self.connections):
            if connection.due < now:
                connection.overdue()
        self._sweeper = loop.call_later(SWEEP_S, self._sweep)


class Http1Connection(asyncio.Protocol):
    """One connection. `due` is when its patience ends (loop time); what then happens depends on what it waits for."""

    __slots__ = (
        "_answering",
        "_app",
        "_barren",
        "_body",
        "_client",
        "_closing",
        "_exchange",
        "_headers",
        "_hosts",
        "_keep_alive",
        "_loop",
        "_method",
        "_parser",
        "_paused",
        "_reading",
        "_server",
        "_target",
        "_task",
        "_transport",
        "_unsent",
        "_upgrading",
        "_waiting",
        "due",
    )

    def __init__(self, server: Http1Server) -> None:
        self._server = server
        self._app = server.app
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._client = ""
        self._closing = False  # nothing more is read as requests
        self._paused = False  # the client does not read as fast as it is answered
        self._unsent = 0  # bytes that it had not taken when its patience was last set
        self._reading = False  # in the middle of a request
        self._barren = 0  # bytes since the last that were body or the end of a head
        self._target = b""
        self._method = ""
        self._headers: dict[bytes, bytes] = {}
        self._hosts = 0  # headers of that name
        self._exchange: Exchange | None = None  # the request that is being read
        self._upgrading: tuple[Exchange, dict[bytes, bytes]] | None = None  # its body is not read yet
        self._body: list[bytes] = []
        self._keep_alive = True
        self._task: asyncio.Task[None] | None = None  # answers `_answering`
        self._answering: Exchange | None = None
        self._waiting: deque[_Turn] = deque()
        self.due = self._loop.time() + HEAD_S

    # ------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        if len(self._server.connections) >= self._server.max_connections or self._server.draining:
            self._server.refused += 1
            self._closing = True
            transport.close()
            return
        self._server.connections.add(self)
        peer = transport.get_extra_info("peername")
        self._client = peer[0] if isinstance(peer, tuple) else ""

    def data_received(self, data: bytes) -> None:
        if self._closing:
            if self._owes() and self._transport is not None:
                self._transport.pause_reading()  # a refused client that does not take its answers is no work
            return
        self._barren += len(data)
        rest: bytes | memoryview = data
        try:
            while rest and not self._closing:
                try:
                    self._parser.feed_data(rest)
                    break
                except httptools.HttpParserUpgrade as upgrade:
                    rest = memoryview(rest)[upgrade.args[0] :]
                    self._ignore_upgrade()
        except httptools.HttpParserCallbackError:  # ours, and a kind of the next
            log.exception("reading a request failed")
            self.abort()
        except httptools.HttpParserError as error:
            self._refuse(self._app.malformed(400, f"not a valid HTTP/1.1 request: {error}"))
        if self._barren > MAX_HEAD and not self._closing:
            self._refuse(self._app.malformed(431, _TOO_LONG))

    def eof_received(self) -> bool:
        return False  # a client that hangs up does not want its answer

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._closing = True
        self._server.closed(self)
        if self._task is not None:
            self._task.cancel()
        for exchange in (self._answering, self._exchange):
            if exchange is not None:
                exchange.end()
        self._answering = self._exchange = None
        self._drop_waiting()
        del self._parser  # it refers back to this object

    def pause_writing(self) -> None:
        self._paused = True
        self._await_client()

    def resume_writing(self) -> None:
        self._paused = False
        self._unsent = 0
        self.due = math.inf if self._task is not None else self._loop.time() + IDLE_S
        self._next()
        if self._closing:
            self._linger()

    # ------------------------------------------------------------ httptools' callbacks

    def on_message_begin(self) -> None:
        if self._closing:
            return  # what comes behind a request that is refused is not waited for
        self._reading = True
        self._target = b""
        self._method = ""
        self._headers = {}
        self._hosts = 0
        if not self._paused:
            self.due = self._loop.time() + HEAD_S

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"host":
            self._hosts += 1
        self._headers[name] = value.rstrip(b" \t")  # the parser keeps what is behind

    def on_headers_complete(self) -> None:
        if self._closing:
            return
        parser, headers = self._parser, self._headers
        self._headers = _NOWHERE
        self._method = parser.get_method().decode("ascii")
        upgrade = parser.should_upgrade()
        self._keep_alive = parser.should_keep_alive() and not upgrade
        if self._barren > MAX_HEAD and len(self._target) + sum(map(len, chain(*headers.items()))) > MAX_HEAD:
            self._refuse(self._app.malformed(431, _TOO_LONG))
            return
        self._barren = 0
        if len(headers) > MAX_HEADERS:
            self._refuse(self._app.malformed(431, f"a request has at most {MAX_HEADERS} headers"))
            return
        if self._hosts != 1 and (self._hosts or parser.get_http_version() == "1.1"):
            self._refuse(self._app.malformed(400, f"header host: expected one, got {self._hosts}"))
            return
        if b"connection" in headers and parser.get_http_version() == "1.0":
            self._keep_alive = False  # it would have to be told that the connection stays
        try:
            path = _path(self._target)
        except ValueError:
            self._refuse(self._app.malformed(400, "the request's target is not a valid URL"))
            return
        exchange = self._exchange = self._app.begin(Head(self._method, path, headers, self._client))
        if b"content-length" not in headers and b"transfer-encoding" not in headers:
            return
        if not self._paused:
            self.due = self._loop.time() + BODY_S
        if exchange.refusal is not None:
            self._refuse(exchange.refusal)
            return
        if b"expect" in headers and parser.get_http_version() == "1.1":
            self._go_on()
        if upgrade and self._method != "CONNECT":
            self._keep_alive = parser.should_keep_alive() and parser.get_http_version() == "1.1"
            self._upgrading, self._exchange = (exchange, headers), None

    def _ignore_upgrade(self) -> None:
        """Go on behind the head of a request for another protocol: with its body, if it has one."""
        if self._upgrading is None:
            self._closing = True  # answered as any other request, then closed: what follows is not HTTP/1.1
            return
        (self._exchange, headers), self._upgrading = self._upgrading, None
        self._reading = True
        self._parser = parser_behind(headers, self, keep_alive=self._keep_alive)

    def _go_on(self) -> None:
        """Tell a client that waits for it to send the body; not while it is owed answers to earlier requests."""
        if self._transport is not None and self._task is None and not self._waiting:
            self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._barren = 0
        exchange = self._exchange
        if exchange is None:
            return
        if not exchange.receive(len(body)):
            assert exchange.refusal is not None
            self._refuse(exchange.refusal)
            return
        keep(self._body, body)

    def on_message_complete(self) -> None:
        self._reading = False
        exchange = self._exchange
        if exchange is None:
            return
        self._exchange = None
        pieces = self._body
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if pieces:
            self._body = []
        self._waiting.append(_Turn(exchange, body, self._keep_alive, self._method == "HEAD"))
        if self._task is None:
            self._next()
            return
        if not self._paused:
            self.due = math.inf  # nothing is waited for but the answer before
        if len(self._waiting) >= MAX_PIPELINED and self._transport is not None:
            self._transport.pause_reading()

    # ------------------------------------------------------------ answering

    def _next(self) -> None:
        """Begin to answer the oldest request that waits."""
        if not self._waiting or self._task is not None or self._paused or self._transport is None:
            return
        if len(self._waiting) == MAX_PIPELINED:
            self._transport.resume_reading()
        turn = self._waiting.popleft()
        self.due = math.inf  # its deadline is the application's business
        self._answering = turn.exchange
        self._task = self._loop.create_task(self._answer(turn))

    async def _answer(self, turn: _Turn) -> None:
        exchange = turn.exchange
        try:
            response = exchange.refusal or await exchange.respond(turn.body)
        except asyncio.CancelledError:
            return  # the client is gone
        except Exception:
            log.exception("answering a request failed")
            self.abort()
            return
        finally:
            self._task = self._answering = None
            exchange.end()
        self._send(response, turn)
        if self._waiting:
            self._next()

    def _send(self, response: Response, turn: _Turn) -> None:
        transport = self._transport
        if transport is None:
            return
        status, fields, pieces = response
        keep_alive = turn.keep_alive and (not self._server.leaving or bool(self._waiting))
        last = b"content-length: %d\r\n\r\n" % sum(map(len, pieces))
        transport.write(
            b"".join(
                (
                    _STATUS_LINES[status],
                    fields,
                    self._server.date,
                    last if keep_alive else _CLOSE + last,
                    *(() if turn.bodiless else pieces),
                )
            )
        )
        if keep_alive:
            if not self._paused:
                self.due = self._loop.time() + IDLE_S
            return
        self._closing = True
        self._drop_waiting()
        if turn.unread:
            transport.write_eof()
            self._linger()
        else:
            self._await_client()
            transport.close()

    def _drop_waiting(self) -> None:
        """Let go of what waits: nothing is answered behind the answer that ends a connection."""
        for turn in self._waiting:
            turn.exchange.end()
        self._waiting.clear()

    def _owes(self) -> bool:
        """Whether a client has answers to come, or to take."""
        return self._task is not None or bool(self._waiting) or self._paused

    def _linger(self) -> None:
        """The client may still be sending: closing now would reset the connection and lose its answer (RFC 9112,
        section 9.6), so what comes is thrown away for a moment, once it has taken all answers."""
        if self._transport is None or self._owes():
            return
        if self._transport.is_closing():
            self._await_client()  # what is left to do is its reading
            return
        self.due = self._loop.time() + LINGER_S
        self._transport.resume_reading()

    def _await_client(self) -> None:
        """Give the client time to take what it is sent."""
        assert self._transport is not None
        self._unsent = self._transport.get_write_buffer_size()
        self.due = self._loop.time() + WRITE_S

    def _refuse(self, response: Response) -> None:
        """Answer, in its turn, a request that is not read to its end; take no more of this connection."""
        exchange, self._exchange, self._closing = self._exchange, None, True
        self._body = []
        if exchange is not None:
            exchange.end()
        self._waiting.append(_Turn(_Refused(response), b"", False, self._reading and self._method == "HEAD", True))
        if not self._paused:
            self.due = math.inf  # until the answers before it are given
        self._next()

    # ------------------------------------------------------------ the end

    def overdue(self) -> None:
        """Patience is over."""
        if self._reading and not self._closing and not self._paused and self._exchange is not None:
            self._refuse(self._app.malformed(400, f"the body was not complete after {BODY_S:g} s"))
        elif self._reading and not self._closing and not self._paused:
            self._refuse(self._app.malformed(408, f"the request's head was not complete after {HEAD_S:g} s"))
        elif self._transport is not None and self._unsent - self._transport.get_write_buffer_size() >= WRITE_LEAST:
            self._await_client()  # it reads, if slowly
        else:
            self.abort()

    def close_if_idle(self) -> None:
        """Hang up unless something is being read or answered."""
        if self._transport is not None and self._task is None and not self._waiting and not self._reading:
            self._closing = True
            self._transport.close()

    def abort(self) -> None:
        """Hang up at once."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()


def _path(target: bytes) -> str:
    """The decoded path of a request target in any of its forms, without its query. Raises `ValueError`."""
    text = target.decode("latin-1")
    if not text.startswith("/"):
        text = urlsplit(text).path or "/"
    text, _, _ = text.partition("?")
    return unquote(text) if "%" in text else text
