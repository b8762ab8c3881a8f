"""Header compression of HTTP/2 (RFC 7541), as a gRPC server needs it.

Decoding is the `hpack` library's; blocks that change nothing in its table are remembered, since a client sends the
same ones again and again. Encoding uses literals that touch no table, so that prepared blocks stay valid for ever.
"""

from __future__ import annotations

import hpack

Headers = dict[bytes, bytes]

#: Bytes of a header block and of what it decodes to.
MAX_BLOCK = 65_536
#: Blocks that are remembered, and bytes of the largest.
_REMEMBERED, _SHORT = 64, 1024


class HeaderError(Exception):
    """A header block that cannot be decoded; the connection is of no more use."""


class HeaderDecoder:
    """The decoding end of one connection."""

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=MAX_BLOCK)
        self._known: dict[bytes, Headers] = {}

    def decode(self, block: bytes) -> Headers:
        """Header names and values; of a repeated header the last value counts. Do not change the result.

        Raises:
            HeaderError: malformed, or over the limit.
        """
        known = self._known.get(block)
        if known is not None:
            return known
        table = self._decoder.header_table
        entries = table.dynamic_entries
        first, count, size = entries[0] if entries else None, len(entries), table.maxsize
        try:
            headers = {bytes(name): bytes(value) for name, value in self._decoder.decode(block, raw=True)}
        except hpack.HPACKError as error:
            raise HeaderError(str(error) or type(error).__name__) from error
        # Entries are added at the front, as new objects.
        unchanged = (entries[0] if entries else None) is first and (len(entries), table.maxsize) == (count, size)
        if not unchanged or len(self._known) >= _REMEMBERED:
            self._known.clear()  # an index may mean something else now
        if unchanged and len(block) <= _SHORT:
            self._known[block] = headers
        return headers


def encode(headers: list[tuple[bytes, bytes]]) -> bytes:
    """A header block of literals without indexing (RFC 7541, section 6.2.2) that reads and writes no table."""
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in headers)


def _string(data: bytes) -> bytes:
    size = len(data)
    if size < 127:
        return bytes((size,)) + data
    size -= 127
    prefix = bytearray((127,))
    while size >= 128:
        prefix.append(size & 127 | 128)
        size >>= 7
    prefix.append(size)
    return bytes(prefix) + data
