"""Frames survive the journey; anything else is refused with a reason, never a crash."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serving.contract import Cause
from serving.gateway.frames import (
    HEADER,
    FrameError,
    FrameKind,
    FrameReader,
    decode,
    encode,
    encode_error,
    encode_text,
    frame_length,
)


def run_frame(**tensors: np.ndarray) -> bytes:
    return b"".join(encode(FrameKind.RUN, 7, tensors))


numeric = hnp.arrays(
    st.sampled_from(["?", "i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", ">i4", ">f8"]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)
texts = st.lists(st.binary(max_size=20), max_size=6).map(lambda items: np.array([*items, None], object)[:-1])
tensor_maps = st.dictionaries(st.text(min_size=1, max_size=12), st.one_of(numeric, texts), max_size=4)


@given(tensor_maps, st.integers(0, 2**64 - 1))
def test_tensors_come_out_as_they_went_in(tensors: dict[str, np.ndarray], number: int) -> None:
    frame = decode(bytearray(b"".join(encode(FrameKind.OK, number, tensors))))
    assert frame.kind is FrameKind.OK
    assert frame.request_id == number
    assert list(frame.tensors) == list(tensors)
    for name, array in tensors.items():
        got = frame.tensors[name]
        assert got.shape == array.shape
        assert got.dtype == array.dtype.newbyteorder("<")
        assert got.tolist() == array.tolist() or np.array_equal(got, array, equal_nan=True)


def test_numeric_tensors_are_aligned_writable_views_of_the_frame() -> None:
    raw = bytearray(run_frame(flag=np.array([True]), ids=np.arange(5)))
    ids = decode(raw).tensors["ids"]
    assert ids.flags.aligned
    assert ids.flags.writeable
    assert not ids.flags.owndata


def test_arrays_that_are_not_contiguous_are_sent_in_their_logical_order() -> None:
    array = np.arange(12.0).reshape(3, 4)[:, ::2].T
    assert np.array_equal(decode(run_frame(x=array)).tensors["x"], array)


def test_strings_travel_as_utf8() -> None:
    assert decode(run_frame(t=np.array(["ä"], object))).tensors["t"].tolist() == ["ä".encode()]


def test_an_answer_says_how_long_its_batch_ran() -> None:
    (told, untold) = (b"".join(encode(FrameKind.OK, 1, {"y": np.arange(3)}, ran_ns=ran)) for ran in (250_000_000, 0))
    assert (decode(told).ran_ns, decode(untold).ran_ns, len(told)) == (250_000_000, 0, len(untold))


def test_errors_and_texts() -> None:
    failure = decode(encode_error(9, Cause.OVERLOADED, "full" + "x" * 1000))
    assert (failure.kind, failure.request_id, failure.cause) == (FrameKind.ERROR, 9, Cause.OVERLOADED)
    assert failure.text.startswith("fullx")
    assert len(failure.text) == 500
    assert decode(encode_text(FrameKind.PONG, 3, '{"a":1}')).text == '{"a":1}'


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": np.zeros(2, complex)}, "dtype complex128 cannot be sent"),
        ({"x": np.array([1], object)}, "BYTES elements are bytes, got int"),
        ({"": np.zeros(2)}, "names take 1 to 255 bytes"),
        ({f"t{i}": np.zeros(1) for i in range(300)}, "300 tensors"),
        ({"x": np.zeros(2000, np.uint8)}, "larger than 1024 bytes"),
        ({"x": np.zeros((1, 3, 0, 3_000_000_000), np.float32)}, r"shape \[1, 3, 0, 3000000000\] is out of range"),
    ],
)
def test_what_cannot_be_framed_says_why(tensors: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(FrameError, match=message):
        encode(FrameKind.RUN, 1, tensors, max_frame=1024)


@given(
    st.lists(st.one_of(st.integers(0, 3), st.sampled_from([(1 << 31) - 1, 1 << 31, 1 << 40])), max_size=33),
    st.sampled_from(["?", "u1", "<f4", "<f8", "O"]),
)
def test_what_can_be_framed_can_be_read(shape: list[int], dtype: str) -> None:
    try:
        array = np.full([0, *shape], b"", dtype) if dtype == "O" else np.zeros([0, *shape], dtype)
    except ValueError:
        return  # no such array
    with contextlib.suppress(FrameError):
        assert decode(run_frame(x=array)).tensors["x"].shape == array.shape
        return
    assert array.ndim > 32 or max(array.shape) >= 1 << 31


def tampered(offset: int, layout: str, value: Any) -> bytearray:
    raw = bytearray(run_frame(x=np.arange(3, dtype=np.int64)))
    struct.pack_into(layout, raw, offset, value)
    return raw


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "0 bytes, expected at least 24"),
        (tampered(0, "<I", 15), "15 bytes, expected 24"),
        (tampered(0, "<I", 2**32 - 1), "expected 24 to"),
        (tampered(0, "<I", 48), "announces 48 bytes and has"),
        (tampered(4, "<B", 99), "unknown frame kind 99"),
        (tampered(5, "<B", 1), "of different releases"),
        (tampered(6, "<H", 0), "follow the last tensor"),
        (tampered(6, "<H", 2), "the frame ends in its head"),
        (tampered(6, "<H", 60000), "60000 tensors"),
        (tampered(24, "<B", 0), "name is empty"),
        (tampered(25, "<B", 77), "unknown dtype code 77"),
        (tampered(25, "<B", 13), "element 0|do not fit|follow its last"),
        (tampered(26, "<B", 200), "overrun the frame"),
        (tampered(28, "<I", 2**31), "overrun the frame"),
        (tampered(28, "<I", 16), "takes 24 bytes, got 16"),
        (tampered(32, "<Q", 4), "takes 32 bytes, got 24"),
        (tampered(32, "<Q", 2**63), "out of range"),
        (HEADER.pack(24, FrameKind.ERROR, 2, 0, 0, 0), "without a known cause"),
        (HEADER.pack(24, FrameKind.PING, 2, 3, 0, 0), "has no tensors"),
    ],
)
def test_a_malformed_frame_is_refused_with_the_reason(raw: bytes, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        decode(raw)


def test_a_tensor_may_not_occur_twice() -> None:
    one = run_frame(x=np.arange(1))
    body = one[HEADER.size :]
    with pytest.raises(FrameError, match="occurs twice"):
        decode(HEADER.pack(HEADER.size + 2 * len(body), FrameKind.RUN, 2, 2, 1, 0) + body + body)


@given(tensor_maps, st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4))
def test_damage_is_either_refused_or_harmless(tensors: dict[str, np.ndarray], damage: list[tuple[int, int]]) -> None:
    raw = bytearray(b"".join(encode(FrameKind.RUN, 1, tensors)))
    for at, value in damage:
        raw[at % len(raw)] = value
    with contextlib.suppress(FrameError):
        decode(raw)


@given(st.binary(max_size=300))
def test_noise_is_refused(noise: bytes) -> None:
    header = HEADER.pack(HEADER.size + len(noise), FrameKind.RUN, 2, 1, 1, 0)
    with contextlib.suppress(FrameError):
        decode(header + noise)


@given(
    st.lists(st.integers(0, 300), max_size=12),
    st.lists(st.integers(1, 200), min_size=1, max_size=40),
    st.sampled_from([64, 100, 256]),
)
def test_the_reader_finds_the_same_frames_however_the_bytes_arrive(
    sizes: list[int], pieces: list[int], capacity: int
) -> None:
    sent = [b"".join(encode(FrameKind.RUN, i, {"x": np.full(size, i % 256, np.uint8)})) for i, size in enumerate(sizes)]
    stream = b"".join(sent)
    reader = FrameReader(capacity=capacity)
    got: list[bytes] = []
    at = turn = 0
    while at < len(stream):
        buffer = reader.get_buffer()
        count = min(len(buffer), pieces[turn % len(pieces)], len(stream) - at)
        assert count > 0
        buffer[:count] = stream[at : at + count]
        got += [bytes(frame) for frame in reader.received(count)]
        at += count
        turn += 1
    assert got == sent


def test_the_reader_refuses_a_frame_over_its_limit_before_receiving_it() -> None:
    reader = FrameReader(max_frame=1024)
    head = HEADER.pack(1 << 20, FrameKind.RUN, 2, 1, 1, 0)
    reader.get_buffer()[: len(head)] = head
    with pytest.raises(FrameError, match="1048576 bytes, expected 24 to 1024"):
        reader.received(len(head))


def test_frame_length_reads_the_header() -> None:
    assert frame_length(run_frame(x=np.arange(3))[:24]) == 72
