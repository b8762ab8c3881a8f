"""Header blocks: remembered ones are answered as a decoder without a memory would."""

from __future__ import annotations

from contextlib import suppress

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.transport.hpack import MAX_BLOCK, HeaderDecoder, HeaderError, encode

PAIRS = st.tuples(st.sampled_from([b":path", b"te", b"x-a", b"x-b"]), st.sampled_from([b"1", b"22", b"v" * 60]))
#: Whole lists with an encoder that indexes or not, and changes of the table's size.
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["indexed", "never", "again", "resize"]),
        st.lists(PAIRS, max_size=4),
        st.sampled_from([0, 100, 150, 4096]),
    ),
    max_size=25,
)


@given(STEPS)
def test_a_block_is_never_answered_from_memory_once_the_table_has_changed(steps: list[tuple[str, list, int]]) -> None:
    encoder, plain, ours = hpack.Encoder(), hpack.Decoder(), HeaderDecoder()
    blocks: list[bytes] = [b"\x82"]
    for how, pairs, size in steps:
        if how == "resize":
            encoder.header_table_size = size
        if how == "again":  # what was sent before, and may mean something else by now, or nothing at all
            block = blocks[size % len(blocks)]
        else:
            block = encoder.encode([hpack.NeverIndexedHeaderTuple(*pair) if how == "never" else pair for pair in pairs])
            blocks.append(block)
        try:
            expected = dict(plain.decode(block, raw=True))
        except hpack.HPACKError:
            with pytest.raises(HeaderError):
                ours.decode(block)
            return  # the connection is of no more use
        assert ours.decode(block) == expected
        assert list(ours._decoder.header_table.dynamic_entries) == list(plain.header_table.dynamic_entries)


def test_what_is_remembered_is_not_decoded_again_and_is_bounded() -> None:
    encoder, decoder = hpack.Encoder(), HeaderDecoder()
    pairs = [(b":path", b"/a"), (b"x", b"y")]
    encoder_block = encoder.encode(pairs)
    decoder.decode(encoder_block)
    again = encoder.encode(pairs)
    assert decoder.decode(again) is decoder.decode(again)
    for number in range(1000):
        decoder.decode(encode([(b"x", b"%d" % number)]))
    assert len(decoder._known) <= 64
    decoder.decode(encode([(b"x", b"v" * 5000)]))
    assert all(len(block) <= 1024 for block in decoder._known)


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.binary(max_size=20_000)), max_size=4))
def test_what_we_encode_is_read_by_others_and_leaves_their_table_alone(pairs: list[tuple[bytes, bytes]]) -> None:
    decoder = hpack.Decoder(max_header_list_size=1 << 20)
    assert [tuple(pair) for pair in decoder.decode(encode(pairs), raw=True)] == pairs
    assert not decoder.header_table.dynamic_entries


@given(st.binary(max_size=200))
def test_garbage_is_refused_cleanly(block: bytes) -> None:
    with suppress(HeaderError):
        HeaderDecoder().decode(block)


def test_a_list_over_the_limit_is_refused_however_short_its_block_is() -> None:
    decoder = HeaderDecoder()
    decoder.decode(hpack.Encoder().encode([(b"x", b"v" * 3000)]))
    with pytest.raises(HeaderError):
        decoder.decode(b"\xbe" * (MAX_BLOCK // 3000 + 1))
