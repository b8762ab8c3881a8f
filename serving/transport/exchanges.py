"""What the HTTP/1.1 transport asks of an application: requests, answers, and the exchange of one for the other."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Head(NamedTuple):
    """A request without its body. Header names are in lower case; of a repeated header the last value counts."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    client: str = ""


class Response(NamedTuple):
    """An answer. `fields` are whole header lines, each with its CRLF; `content-length` and `date` are added."""

    status: int
    fields: bytes
    pieces: list[bytes]


class Exchange(Protocol):
    """One request and its answer, as an application sees them."""

    #: The answer, if it is known before the body is read: the request is refused.
    refusal: Response | None

    def receive(self, count: int) -> bool:
        """Note that `count` more bytes of the body have come; False if `refusal` was set because of it."""
        ...

    async def respond(self, body: bytes) -> Response:
        """The answer to the whole request. Raises nothing but `CancelledError`, when the client went away."""
        ...

    def end(self) -> None:
        """The exchange is over, however it went; may be called again."""
        ...


class HttpApp(Protocol):
    """What answers requests."""

    def begin(self, head: Head) -> Exchange:
        """Take a request whose headers are complete. Never raises."""
        ...

    def malformed(self, status: int, message: str) -> Response:
        """The answer to bytes that are no request."""
        ...
