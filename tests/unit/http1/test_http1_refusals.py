"""Bytes that are no request of HTTP/1.1, or that somebody else might read as another one: refused, and nothing kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.transport.http1 import MAX_HEAD, MAX_HEADERS, Http1Server
from tests.support.http1_kit import App, Peer, get, post
from tests.support.transport import turns

# ---------------------------------------------------------------- bytes that are no request


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="no host"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: a\r\nHost: b\r\n\r\n", id="two hosts"),
        pytest.param(b"GET / HTTP/1.0\r\nhost: a\r\nhost: a\r\n\r\n", id="two hosts of HTTP/1.0"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS"),
        pytest.param(b"\x00\x01\x02\x03\xff\xfe", id="garbage"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(b"GET / HTTP/3.7\r\nhost: h\r\n\r\n", id="version"),
        pytest.param(b"GET /a b HTTP/1.1\r\nhost: h\r\n\r\n", id="space in the target"),
        pytest.param(b"GET http://[bad HTTP/1.1\r\nhost: h\r\n\r\n", id="target is no URL"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: h\r\nbad name: x\r\n\r\n", id="space in a name"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: h\r\nname : x\r\n\r\n", id="space before the colon"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: h\r\nx: a\x00b\r\n\r\n", id="NUL in a value"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: h\r\nx: a\rb\r\n\r\n", id="bare CR"),
        pytest.param(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef", id="CL CL"),
        pytest.param(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5, 6\r\n\r\nabcdef", id="CL list"),
        pytest.param(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: +5\r\n\r\nabcde", id="CL sign"),
        pytest.param(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 0x5\r\n\r\nabcde", id="CL hexadecimal"),
        pytest.param(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: -1\r\n\r\n", id="CL negative"),
        pytest.param(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 99999999999999999999\r\n\r\n", id="CL overflow"),
        pytest.param(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length:\r\n\r\n", id="CL empty"),
        pytest.param(
            b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            id="CL TE",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
            id="TE CL",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
            id="TE TE",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: 3\r\n"
            b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            id="CL TE of an upgrade",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: h2c\r\n"
            b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
            id="TE TE of an upgrade",
        ),
        pytest.param(b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n", id="TE unknown"),
        pytest.param(
            b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n", id="TE with a space"
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nhost: h\r\nx: y\r\n transfer-encoding: chunked\r\n\r\n0\r\n\r\n", id="folded line"
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nspam\r\n0\r\n\r\n", id="chunk size"
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n-4\r\nspam\r\n0\r\n\r\n",
            id="chunk size negative",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n4\r\nspamX0\r\n\r\n", id="chunk too long"
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
            id="chunk overflow",
        ),
    ],
)
async def test_what_is_not_exactly_a_request_is_refused_once_and_ends_the_connection(
    peer: Peer, app: App, data: bytes
) -> None:
    """Whoever reads these another way than the proxy before it can be made to take a body for a request."""
    peer.feed(data + get("/smuggled"))
    await turns()
    answer = peer.answer()
    assert (answer.status, answer.headers[b"connection"]) == (400, b"close")
    assert all(exchange.head.path != "/smuggled" for exchange in app.begun)
    assert app.held == 0


@given(st.binary(max_size=400), st.integers(1, 50))
async def test_garbage_never_raises_and_never_leaves_anything_behind(data: bytes, size: int) -> None:
    app = App()
    server = Http1Server(app)
    for prefix in (b"", post(b"spam")[:-2], b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"):
        peer = Peer(server)
        peer.feed(prefix + data, size)
        await turns()
        peer.hang_up()
        await turns()
    assert app.held == 0
    assert server.connections == set()
    assert all(exchange.ended for exchange in app.begun)
    await server.drain(0)


@pytest.mark.parametrize("size", [1 << 18, 1000])
@pytest.mark.parametrize(
    "head",
    [
        pytest.param(get("/" + "a" * MAX_HEAD), id="target"),
        pytest.param(get("/", "x: " + "a" * MAX_HEAD), id="one header"),
        pytest.param(get("/", *(f"x-{n}: {'a' * 500}" for n in range(140))), id="all headers"),
        pytest.param(get("/", *(f"x-{n}: a" for n in range(MAX_HEADERS))), id="many headers"),
    ],
)
async def test_a_head_over_the_limits_is_refused(peer: Peer, app: App, head: bytes, size: int) -> None:
    peer.feed(head, size)
    await turns()
    assert peer.answer().status == 431
    assert app.begun == []


async def test_a_head_or_trailers_without_end_are_not_kept(server: Http1Server) -> None:
    chunked = b"POST /echo HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    for beginning in (b"GET / HTTP/1.1\r\nx: ", chunked + b"x: ", chunked[:-3] + b"1;"):
        peer = Peer(server)
        peer.feed(beginning + b"a" * (MAX_HEAD + 3000), 1000)
        await turns()
        assert peer.answer().status == 431
        peer.hang_up()
        await turns()


async def test_what_comes_before_a_head_does_not_count_as_that_head(peer: Peer) -> None:
    peer.feed(post(bytes(100_000)) + get("/next")[:20])
    peer.feed(get("/next")[20:])
    await turns()
    assert [answer.status for answer in peer.answers()] == [200, 200]
