"""What the HTTP/2 transport asks of a gRPC application, and the headers of its answers (gRPC's PROTOCOL-HTTP2.md)."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from serving.transport.hpack import Headers, encode

_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}

#: Header blocks of an answer with status 0: before its message and behind it.
OK_HEADERS = b"\x88" + encode(
    [(b"content-type", b"application/grpc"), (b"grpc-accept-encoding", b"identity, deflate, gzip")]
)
OK_TRAILERS = encode([(b"grpc-status", b"0")])


class GrpcReply(NamedTuple):
    """An answer: status 0 with the response message's bytes, or another status of google.rpc.Code with words."""

    status: int
    payload: bytes = b""
    message: str = ""


class GrpcCall(Protocol):
    """One unary call, as an application sees it."""

    #: The answer, if it is known before the message is read: the call is refused.
    refusal: GrpcReply | None

    def receive(self, count: int) -> bool:
        """Note that `count` more bytes have come; False if `refusal` was set because of it."""
        ...

    async def respond(self, body: bytes) -> GrpcReply:
        """The answer to the whole call; `body` is its message behind the five bytes of its prefix.
        Raises nothing but `CancelledError`, when the client took it back."""
        ...

    def end(self) -> None:
        """Nothing of the call is needed any more but its answer, if there is one; may be called again."""
        ...


class GrpcApp(Protocol):
    """What answers calls."""

    def begin(self, headers: Headers, peer: str) -> GrpcCall:
        """Take a call whose headers are complete. Never raises."""
        ...


def timeout_s(value: bytes) -> float | None:
    """Seconds of a `grpc-timeout` header such as `150m`; None if it is malformed."""
    digits, unit = value[:-1], value[-1:].decode("latin-1")
    if unit not in _UNITS_S or not digits.isdigit() or len(digits) > 8:
        return None
    return int(digits) * _UNITS_S[unit]


def refusal_headers(reply: GrpcReply) -> bytes:
    """The one header block of an answer with another status."""
    return b"\x88" + encode(
        [
            (b"content-type", b"application/grpc"),
            (b"grpc-status", b"%d" % reply.status),
            (b"grpc-message", _percent_encoded(reply.message)),
        ]
    )


def _percent_encoded(message: str) -> bytes:
    """`grpc-message`: printable ASCII but `%` as it is, all else as UTF-8 in hexadecimal."""
    return b"".join(
        bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte
        for byte in message.encode("utf-8", "replace")
    )
