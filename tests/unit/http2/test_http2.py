"""gRPC's HTTP/2 as the server speaks it, with `h2` as the peer where the peer is honest and raw frames where not."""

from __future__ import annotations

import asyncio
import struct

import h2.settings
import pytest

from serving.transport.http2 import Http2Server
from serving.transport.http2_connection import MAX_RESETS, MAX_STREAMS
from tests.support.http2_kit import (
    CALM,
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    UPDATE,
    App,
    Peer,
    block,
    frame,
    message,
)
from tests.support.transport import LoopClock, turns

# ---------------------------------------------------------------- calls


async def test_calls_are_answered_one_after_the_other(peer: Peer, app: App) -> None:
    for number in range(5):
        stream = await peer.call(b"payload %d" % number)
        assert peer.first[stream][b":status"] == b"200"
        assert peer.first[stream][b"content-type"] == b"application/grpc"
        assert peer.data[stream] == message(b"payload %d" % number)
        assert peer.trailers[stream] == {b"grpc-status": b"0"}
    assert app.held == 0
    assert all(call.ended for call in app.begun)


@pytest.mark.parametrize("size", [1, 3, 10, 100])
async def test_how_the_bytes_are_cut_does_not_matter(server: Http2Server, app: App, size: int) -> None:
    peer = Peer(server, hello=False)
    calls = b"".join(
        frame(HEADERS, 4, number, block()) + frame(DATA, 1, number, message(b"x" * number)) for number in (1, 3, 5)
    )
    peer.feed(PREFACE + frame(SETTINGS, 0, 0) + calls, size)
    await turns()
    assert app.asked == ["/s/Echo"] * 3
    assert peer.take().count(b"x") == 1 + 3 + 5


async def test_calls_are_answered_as_they_are_done(peer: Peer, app: App) -> None:
    slow, quick = await peer.call(b"slow", "/s/Wait"), await peer.call(b"quick")
    assert peer.status(quick) == 0
    assert slow not in peer.trailers
    app.begun[0].gate.set()
    await turns()
    peer.read()
    assert peer.data[slow] == message(b"slow")


async def test_a_refusal_needs_no_message_and_its_words_are_encoded(peer: Peer, app: App) -> None:
    stream = peer.open("/s/No")
    peer.read()
    assert peer.status(stream) == 12
    assert peer.trailers[stream][b"grpc-message"] == b"no 100 %25 sure: %C3%BC"
    assert peer.resets == {stream: 0}  # it need not go on sending
    assert app.asked == []
    assert (await peer.call(b"next")) in peer.trailers


async def test_a_message_over_the_limit_is_refused_while_it_arrives(peer: Peer, app: App) -> None:
    app.limit = 50_000
    stream = peer.open()
    await peer.send(stream, bytes(40_000), end=False)
    assert stream not in peer.trailers
    peer.feed(frame(DATA, 0, stream, bytes(16_000)))
    peer.feed(frame(DATA, 1, stream, bytes(16_000)))  # sent before the answer was read
    peer.read()
    assert peer.status(stream) == 8
    assert app.held == 0
    assert peer.goaway is None


async def test_a_call_without_a_message_is_the_applications_business(peer: Peer, app: App) -> None:
    stream = peer.open(end=True)
    await turns()
    peer.read()
    assert peer.status(stream) == 0
    assert app.asked == ["/s/Echo"]


async def test_trailers_end_a_call(peer: Peer) -> None:
    stream = peer.open()
    await peer.send(stream, message(b"hello"), end=False)
    peer.h2.send_headers(stream, [("x-checksum", "1")], end_stream=True)
    peer.flush()
    await turns()
    peer.read()
    assert peer.data[stream] == message(b"hello")


async def test_an_application_that_breaks_costs_its_call_only(peer: Peer, app: App) -> None:
    broken = await peer.call(b"x", "/s/Breaks")
    assert peer.resets == {broken: 2}
    assert app.begun[0].ended
    assert peer.status(await peer.call(b"next")) == 0


# ---------------------------------------------------------------- flow control


@pytest.mark.parametrize("window", [1, 100, 65_535])
async def test_a_large_answer_waits_for_the_peers_windows(peer: Peer, window: int) -> None:
    size = min(200_000, window * 300)
    peer.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
    peer.flush()
    peer.read()
    stream = peer.open()
    await peer.send(stream, message(bytes(size)))
    await turns()
    for _ in range(400):
        peer.read()
    assert peer.data[stream] == message(bytes(size))
    assert peer.status(stream) == 0
    assert max(peer.frames) <= min(window, 16_384)


async def test_an_answer_does_not_exceed_the_connections_window_whatever_the_streams_allow(peer: Peer) -> None:
    peer.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20})
    peer.flush()
    peer.acknowledge = False
    streams = [await peer.call(bytes(40_000)) for _ in range(3)]
    assert sum(len(peer.data[stream]) for stream in streams) == 65_535  # h2 would raise at one more
    peer.h2.increment_flow_control_window(100_000)
    peer.flush()
    peer.read()
    assert [len(peer.data[stream]) for stream in streams] == [40_005] * 3
    assert [peer.status(stream) for stream in streams] == [0] * 3


async def test_a_smaller_initial_window_takes_back_what_was_given(peer: Peer) -> None:
    """The window of a stream may become negative (RFC 9113, section 6.9.2)."""
    peer.acknowledge = False
    stream = await peer.call(bytes(100_000))
    assert len(peer.data[stream]) == 65_535
    peer.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1000})
    peer.flush()
    peer.read()
    peer.h2.increment_flow_control_window(1 << 20)
    peer.h2.increment_flow_control_window(64_535, stream)
    peer.flush()
    peer.read()
    assert len(peer.data[stream]) == 65_535
    peer.h2.increment_flow_control_window(10, stream)
    peer.flush()
    peer.read()
    assert len(peer.data[stream]) == 65_545


async def test_frames_are_as_large_as_the_peer_takes(peer: Peer) -> None:
    peer.h2.update_settings({h2.settings.SettingCodes.MAX_FRAME_SIZE: 30_000})
    peer.flush()
    peer.read()
    await peer.call(bytes(60_000))
    assert max(peer.frames) == 30_000


async def test_a_large_message_of_many_frames_gets_its_windows_back(peer: Peer, app: App) -> None:
    for _ in range(4):
        stream = await peer.call(bytes(7 << 20))  # with h2 as the judge of both windows
        assert len(peer.data[stream]) == (7 << 20) + 5
    assert app.held == 0


async def test_padding_counts_in_windows_and_not_in_messages(peer: Peer) -> None:
    stream = peer.open()
    await peer.send(stream, message(bytes(3 << 20)), padding=255)
    await turns()
    peer.read()
    assert len(peer.data[stream]) == (3 << 20) + 5


# ---------------------------------------------------------------- frames that change nothing


async def test_pings_are_answered_and_acknowledgements_are_not(peer: Peer) -> None:
    peer.h2.ping(b"12345678")
    peer.flush()
    peer.read()
    assert peer.acknowledged == [b"12345678"]
    peer.feed(frame(PING, 1, 0, bytes(8)))
    assert peer.take() == b""


async def test_unknown_frames_settings_and_priorities_are_ignored(peer: Peer) -> None:
    peer.feed(frame(0x42, 0xFF, 7, b"anything"))
    peer.feed(frame(SETTINGS, 0, 0, struct.pack(">HI", 0x4242, 1)))
    peer.feed(frame(PRIORITY, 0, 9, bytes(5)))
    peer.feed(frame(GOAWAY, 0, 0, bytes(8)))
    peer.read()
    assert peer.status(await peer.call(b"on")) == 0


async def test_a_priority_and_padding_in_headers_are_skipped(peer: Peer, app: App) -> None:
    payload = bytes((4,)) + bytes(5) + block() + bytes(4)
    peer.feed(frame(HEADERS, 0x4 | 0x8 | 0x20 | 0x1, 1, payload))
    await turns()
    assert app.begun[0].path == "/s/Echo"


async def test_headers_may_be_continued(peer: Peer, app: App) -> None:
    whole = block(**{"x-long": "v" * 3000})
    peer.feed(frame(HEADERS, 0, 1, whole[:100]))
    for at in range(100, len(whole), 100):
        last = at + 100 >= len(whole)
        peer.feed(frame(CONTINUATION, 4 if last else 0, 1, whole[at : at + 100]))
    peer.feed(frame(DATA, 1, 1, message(b"x")))
    await turns()
    assert app.begun[0].headers[b"x-long"] == b"v" * 3000
    assert app.asked == ["/s/Echo"]


# ---------------------------------------------------------------- calls that are taken back


async def test_a_reset_drops_the_work(peer: Peer, app: App) -> None:
    stream = await peer.call(b"x" * 100, "/s/Wait")
    peer.h2.reset_stream(stream, 8)
    peer.flush()
    await turns()
    assert app.begun[0].cancelled
    assert (app.begun[0].ended, app.held) == (True, 0)
    assert peer.status(await peer.call(b"next")) == 0


async def test_a_reset_while_the_message_arrives_gives_its_bytes_back(peer: Peer, app: App) -> None:
    stream = peer.open()
    await peer.send(stream, bytes(10_000), end=False)
    assert app.held == 10_000
    peer.h2.reset_stream(stream, 8)
    peer.flush()
    assert app.held == 0


async def test_rapid_resets_are_stopped(peer: Peer, app: App) -> None:
    for number in range(1, 2 * MAX_RESETS, 2):
        peer.feed(frame(HEADERS, 4, number, block("/s/Wait")) + frame(RST_STREAM, 0, number, bytes(4)))
    assert not peer.closed
    for number in range(2 * MAX_RESETS + 1, 4 * MAX_RESETS, 2):
        peer.feed(frame(HEADERS, 4, number, block("/s/Wait")) + frame(RST_STREAM, 0, number, bytes(4)))
    peer.read()
    assert peer.goaway == CALM
    assert peer.closed
    assert len(app.begun) <= MAX_RESETS + 1


async def test_a_client_that_lets_calls_finish_may_take_some_back_for_ever(peer: Peer) -> None:
    for _ in range(MAX_RESETS // 4):
        for _ in range(5):
            stream = await peer.call(b"", "/s/Wait")
            peer.h2.reset_stream(stream, 8)
        for _ in range(5):
            await peer.call(b"x")
    assert not peer.closed


async def test_streams_over_the_limit_are_refused_and_may_be_tried_again(peer: Peer, app: App) -> None:
    for number in range(1, 2 * MAX_STREAMS, 2):
        peer.feed(frame(HEADERS, 4, number, block("/s/Wait")))
    assert len(app.begun) == MAX_STREAMS
    peer.take()
    peer.feed(frame(HEADERS, 5, 2 * MAX_STREAMS + 1, block()))
    assert peer.take() == frame(RST_STREAM, 0, 2 * MAX_STREAMS + 1, UPDATE(7))
    assert len(app.begun) == MAX_STREAMS


# ---------------------------------------------------------------- the end


async def test_a_disconnect_drops_all_work(peer: Peer, app: App) -> None:
    await peer.call(b"x", "/s/Wait")
    await peer.send(peer.open(), bytes(1000), end=False)
    peer.hang_up()
    await turns()
    assert app.begun[0].cancelled
    assert all(call.ended for call in app.begun)
    assert app.held == 0


async def test_more_connections_than_the_limit_are_closed_at_once_and_counted(server: Http2Server) -> None:
    peers = [Peer(server, hello=False) for _ in range(5)]
    assert [peer.closed for peer in peers] == [False, False, False, True, True]
    assert server.refused == 2


async def test_draining_says_so_answers_what_was_asked_and_takes_no_more(server: Http2Server, app: App) -> None:
    idle, busy = Peer(server), Peer(server)
    stream = await busy.call(b"asked", "/s/Wait")
    draining = asyncio.get_running_loop().create_task(server.drain(60))
    await turns()
    idle.read()
    assert (idle.goaway, idle.closed) == (0, True)
    busy.feed(frame(HEADERS, 5, stream + 2, block()))  # sent before the GOAWAY was read
    said = busy.take()  # raw: h2 takes a connection for closed at the GOAWAY
    assert said.startswith(frame(GOAWAY, 0, 0, UPDATE(stream) + UPDATE(0)))
    assert said.endswith(frame(RST_STREAM, 0, stream + 2, UPDATE(7)))
    app.begun[0].gate.set()
    await turns()
    assert frame(DATA, 0, stream, message(b"asked")) in busy.take()
    assert busy.closed
    await turns()
    assert draining.done()
    assert len(app.begun) == 1


async def test_draining_ends_in_time_whatever_clients_do(
    server: Http2Server, peer: Peer, app: App, clock: LoopClock
) -> None:
    await peer.call(b"x", "/s/Wait")
    draining = asyncio.get_running_loop().create_task(server.drain(4))
    await turns()
    await clock.advance(3)
    assert not draining.done()
    await clock.advance(2)
    assert draining.done()
    assert peer.aborted
    assert app.begun[0].cancelled
