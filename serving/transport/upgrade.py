"""The body of a request that asks for another protocol, which a server may ignore (RFC 9110, section 7.8).

llhttp would read it, but httptools has it skip whatever is behind the head of such a request. A second parser reads it,
which is told once more how the body is framed.
"""

from __future__ import annotations

from typing import Protocol

import httptools


class Reader(Protocol):
    """Whom a parser tells what it has read."""

    def on_message_begin(self) -> None: ...

    def on_url(self, url: bytes) -> None: ...

    def on_header(self, name: bytes, value: bytes) -> None: ...

    def on_headers_complete(self) -> None: ...

    def on_body(self, body: bytes) -> None: ...

    def on_message_complete(self) -> None: ...


class _Behind:
    """Tells `reader` everything but the first head."""

    def __init__(self, reader: Reader) -> None:
        self._reader: Reader | None = None
        self._next = reader
        self.on_body = reader.on_body
        self.on_message_complete = reader.on_message_complete

    def on_message_begin(self) -> None:
        if self._reader is not None:
            self._reader.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._reader is not None:
            self._reader.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reader is not None:
            self._reader.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._reader is not None:
            self._reader.on_headers_complete()
        self._reader = self._next


def parser_behind(headers: dict[bytes, bytes], reader: Reader, *, keep_alive: bool) -> httptools.HttpRequestParser:
    """A parser that goes on with the body of a request with these headers.

    Raises `HttpParserError` if they do not say where it ends.
    """
    parser = httptools.HttpRequestParser(_Behind(reader))
    framing = [b"%b: %b\r\n" % (name, headers[name]) for name in _FRAMING if name in headers]
    parser.feed_data(b"".join((b"POST / HTTP/1.1\r\n", b"" if keep_alive else _CLOSE, *framing, b"\r\n")))
    return parser


_FRAMING = (b"content-length", b"transfer-encoding")
_CLOSE = b"connection: close\r\n"
