"""What a peer lets us send: its windows, its settings, and the answers that wait for them (RFC 9113, section 6.9).

A frame of a few bytes must not cost a look at every stream. So the window of a stream is kept as what it has beyond
the peer's initial one, and the streams that wait for nothing but the connection's window are kept apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from serving.transport.frames import (
    DATA,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    INITIAL_WINDOW_ID,
    MAX_FRAME_ID,
    PROTOCOL_ERROR,
    SETTING,
    PeerError,
    frame,
)
from serving.transport.grpc_calls import GrpcCall

#: Entries of one SETTINGS frame, and such frames between two sweeps: each that enlarges windows costs a look at all
#: streams, and honest peers send a few in their life.
MAX_SETTINGS = 32
LARGEST_WINDOW = (1 << 31) - 1


class Stream:
    """One call."""

    __slots__ = ("call", "complete", "given", "left", "message", "outgoing", "passed", "received", "since", "task")

    def __init__(self, call: GrpcCall, now: float) -> None:
        self.call = call
        self.message: list[bytes] = []  # DATA as it came, the 5 bytes before the message included
        self.received = 0  # bytes since the last WINDOW_UPDATE
        self.complete = False  # the client has said all
        self.since = now  # how long we wait for the peer; infinite while we do not
        self.left = self.passed = 0  # of the answer, and over the connection, when that began
        self.given = 0  # its window beyond the peer's initial one
        self.outgoing = memoryview(b"")  # DATA that waits for the peer's windows
        self.task: asyncio.Task[None] | None = None


class Outbox:
    """One connection's."""

    __slots__ = ("_passed", "_ready", "_settings", "frame_size", "initial", "window")

    def __init__(self) -> None:
        self.window = 65_535  # of the connection
        self.initial = 65_535  # of each stream
        self.frame_size = 16_384
        self._passed = 0  # bytes of answers that had to wait, since the beginning
        self._ready: dict[int, Stream] = {}  # who waits for the connection's window only, oldest first
        self._settings = 0  # frames since the last sweep

    # ------------------------------------------------------------ what the peer says

    def settings(self, payload: bytes, streams: Mapping[int, Stream]) -> None:
        """Take over a SETTINGS frame. Raises `PeerError`."""
        self._settings += 1
        if self._settings > MAX_SETTINGS or len(payload) > MAX_SETTINGS * SETTING.size:
            raise PeerError(ENHANCE_YOUR_CALM, f"over {MAX_SETTINGS} settings, in one frame or in a row")
        before = self.initial
        for setting, value in SETTING.iter_unpack(payload):
            if setting == INITIAL_WINDOW_ID:
                if value > LARGEST_WINDOW:
                    raise PeerError(FLOW_CONTROL_ERROR, "an impossible initial window")
                self.initial = value
            elif setting == MAX_FRAME_ID:
                if not 16_384 <= value < 1 << 24:
                    raise PeerError(PROTOCOL_ERROR, "an impossible frame size")
                self.frame_size = value
        if self.initial <= before:
            return
        for number, stream in streams.items():
            window = self.initial + stream.given
            if window > LARGEST_WINDOW:
                raise PeerError(FLOW_CONTROL_ERROR, "an initial window that makes a stream's impossible")
            if window > 0 and stream.outgoing:
                self._ready[number] = stream

    def enlarge(self, more: int) -> None:
        """Enlarge the connection's window. Raises `PeerError`."""
        self.window += more
        if not more or self.window > LARGEST_WINDOW:
            raise PeerError(FLOW_CONTROL_ERROR, "an impossible window")

    def enlarge_of(self, stream: Stream, more: int) -> bool:
        """Enlarge a stream's window; False if that is impossible."""
        stream.given += more
        return more > 0 and self.initial + stream.given <= LARGEST_WINDOW

    # ------------------------------------------------------------ what may go

    def next(self) -> tuple[int, Stream] | None:
        """The oldest stream that has something to send and may."""
        return next(iter(self._ready.items()), None) if self.window > 0 else None

    def take(self, number: int, stream: Stream) -> list[bytes]:
        """The frames of a stream that may go now."""
        out = []
        room = min(len(stream.outgoing), self.window, self.initial + stream.given)
        if room > 0:
            going, stream.outgoing = stream.outgoing[:room], stream.outgoing[room:]
            size = self.frame_size
            out = [frame(DATA, 0, number, bytes(going[at : at + size])) for at in range(0, room, size)]
            self.window -= room
            stream.given -= room
            self._passed += room
        if stream.outgoing and self.initial + stream.given > 0:
            self._ready[number] = stream
        else:
            self._ready.pop(number, None)
        return out

    def forget(self, number: int) -> None:
        """A stream is no more."""
        self._ready.pop(number, None)

    # ------------------------------------------------------------ patience

    def wait(self, stream: Stream, now: float) -> None:
        """Give the peer time to let a stream's answer through."""
        stream.since, stream.left, stream.passed = now, len(stream.outgoing), self._passed

    def taken(self, number: int, stream: Stream) -> int:
        """Bytes that the peer let through since then: of this answer, or of those before it if it is not its turn."""
        return self._passed - stream.passed if number in self._ready else stream.left - len(stream.outgoing)

    def sweep(self) -> None:
        """Time has passed."""
        self._settings = 0
