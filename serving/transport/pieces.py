"""Bodies that arrive in pieces, kept without copying until they are whole."""

from __future__ import annotations

#: This many pieces are kept as they are; pieces of this many bytes are never merged.
_FREE, _LARGE = 64, 16_384


def keep(pieces: list[bytes], piece: bytes) -> None:
    """Append a piece, merging neighbours when there are many small ones.

    A peer that sends its body two bytes at a time would otherwise make the server hold twenty times what is counted.
    Each byte is copied at most 14 times.
    """
    pieces.append(piece)
    while len(pieces) > _FREE and len(pieces[-2]) <= len(pieces[-1]) < _LARGE:
        last = pieces.pop()
        pieces[-1] += last
