"""Server-sent events: bounded, and nobody waits for a slow watcher."""

from __future__ import annotations

from serving.control.events import EventHub


async def take(hub: EventHub, count: int) -> list[bytes]:
    watcher = hub.join()
    assert watcher is not None
    hub.publish("audit", b'{"seq":1}')
    hub.publish("snapshot", b"{}")
    frames = watcher.frames()
    return [await anext(frames) for _ in range(count)]


async def test_events_arrive_in_order_with_name_and_number() -> None:
    assert await take(EventHub(), 2) == [
        b'event: audit\nid: 1\ndata: {"seq":1}\n\n',
        b"event: snapshot\nid: 2\ndata: {}\n\n",
    ]


async def test_a_silent_stream_is_kept_alive_by_comments() -> None:
    watcher = EventHub().join()
    assert watcher is not None
    assert await anext(watcher.frames(0.001)) == b": keep-alive\n\n"


async def test_a_lagging_watcher_is_dropped_and_counted_and_the_others_are_not() -> None:
    hub = EventHub(queue_events=2)
    slow, fast = hub.join(), hub.join()
    assert slow is not None
    assert fast is not None
    received = []
    for number in range(4):
        hub.publish("audit", b"%d" % number)
        received.append(await anext(fast.frames()))
    assert len(received) == 4
    assert (hub.watchers, hub.dropped) == (1, 1)
    assert len([frame async for frame in slow.frames()]) == 2  # what was queued, then the end


async def test_watchers_are_bounded_and_leave() -> None:
    hub = EventHub(watchers_max=1)
    watcher = hub.join()
    assert watcher is not None
    assert hub.full
    assert hub.join() is None
    hub.leave(watcher)
    assert hub.join() is not None
