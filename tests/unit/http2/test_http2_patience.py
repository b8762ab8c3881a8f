"""How long a peer is waited for that says, reads or takes too little, and what it holds meanwhile."""

from __future__ import annotations

import struct

import h2.settings
import pytest

from serving.transport.http2 import SWEEP_S, Http2Server
from serving.transport.http2_connection import PATIENCE_S, TAKEN_LEAST
from tests.support.http2_kit import (
    DATA,
    HEADERS,
    PING,
    PREFACE,
    PUSH_PROMISE,
    SETTINGS,
    UPDATE,
    WINDOW_UPDATE,
    App,
    Peer,
    block,
    frame,
    message,
)
from tests.support.transport import LoopClock, turns


async def test_a_connection_that_does_not_introduce_itself_is_closed(server: Http2Server, clock: LoopClock) -> None:
    peer = Peer(server, hello=False)
    peer.feed(PREFACE[:10])
    await clock.advance(PATIENCE_S - 2)
    assert not peer.closed
    await clock.advance(2 + SWEEP_S)
    assert peer.closed


async def test_a_connection_without_calls_stays(peer: Peer, clock: LoopClock) -> None:
    for _ in range(10):
        await clock.advance(60)
    assert peer.status(await peer.call(b"x")) == 0


async def test_a_message_that_does_not_come_to_its_end_is_given_back(peer: Peer, app: App, clock: LoopClock) -> None:
    stream = peer.open()
    await peer.send(stream, bytes(10_000), end=False)
    await clock.advance(PATIENCE_S + 2 * SWEEP_S)
    peer.read()
    assert peer.status(stream) == 4
    assert app.held == 0
    assert not peer.closed


async def test_a_message_that_was_not_read_is_not_late(peer: Peer, app: App, clock: LoopClock) -> None:
    upload = peer.open()
    peer.feed(frame(DATA, 0, upload, message(b"x" * 10)[:9]))
    peer.stuck = True
    await peer.call(bytes(60_000))
    for _ in range(2):
        peer.unread -= TAKEN_LEAST
        await clock.advance(PATIENCE_S + 2 * SWEEP_S)
    peer.free()
    await clock.advance(PATIENCE_S - 2 * SWEEP_S)
    peer.feed(frame(DATA, 1, upload, b"x" * 6))
    await turns()
    peer.read()
    assert peer.status(upload) == 0


@pytest.mark.parametrize("half", [frame(DATA, 0, 1, bytes(100))[:50], frame(HEADERS, 0, 1, block())])
async def test_half_a_frame_or_header_block_is_not_kept_for_ever(peer: Peer, clock: LoopClock, half: bytes) -> None:
    peer.feed(half)
    await clock.advance(PATIENCE_S + 2 * SWEEP_S)
    assert peer.aborted


async def test_the_application_may_take_its_time(peer: Peer, app: App, clock: LoopClock) -> None:
    stream = await peer.call(b"x", "/s/Wait")
    for _ in range(10):
        await clock.advance(60)
    app.begun[0].gate.set()
    await turns()
    peer.read()
    assert peer.status(stream) == 0


async def test_an_answer_that_nobody_takes_is_dropped_and_one_that_is_taken_slowly_is_not(
    peer: Peer, app: App, clock: LoopClock
) -> None:
    peer.acknowledge = False
    stream = await peer.call(bytes(200_000))
    peer.h2.increment_flow_control_window(1 << 20)
    for given in (TAKEN_LEAST, TAKEN_LEAST, TAKEN_LEAST, TAKEN_LEAST - 1):
        assert peer.resets == {}
        for piece in (100, given - 100):
            peer.h2.increment_flow_control_window(piece, stream)
            peer.flush()
            await clock.advance(PATIENCE_S / 2 + SWEEP_S)
            peer.read()
    assert len(peer.data[stream]) == 65_535 + 4 * TAKEN_LEAST - 1
    assert peer.resets == {stream: 8}


async def test_an_answer_that_waits_holds_nothing_and_frames_that_let_nothing_through_do_not_keep_it(
    peer: Peer, app: App, clock: LoopClock
) -> None:
    peer.feed(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)))
    stream = await peer.call(bytes(1000))
    assert app.begun[0].ended
    assert app.held == 0
    for _ in range(3):
        peer.feed(frame(SETTINGS, 0, 0) + frame(WINDOW_UPDATE, 0, 0, UPDATE(1)))
        await clock.advance(20)
    peer.read()
    assert peer.resets == {stream: 8}


async def test_an_answer_whose_turn_has_not_come_is_kept_while_those_before_it_are_taken(
    peer: Peer, clock: LoopClock
) -> None:
    peer.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20})
    peer.flush()
    peer.acknowledge = False
    streams = [await peer.call(bytes(100_000)) for _ in range(3)]
    for _ in range(15):
        peer.h2.increment_flow_control_window(TAKEN_LEAST)
        peer.flush()
        await clock.advance(PATIENCE_S - 5)
        peer.read()
    assert [peer.status(stream) for stream in streams] == [0] * 3


async def test_a_peer_that_reads_nothing_is_closed(peer: Peer, app: App, clock: LoopClock) -> None:
    peer.stuck = True
    await peer.call(b"x")
    assert not peer.reading  # take nothing more from it
    await clock.advance(PATIENCE_S + 2 * SWEEP_S)
    assert peer.aborted
    assert app.held == 0


async def test_a_peer_that_reads_slowly_is_waited_for_and_one_that_all_but_stops_is_not(
    peer: Peer, app: App, clock: LoopClock
) -> None:
    later = await peer.call(bytes(8 * TAKEN_LEAST), "/s/Wait")
    peer.stuck = True
    waits = await peer.call(bytes(100_000))  # longer than its window
    for _ in range(3):
        peer.unread -= TAKEN_LEAST
        await clock.advance(PATIENCE_S + 2 * SWEEP_S)
        assert not peer.closed
    app.begun[0].gate.set()  # what is added meanwhile does not hide that it reads
    peer.unread -= TAKEN_LEAST
    await clock.advance(PATIENCE_S + 2 * SWEEP_S)
    assert not peer.closed
    peer.read()
    assert not {waits, later} & peer.resets.keys()  # that they wait for windows that it gave is not known yet
    peer.unread -= TAKEN_LEAST - 1
    await clock.advance(PATIENCE_S + 2 * SWEEP_S)
    assert peer.aborted
    assert app.held == 0


async def test_what_came_while_a_peer_was_not_listened_to_is_not_late(peer: Peer, clock: LoopClock) -> None:
    peer.stuck = True
    peer.acknowledge = False
    stream = await peer.call(bytes(100_000))
    whole = frame(PING, 0, 0, bytes(8))
    peer.feed(whole[:12])
    peer.unread -= TAKEN_LEAST
    await clock.advance(PATIENCE_S + 2 * SWEEP_S)
    peer.free()
    await clock.advance(PATIENCE_S - 2 * SWEEP_S)
    peer.feed(whole[12:])
    peer.h2.increment_flow_control_window(1 << 20)
    peer.h2.increment_flow_control_window(1 << 20, stream)
    peer.flush()
    peer.read()
    assert peer.status(stream) == 0


async def test_a_peer_that_is_told_off_and_does_not_read_that_is_closed(peer: Peer, clock: LoopClock) -> None:
    peer.stuck = True
    peer.close = lambda: None  # type: ignore[method-assign]  # it has not been sent yet
    peer.feed(frame(PUSH_PROMISE, 4, 1, bytes(8)))
    del peer.close  # type: ignore[attr-defined]
    await clock.advance(PATIENCE_S + 2 * SWEEP_S)
    assert peer.aborted
