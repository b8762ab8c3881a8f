"""Server-sent events to any number of watchers, none of which can hold up the others.

Each watcher has a bounded queue. One that lags so far that its queue is full is dropped and
counted: it reconnects and reads the present state, which is better than a stale stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

QUEUE_EVENTS = 256
WATCHERS_MAX = 64
KEEP_ALIVE_S = 10.0
KEEP_ALIVE = b": keep-alive\n\n"


class Watcher:
    """One client's queue of encoded events; None ends the stream."""

    def __init__(self, size: int) -> None:
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(size + 1)  # one place for the end mark
        self._size = size

    def offer(self, frame: bytes) -> bool:
        """Queue an event; False if the client lags too far."""
        if self._queue.qsize() >= self._size:
            return False
        self._queue.put_nowait(frame)
        return True

    def end(self) -> None:
        if not self._queue.full():
            self._queue.put_nowait(None)

    async def frames(self, keep_alive_s: float = KEEP_ALIVE_S) -> AsyncIterator[bytes]:
        """What to send, with a comment whenever nothing happened for `keep_alive_s` seconds."""
        while True:
            try:
                frame = await asyncio.wait_for(self._queue.get(), keep_alive_s)
            except TimeoutError:
                yield KEEP_ALIVE
                continue
            if frame is None:
                return
            yield frame


class EventHub:
    """Fans events out. Watchers over `watchers_max` are refused, lagging ones dropped."""

    def __init__(self, queue_events: int = QUEUE_EVENTS, watchers_max: int = WATCHERS_MAX) -> None:
        self._queue_events, self._watchers_max = queue_events, watchers_max
        self._watchers: set[Watcher] = set()
        self._counter = 0
        self.dropped = 0

    @property
    def watchers(self) -> int:
        return len(self._watchers)

    @property
    def full(self) -> bool:
        return len(self._watchers) >= self._watchers_max

    def join(self) -> Watcher | None:
        """A new watcher, or None if there are too many."""
        if self.full:
            return None
        watcher = Watcher(self._queue_events)
        self._watchers.add(watcher)
        return watcher

    def leave(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)

    def publish(self, event: str, data: bytes) -> None:
        """Send one event (`data`: JSON without line breaks) to everybody."""
        self._counter += 1
        frame = encode(event, data, self._counter)
        for watcher in [watcher for watcher in self._watchers if not watcher.offer(frame)]:
            self._watchers.discard(watcher)
            watcher.end()
            self.dropped += 1

    def greet(self, watcher: Watcher, event: str, data: bytes) -> None:
        """Send one event to one watcher."""
        watcher.offer(encode(event, data, self._counter))

    def close(self) -> None:
        """End every stream."""
        for watcher in self._watchers:
            watcher.end()
        self._watchers.clear()


def encode(event: str, data: bytes, number: int) -> bytes:
    """One event in the wire format of server-sent events."""
    return b"event: %s\nid: %d\ndata: %s\n\n" % (event.encode(), number, data)
