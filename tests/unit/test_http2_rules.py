"""Peers that break the rules of HTTP/2, by mistake or on purpose: told which and closed, and nothing is left behind."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.transport.http2 import Http2Server
from tests.support.http2_kit import App, Peer, headers, message
from tests.support.transport import turns

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
PROTOCOL_ERROR, FLOW_CONTROL, STREAM_CLOSED, FRAME_SIZE, COMPRESSION, CALM = 1, 3, 5, 6, 9, 11


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def block(path: str = "/s/Echo", **more: str) -> bytes:
    return hpack.Encoder().encode(headers(path, **more))


@pytest.fixture
async def app() -> App:
    return App()


@pytest.fixture
async def server(app: App) -> AsyncIterator[Http2Server]:
    server = Http2Server(app, max_connections=3)
    yield server
    await server.drain(0)
    await turns()


@pytest.fixture
async def peer(server: Http2Server) -> Peer:
    return Peer(server)


# ---------------------------------------------------------------- peers that break the rules


UPDATE = struct.Struct(">I").pack


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(frame(HEADERS, 5, 2, block()), PROTOCOL_ERROR, id="even stream"),
        pytest.param(frame(HEADERS, 5, 0, block()), PROTOCOL_ERROR, id="headers on stream 0"),
        pytest.param(frame(HEADERS, 4, 1, block()) * 2, PROTOCOL_ERROR, id="second headers that end nothing"),
        pytest.param(
            frame(HEADERS, 5, 5, block()) + frame(HEADERS, 4, 3, block()), STREAM_CLOSED, id="stream numbers go back"
        ),
        pytest.param(frame(HEADERS, 4, 1, b"\xff\xff\xff\xff\xff"), COMPRESSION, id="garbage block"),
        pytest.param(frame(HEADERS, 4, 1, b"\xbf"), COMPRESSION, id="index outside of the table"),
        pytest.param(frame(HEADERS, 0x24, 1, bytes(3)), FRAME_SIZE, id="cut priority"),
        pytest.param(frame(HEADERS, 0xC, 1, b"\x09abc"), PROTOCOL_ERROR, id="padding over headers"),
        pytest.param(frame(HEADERS, 0, 1, b"") + frame(PING, 0, 0, bytes(8)), PROTOCOL_ERROR, id="not continued"),
        pytest.param(frame(HEADERS, 0, 1, b"") + frame(CONTINUATION, 4, 3, b""), PROTOCOL_ERROR, id="other continued"),
        pytest.param(frame(CONTINUATION, 4, 1, block()), PROTOCOL_ERROR, id="continuation of nothing"),
        pytest.param(
            frame(HEADERS, 0, 1, b"") + frame(CONTINUATION, 0, 1, bytes(16_000)) * 5, CALM, id="continuation flood"
        ),
        pytest.param(
            frame(HEADERS, 0, 1, b"") + frame(CONTINUATION, 0, 1, b"") * 5, CALM, id="flood of empty continuations"
        ),
        pytest.param(frame(HEADERS, 4, 1, bytes(70_000)), CALM, id="large block"),
        pytest.param(frame(HEADERS, 4, 1, block(x="v" * 65_500)), COMPRESSION, id="large list"),
        pytest.param(frame(DATA, 0, 1, b"x"), PROTOCOL_ERROR, id="data on no stream"),
        pytest.param(frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR, id="data on stream 0"),
        pytest.param(
            frame(HEADERS, 4, 1, block()) + frame(DATA, 8, 1, b"\x05abc"), PROTOCOL_ERROR, id="padding over data"
        ),
        pytest.param(
            frame(DATA, 0, 1, b"")[:3].replace(b"\0\0\0", b"\x20\0\0") + bytes(6), FRAME_SIZE, id="large frame"
        ),
        pytest.param(frame(RST_STREAM, 0, 1, bytes(4)), PROTOCOL_ERROR, id="reset of no stream"),
        pytest.param(frame(RST_STREAM, 0, 0, bytes(4)), FRAME_SIZE, id="reset of stream 0"),
        pytest.param(frame(RST_STREAM, 0, 1, bytes(3)), FRAME_SIZE, id="cut reset"),
        pytest.param(frame(SETTINGS, 0, 0, bytes(5)), FRAME_SIZE, id="cut settings"),
        pytest.param(frame(SETTINGS, 1, 0, bytes(6)), FRAME_SIZE, id="acknowledgement with settings"),
        pytest.param(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 31)), FLOW_CONTROL, id="initial window"),
        pytest.param(frame(SETTINGS, 0, 0, struct.pack(">HI", 5, 1)), PROTOCOL_ERROR, id="frame size"),
        pytest.param(frame(PING, 0, 0, bytes(7)), FRAME_SIZE, id="cut ping"),
        pytest.param(frame(WINDOW_UPDATE, 0, 0, UPDATE(0)), FLOW_CONTROL, id="window of nothing"),
        pytest.param(frame(WINDOW_UPDATE, 0, 0, UPDATE((1 << 31) - 1)), FLOW_CONTROL, id="window overflow"),
        pytest.param(frame(WINDOW_UPDATE, 0, 0, bytes(3)), FRAME_SIZE, id="cut window update"),
        pytest.param(frame(PUSH_PROMISE, 4, 1, bytes(8)), PROTOCOL_ERROR, id="push"),
    ],
)
async def test_a_peer_that_breaks_the_rules_is_told_which_and_closed(
    peer: Peer, app: App, data: bytes, code: int
) -> None:
    peer.feed(data)
    peer.read()
    assert peer.goaway == code
    assert peer.closed
    await turns()
    assert all(call.ended for call in app.begun)
    assert app.held == 0


async def test_an_impossible_window_of_a_stream_ends_that_stream(peer: Peer, app: App) -> None:
    stream = await peer.call(b"x", "/s/Wait")
    peer.feed(frame(WINDOW_UPDATE, 0, stream, UPDATE((1 << 31) - 1)))
    await turns()
    assert frame(RST_STREAM, 0, stream, UPDATE(FLOW_CONTROL)) in peer.take()
    assert app.begun[0].cancelled


async def test_late_frames_of_a_stream_that_is_answered_are_ignored(peer: Peer) -> None:
    stream = peer.open("/s/No")
    late = (
        frame(DATA, 0, stream, b"x")
        + frame(WINDOW_UPDATE, 0, stream, UPDATE(1))
        + frame(RST_STREAM, 0, stream, bytes(4))
    )
    peer.feed(late + frame(HEADERS, 5, stream, b""))
    peer.read()
    assert peer.goaway is None
    assert peer.status(await peer.call(b"x")) == 0


@pytest.mark.parametrize("data", [b"GET /v2 HTTP/1.1\r\nhost: h\r\n\r\n", b"\x16\x03\x01\x02", b"PRI * HTTP/1"])
async def test_what_does_not_speak_http2_is_told_so_in_http1(server: Http2Server, data: bytes) -> None:
    peer = Peer(server, hello=False)
    peer.take()
    peer.feed(data)
    head, _, body = peer.take().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"content-length: %d" % len(body) in head
    assert b"gRPC" in body
    assert peer.closed


@given(st.binary(max_size=300), st.integers(1, 60))
async def test_garbage_never_raises_and_never_leaves_anything_behind(data: bytes, size: int) -> None:
    app = App()
    server = Http2Server(app)
    for prefix in (b"", PREFACE, PREFACE + frame(HEADERS, 4, 1, block()) + frame(DATA, 0, 1, b"\0")):
        peer = Peer(server, hello=False)
        peer.feed(prefix + data, size)
        await turns()
        peer.hang_up()
        await turns()
    assert app.held == 0
    assert server.connections == set()
    await server.drain(0)


frames = st.builds(
    frame,
    st.integers(0, 10),
    st.integers(0, 255),
    st.integers(0, 7),
    st.one_of(st.binary(max_size=20), st.just(block()), st.just(message(b"x")), st.integers(0, 70_000).map(UPDATE)),
)


@given(st.lists(frames, max_size=30))
async def test_frames_in_any_order_never_raise_and_never_leave_anything_behind(given_frames: list[bytes]) -> None:
    app = App()
    server = Http2Server(app)
    peer = Peer(server, hello=False)
    peer.feed(PREFACE)
    for one in given_frames:
        peer.feed(one)
        await turns(2)
    peer.hang_up()
    await turns()
    assert app.held == 0
    assert all(call.ended for call in app.begun)
    await server.drain(0)
