"""Packing, unpacking and decoding of bodies, off the event loop where there is much of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from serving.gateway.offload import offloaded
from serving.protocol import compress
from serving.protocol.types import InferRequest

#: Bytes from which packing leaves the loop, and unpacking, which may make a thousand times as many of them.
INLINE, INLINE_PACKED = 65_536, 4096
#: Bytes of JSON, and of a body of any kind, from which decoding does.
INLINE_JSON, INLINE_BODY = 1 << 17, 1 << 20


async def unpacked(body: bytes, encoding: str, limit: int) -> bytes:
    """`compress.decompress`."""
    if len(body) < INLINE_PACKED:
        return compress.decompress(body, encoding, limit)
    return await offloaded(partial(compress.decompress, body, encoding, limit))


async def packed(pieces: Sequence[bytes], accept: str) -> tuple[list[bytes], str | None]:
    """`compress.compress`."""
    if sum(map(len, pieces)) < INLINE:
        return compress.compress(pieces, accept)
    return await offloaded(partial(compress.compress, pieces, accept))


async def decoded(size: int, json: int, decode: Callable[..., InferRequest], *given: Any) -> InferRequest:
    """What `decode` makes of a body of `size` bytes, `json` of which are JSON."""
    if json < INLINE_JSON and size < INLINE_BODY:
        return decode(*given)
    return await offloaded(partial(decode, *given))
