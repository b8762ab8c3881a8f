"""Both ends of a transport without sockets: a clock that is moved by hand, a transport that writes to memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class LoopClock:
    """The running loop's clock, which stands still but for being moved forward."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._now = loop.time()
        loop.time = lambda: self._now  # type: ignore[method-assign]

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass; what is due happens."""
        self._now += seconds
        await turns()


async def turns(count: int = 12) -> None:
    """Let everything run that is ready to."""
    for _ in range(count):
        await asyncio.sleep(0)


class FakeTransport(asyncio.Transport):
    """Keeps what is written. With `stuck` set, writing pauses the protocol, as a full socket buffer does.

    Closed, it is there until the client has taken everything, and until then takes what is written to it.
    """

    def __init__(self, make: Callable[[], asyncio.Protocol]) -> None:
        super().__init__({"peername": ("10.0.0.9", 40_000)})
        self.sent = bytearray()
        self.closed = self.aborted = self.half_closed = self.stuck = self.lost = False
        self.reading = True
        self.unread = 0  # bytes that the client has not taken yet
        self.protocol = make()
        self.protocol.connection_made(self)

    def feed(self, data: bytes, size: int = 1 << 18) -> None:
        """What comes from the client, at most `size` bytes at a time."""
        for at in range(0, len(data), size):
            if not self.closed:
                self.protocol.data_received(data[at : at + size])

    def write(self, data: Any) -> None:
        assert not self.half_closed, "written after the end"
        if not self.lost:
            self.sent += data
            if self.stuck:
                began, self.unread = not self.unread, self.unread + len(data)
                if began:
                    self.protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return self.unread

    def take(self) -> bytes:
        """What was written since the last time."""
        sent, self.sent = bytes(self.sent), bytearray()
        return sent

    def free(self) -> None:
        """The client reads again."""
        self.stuck = False
        self.unread = 0
        self.protocol.resume_writing()
        if self.closed:
            self._lose()

    def write_eof(self) -> None:
        self.half_closed = self.half_closed or not self.closed

    def close(self) -> None:
        self.closed = True
        if not self.unread:
            self._lose()

    def abort(self) -> None:
        self.aborted = True
        self.hang_up()

    def hang_up(self) -> None:
        """The client is gone."""
        self.closed = True
        self._lose()

    def _lose(self) -> None:
        if not self.lost:
            self.lost = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
