"""A small HTTP/1.1 client on asyncio: kept-alive connections, one request at a time on each.

On a machine that the server shares, the generator's own work is part of the measurement, so
this does only what a load test needs. Redirects, proxies, compression and TLS are not.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

#: Idle connections older than this (seconds) are not reused: the server may be closing them just then,
#: and a request lost that way would look like a failure of the server.
MAX_IDLE_S = 2.0
#: No longer is waited for what a server asks for in Retry-After, seconds.
MAX_RETRY_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `tag` is the caller's own and comes back with the outcome."""

    path: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "POST"
    tag: Any = None


@dataclass(frozen=True, slots=True)
class Response:
    """One answer; header names are in lower case."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class TransportError(Exception):
    """No answer came; the message is a short, countable cause such as `connection refused`."""


class Transport(Protocol):
    """How requests leave: the seam at which tests put a fake."""

    async def send(self, request: Request) -> Response:
        """Answer, or raise `TransportError`."""
        ...

    async def close(self) -> None: ...


class HttpTransport:
    """Sends to one host and port, reusing idle connections.

    Args:
        url: `http://host:port`; its path, if any, goes before every request's path.
        timeout_s: limit on connecting and on each answer, seconds.
        max_connections: idle connections kept; the caller bounds how many are in use.
    """

    def __init__(self, url: str, *, timeout_s: float = 10.0, max_connections: int = 1024) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{url!r}: expected http://host:port")
        self._host, self._port = parts.hostname, parts.port or 80
        self._prefix = parts.path.rstrip("/")
        self._timeout_s = timeout_s
        self._idle: deque[_Connection] = deque(maxlen=max_connections)
        self._open: set[_Connection] = set()

    async def send(self, request: Request) -> Response:
        """Send once, never again, and read the answer."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._exchange(request)
        except TimeoutError:
            raise TransportError(f"no answer within {self._timeout_s:g} s") from None
        except ConnectionRefusedError:
            raise TransportError("connection refused") from None
        except (ConnectionError, asyncio.IncompleteReadError):
            raise TransportError("connection lost") from None
        except OSError as error:
            raise TransportError(error.strerror or "cannot connect") from None
        except (ValueError, asyncio.LimitOverrunError):
            raise TransportError("not an HTTP/1.1 answer") from None

    async def close(self) -> None:
        for connection in list(self._open):
            self._drop(connection)
        self._idle.clear()

    async def _exchange(self, request: Request) -> Response:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and asyncio.get_running_loop().time() - connection.idle_since < MAX_IDLE_S:
                break
            self._drop(connection)
        else:
            connection = await self._connect()
        try:
            response, keep = await connection.exchange(self._encode(request))
        except BaseException:  # also when cancelled: the answer may still come on this connection
            self._drop(connection)
            raise
        if keep and len(self._idle) < (self._idle.maxlen or 0):
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            self._drop(connection)
        return response

    async def _connect(self) -> _Connection:
        connection = _Connection(*await asyncio.open_connection(self._host, self._port))
        self._open.add(connection)
        return connection

    def _drop(self, connection: _Connection) -> None:
        self._open.discard(connection)
        connection.close()

    def _encode(self, request: Request) -> bytes:
        lines = [f"{request.method} {self._prefix}{request.path} HTTP/1.1", f"Host: {self._host}:{self._port}"]
        lines += [f"{name}: {value}" for name, value in request.headers]
        if request.body or request.method != "GET":
            lines.append(f"Content-Length: {len(request.body)}")
        return "\r\n".join((*lines, "", "")).encode("latin-1") + request.body


class PatientTransport:
    """Does what a server asks of a client that it has no room for: waits as long as `Retry-After` says (RFC 9110,
    section 10.2.3) and sends again.

    Only an answer of these statuses that has the header is sent again: the server did not take that request up, so
    that nothing is done twice. The time waited is part of the latency that a load generator measures.

    Args:
        inner: how requests leave; closed with this one.
        attempts: how often one request is sent at most.
        statuses: which refusals are sent again; 429 is want of room, 503 may also be that nobody is there to answer.
    """

    def __init__(
        self,
        inner: Transport,
        *,
        attempts: int = 4,
        statuses: Collection[int] = (429, 503),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._inner, self._attempts, self._statuses, self._sleep = inner, attempts, statuses, sleep
        self.sent_again = 0

    async def send(self, request: Request) -> Response:
        for _ in range(1, self._attempts):
            response = await self._inner.send(request)
            wait_s = response.headers.get("retry-after", "")
            if response.status not in self._statuses or not wait_s.isdecimal():
                return response
            self.sent_again += 1
            await self._sleep(min(int(wait_s), MAX_RETRY_AFTER_S))
        return await self._inner.send(request)

    async def close(self) -> None:
        await self._inner.close()


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.idle_since = 0.0

    @property
    def usable(self) -> bool:
        """False once the server has closed the connection."""
        return not (self._reader.at_eof() or self._reader.exception() or self._writer.is_closing())

    async def exchange(self, data: bytes) -> tuple[Response, bool]:
        """Write one request, read one answer; also whether the connection can be used again."""
        self._writer.write(data)
        await self._writer.drain()
        head = await self._reader.readuntil(b"\r\n\r\n")
        status, headers = parse_head(head)
        keep = headers.get("connection", "").lower() != "close"
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = await self._chunks()
        elif "content-length" in headers:
            body = await self._reader.readexactly(int(headers["content-length"]))
        elif status in (204, 304):
            body = b""
        else:  # the body ends with the connection
            body, keep = await self._reader.read(-1), False
        return Response(status, headers, body), keep

    async def _chunks(self) -> bytes:
        parts: list[bytes] = []
        while size := int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16):
            parts.append(await self._reader.readexactly(size))
            await self._reader.readexactly(2)
        while (await self._reader.readuntil(b"\r\n")) != b"\r\n":
            pass  # trailers
        return b"".join(parts)

    def close(self) -> None:
        self._writer.close()


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers (names in lower case) of an answer's head. Raises `ValueError`."""
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    protocol, _, rest = first.partition(" ")
    if not protocol.startswith("HTTP/1."):
        raise ValueError(f"{first!r} is not an HTTP/1.1 status line")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return int(rest[:3]), headers
