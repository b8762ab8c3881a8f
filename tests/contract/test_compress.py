"""Compressed bodies: understood from and by the client, and bounded whatever they pretend to be."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peer import http_result

from serving.errors import ErrorKind, RequestError
from serving.protocol import oip_binary
from serving.protocol.compress import compress, decompress
from serving.protocol.types import InferResponse, tensor

BODY = b'{"inputs": []}' * 100


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


STREAMS = {
    "gzip": gzip.compress(BODY),
    "x-gzip": gzip.compress(BODY),
    "GZIP ": gzip.compress(BODY),
    "deflate": zlib.compress(BODY),
    "identity": BODY,
    "": BODY,
}


@pytest.mark.parametrize("encoding", STREAMS)
def test_bodies_are_unpacked(encoding: str) -> None:
    assert decompress(STREAMS[encoding], encoding, len(BODY)) == BODY


def test_no_header_is_no_encoding() -> None:
    assert decompress(BODY, None, 1) is BODY


def test_deflate_without_its_wrapper_is_unpacked_too() -> None:
    assert decompress(raw_deflate(BODY), "deflate", len(BODY)) == BODY


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_the_limit_is_exact(encoding: str) -> None:
    assert decompress(STREAMS[encoding], encoding, len(BODY)) == BODY
    with pytest.raises(RequestError) as caught:
        decompress(STREAMS[encoding], encoding, len(BODY) - 1)
    assert caught.value.kind is ErrorKind.TOO_LARGE
    assert caught.value.http_status == 413
    assert caught.value.message == (
        f"body: unpacks to more than the limit of {len(BODY) - 1} bytes, send smaller requests"
    )


def test_a_bomb_is_never_unpacked() -> None:
    bomb = gzip.compress(b"\0" * 200_000_000, compresslevel=1)
    assert len(bomb) < 1_000_000
    tracemalloc.start()
    with pytest.raises(RequestError, match="limit of 1000000 bytes"):
        decompress(bomb, "gzip", 1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


@pytest.mark.parametrize(
    ("body", "encoding", "message"),
    [
        (BODY, "br", "Content-Encoding: 'br' is not supported, use gzip, deflate or identity"),
        (STREAMS["gzip"], "gzip, gzip", "Content-Encoding: 'gzip, gzip' is not supported"),
        (BODY, "gzip", "body: not a valid gzip stream"),
        (b"", "gzip", "body: the gzip stream is truncated after 0 bytes"),
        (STREAMS["gzip"][:-1], "gzip", f"body: the gzip stream is truncated after {len(STREAMS['gzip']) - 1} bytes"),
        (STREAMS["gzip"][:10], "gzip", "body: the gzip stream is truncated after 10 bytes"),
        (STREAMS["gzip"] + b"??", "gzip", "body: 2 bytes follow the end of the gzip stream"),
        (STREAMS["gzip"][:-8] + b"12345678", "gzip", "body: not a valid gzip stream"),
        (b"\xff" + STREAMS["deflate"], "deflate", "body: not a valid deflate stream"),
    ],
)
def test_mistakes(body: bytes, encoding: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        decompress(body, encoding, 1_000_000)
    assert caught.value.kind is ErrorKind.BAD_REQUEST
    assert caught.value.message.startswith(message)


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate"]))
def test_anything_else_is_refused_cleanly(body: bytes, encoding: str) -> None:
    with suppress(RequestError):
        assert len(decompress(body, encoding, 1000)) <= 1000


# ---------------------------------------------------------------- answers

LARGE = [b"a" * 600, b"b" * 600]


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        (None, None),
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("deflate;q=1.0, gzip;q=0.5", "deflate"),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip;q=0", None),
        ("identity", None),
        ("br", None),
        ("*", "gzip"),
        ("*;q=0", None),
        ("gzip;q=x", None),
        ("GZIP", "gzip"),
    ],
)
def test_answers_are_compressed_as_asked(accept: str | None, encoding: str | None) -> None:
    pieces, chosen = compress(LARGE, accept)
    assert chosen == encoding
    assert decompress(b"".join(pieces), chosen, 2000) == b"".join(LARGE)


def test_small_answers_are_left_alone() -> None:
    assert compress([b"a" * 1023], "gzip") == ([b"a" * 1023], None)
    assert compress([b"a" * 1024], "gzip")[1] == "gzip"


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_the_client_understands_compressed_answers(encoding: str) -> None:
    array = np.arange(1000, dtype=np.float32)
    pieces, json_length = oip_binary.encode_response(InferResponse("m", "1", "", [tensor("y", array)]), {"y"})
    packed, chosen = compress(pieces, encoding)
    assert chosen == encoding
    np.testing.assert_array_equal(http_result(b"".join(packed), json_length, chosen).as_numpy("y"), array)
