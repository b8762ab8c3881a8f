"""gzip and deflate bodies, with a hard bound on what a request may unpack to.

Source: RFC 9110, section 8.4 (content codings) and 12.5.3 (Accept-Encoding).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from serving.errors import ErrorKind, RequestError, bad_request
from serving.protocol.types import shown

#: Answers of fewer bytes are not worth compressing.
MIN_BYTES = 1024

_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
_LEVEL = 1  # on the request path; higher levels cost far more time than they save bytes


def decompress(body: bytes, encoding: str | None, limit: int) -> bytes:
    """Undo the `Content-Encoding` of a request body.

    Args:
        body: the body as received.
        encoding: value of the header; None, "" and "identity" leave the body as it is.
        limit: the most bytes that the result may have; no more than that plus one is ever unpacked.

    Raises:
        RequestError: too large, when the limit is passed; bad request, when the coding is unknown or the
            stream damaged, truncated or followed by other bytes.
    """
    name = (encoding or "identity").strip().lower()
    if name in ("", "identity"):
        return body
    if name in ("gzip", "x-gzip"):
        unpacker = zlib.decompressobj(_GZIP)
    elif name == "deflate":  # meant to be a zlib stream, yet some clients leave the wrapper out
        unpacker = zlib.decompressobj(_ZLIB if _has_zlib_header(body) else _RAW)
    else:
        raise bad_request(f"Content-Encoding: {shown(encoding)} is not supported, use gzip, deflate or identity")
    try:
        unpacked = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise bad_request(f"body: not a valid {name} stream: {error}") from None
    if len(unpacked) > limit:
        raise RequestError(
            ErrorKind.TOO_LARGE, f"body: unpacks to more than the limit of {limit} bytes, send smaller requests"
        )
    if not unpacker.eof:
        raise bad_request(f"body: the {name} stream is truncated after {len(body)} bytes")
    if unpacker.unused_data:
        raise bad_request(f"body: {len(unpacker.unused_data)} bytes follow the end of the {name} stream")
    return unpacked


def compress(pieces: Sequence[bytes], accept: str | None) -> tuple[list[bytes], str | None]:
    """Compress the body of an answer if the client asked for it and it is worth it.

    Args:
        pieces: the body, in pieces.
        accept: value of the request's `Accept-Encoding`.

    Returns:
        The body, in pieces, and the value of its `Content-Encoding`, None if it stayed as it was.
    """
    if not accept or sum(map(len, pieces)) < MIN_BYTES:
        return list(pieces), None
    name = _preferred(accept)
    if name is None:
        return list(pieces), None
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP if name == "gzip" else _ZLIB)
    packed = [packer.compress(piece) for piece in pieces]
    return [b"".join((*packed, packer.flush()))], name


def _has_zlib_header(body: bytes) -> bool:
    return len(body) >= 2 and body[0] & 0x0F == 8 and int.from_bytes(body[:2]) % 31 == 0


def _preferred(accept: str) -> str | None:
    """The coding with the highest weight, gzip first among equals; None if neither is welcome."""
    weights: dict[str, float] = {}
    for item in accept.split(","):
        name, *options = (part.strip().lower() for part in item.split(";"))
        weight = next((option[2:] for option in options if option.startswith("q=")), "1")
        try:
            weights[name] = float(weight)
        except ValueError:
            weights[name] = 0.0
    best = max(("gzip", "deflate"), key=lambda name: weights.get(name, weights.get("*", 0.0)))
    return best if weights.get(best, weights.get("*", 0.0)) > 0 else None
