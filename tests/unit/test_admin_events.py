"""The admin API's event stream: what it sends, and to whom no longer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from control_kit import Rig, until

from serving.control.api import Admin, create_app
from serving.control.auth import Auth
from serving.control.tokens import Token, hashed

PATH = "/admin/v1/events"


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    await rig.start()
    return rig


class Stream:
    """One request for the events. httpx's in-process transport does not stream, so this speaks ASGI."""

    def __init__(self, rig: Rig, auth: Auth, token: str = "") -> None:
        self.sent: list[dict[str, Any]] = []
        self.gone = asyncio.Event()
        app = create_app(rig.plane, auth, clock=rig.clock, host="127.0.0.1", port=8003)
        secret = [(b"authorization", b"Bearer " + token.encode())] if token else []
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
            "path": PATH, "raw_path": b"", "query_string": b"", "root_path": "", "scheme": "http",
            "headers": [(b"host", b"127.0.0.1:8003"), *secret], "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8003),
        }  # fmt: skip
        self.running = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def frames(self) -> list[bytes]:
        return [message["body"] for message in self.sent[1:] if message["body"]]


async def test_a_stream_begins_with_the_snapshot_and_ends_with_its_client(rig: Rig) -> None:
    stream = Stream(rig, Auth(None))
    await until(lambda: len(stream.sent) >= 2)
    assert dict(stream.sent[0]["headers"])[b"content-type"].startswith(b"text/event-stream")
    assert stream.frames[0].startswith(b"event: snapshot\nid: ")
    assert rig.plane.events.watchers == 1
    stream.gone.set()
    await stream.running
    assert rig.plane.events.watchers == 0


@pytest.mark.parametrize("way", ["revoked", "expired"])
async def test_a_stream_ends_before_the_next_frame_once_its_token_is_not_good_any_more(rig: Rig, way: str) -> None:
    end_s = rig.clock.wall_ns() // 10**9 + 60
    known = [Token("ann", "viewer", hashed("a"), end_s if way == "expired" else None)]
    stream = Stream(rig, Auth(lambda: known, rig.clock), "a")
    await until(lambda: len(stream.sent) >= 2)
    rig.plane.events.publish("audit", b"1")
    await until(lambda: len(stream.frames) == 2)
    if way == "expired":
        rig.clock.advance(61)
    else:
        known.clear()
    rig.plane.events.publish("audit", b"2")
    await asyncio.wait_for(stream.running, 5)
    assert len(stream.frames) == 2
    assert rig.plane.events.watchers == 0


async def test_a_stream_on_which_nothing_happens_ends_as_well(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Admin.__init__, "__defaults__", (0.001,))  # seconds between two comments
    known = [Token("ann", "viewer", hashed("a"))]
    stream = Stream(rig, Auth(lambda: known, rig.clock), "a")
    await until(lambda: len(stream.frames) >= 3)
    known.clear()
    await asyncio.wait_for(stream.running, 5)
