"""Packing and unpacking of bodies, off the event loop where there is much of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from serving.gateway.offload import offloaded
from serving.protocol import compress

#: Bytes from which packing leaves the loop, and unpacking, which may make a thousand times as many of them.
INLINE, INLINE_PACKED = 65_536, 4096


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
