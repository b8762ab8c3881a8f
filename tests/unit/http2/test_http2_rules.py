"""Peers that break the rules of HTTP/2, by mistake or on purpose: told which and closed, and nothing is left behind."""

from __future__ import annotations

import struct

import h2.settings
import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.transport.grpc_calls import OK_TRAILERS
from serving.transport.http2 import SWEEP_S, Http2Server
from serving.transport.http2_connection import MAX_STREAMS
from serving.transport.outbox import MAX_SETTINGS, Outbox
from tests.support.http2_kit import (
    CALM,
    COMPRESSION,
    CONTINUATION,
    DATA,
    FLOW_CONTROL,
    FRAME_SIZE,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    UPDATE,
    WINDOW_UPDATE,
    App,
    Peer,
    block,
    frame,
    headers,
    message,
)
from tests.support.transport import LoopClock, turns

# ---------------------------------------------------------------- peers that break the rules


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


def opened(server: Http2Server, path: str, window: int = 65_535) -> Peer:
    """A peer with as many calls as it may have at once."""
    peer = Peer(server, hello=False)
    encoder = hpack.Encoder()
    peer.feed(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, window)))
    for number in range(1, 2 * MAX_STREAMS, 2):
        peer.feed(frame(HEADERS, 4, number, encoder.encode(headers(path))) + frame(DATA, 1, number, message(b"x")))
    return peer


@pytest.mark.parametrize("flood", [frame(SETTINGS, 0, 0) * 1000, frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1) * 33)])
async def test_a_peer_that_changes_its_settings_over_and_over_is_told_off(
    server: Http2Server, app: App, flood: bytes
) -> None:
    peer = opened(server, "/s/Wait")
    peer.feed(flood)
    assert peer.take().endswith(frame(GOAWAY, 0, 0, UPDATE(2 * MAX_STREAMS - 1) + UPDATE(CALM)))
    assert peer.closed
    await turns()
    assert all(call.ended for call in app.begun)


async def test_settings_now_and_then_are_taken_for_ever(peer: Peer, clock: LoopClock) -> None:
    for _ in range(5):
        peer.feed(frame(SETTINGS, 0, 0) * (MAX_SETTINGS - 1))
        await clock.advance(2 * SWEEP_S)
    assert peer.status(await peer.call(b"x")) == 0


async def test_small_control_frames_do_not_cost_a_look_at_every_answer_that_waits(
    server: Http2Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = opened(server, "/s/Echo", window=0)
    await turns(3 * MAX_STREAMS)
    looked: list[int] = []
    real = Outbox.take
    monkeypatch.setattr(Outbox, "take", lambda box, number, stream: looked.append(number) or real(box, number, stream))
    peer.take()
    peer.feed(frame(WINDOW_UPDATE, 0, 0, UPDATE(1)) * 1000 + frame(SETTINGS, 0, 0) * 10)
    assert looked == []
    peer.feed(frame(WINDOW_UPDATE, 0, 5, UPDATE(2)) + frame(WINDOW_UPDATE, 0, 3, UPDATE(100)))
    assert looked == [5, 3]
    said = frame(DATA, 0, 5, b"\0\0") + frame(DATA, 0, 3, message(b"x")) + frame(HEADERS, 5, 3, OK_TRAILERS)
    assert peer.take().endswith(said)


async def test_a_window_for_all_goes_to_the_answers_in_the_order_in_which_they_began_to_wait(peer: Peer) -> None:
    peer.acknowledge = False
    peer.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20})
    peer.flush()
    streams = [await peer.call(bytes(60_000)) for _ in range(3)]
    sizes = []
    for _ in range(3):
        sizes.append([len(peer.data[stream]) for stream in streams])
        peer.h2.increment_flow_control_window(57_240)
        peer.flush()
        peer.read()
    assert sizes == [[60_005, 5_530, 0], [60_005, 60_005, 2_765], [60_005, 60_005, 60_005]]


async def test_settings_that_make_a_streams_window_impossible_end_the_connection(peer: Peer) -> None:
    stream = await peer.call(b"x", "/s/Wait")
    peer.feed(frame(WINDOW_UPDATE, 0, stream, UPDATE((1 << 31) - 1 - 65_535)))
    peer.feed(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65_535)))
    peer.read()
    assert not peer.closed
    peer.feed(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65_536)))
    peer.read()
    assert peer.goaway == FLOW_CONTROL


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
