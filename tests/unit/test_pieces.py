"""Bodies in pieces: whole in the end, and never many more objects than bytes ask for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serving.transport.pieces import keep


@given(st.lists(st.binary(min_size=1, max_size=5), max_size=500))
def test_the_pieces_make_the_whole(given_pieces: list[bytes]) -> None:
    pieces: list[bytes] = []
    for piece in given_pieces:
        keep(pieces, piece)
    assert b"".join(pieces) == b"".join(given_pieces)


def test_small_pieces_are_merged_and_large_ones_left_alone() -> None:
    pieces: list[bytes] = []
    for _ in range(100_000):
        keep(pieces, b"ab")
    assert len(pieces) < 100
    large = [bytes(16_384) for _ in range(500)]
    pieces = []
    for piece in large:
        keep(pieces, piece)
    assert all(kept is piece for kept, piece in zip(pieces, large, strict=True))
