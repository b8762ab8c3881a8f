"""Draining a node: not ready at once, everybody answered, connections closed, nothing left at the next start."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.cli import main
from serving.gateway.drain import LEAVE_S, Drain, ask, finished
from serving.transport.http1 import Http1Server
from tests.support.http1_kit import App, Peer, get
from tests.support.transport import turns


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "drain"


class Node:
    """One gateway of a node; `others_noticed` lets `LEAVE_S` pass."""

    def __init__(self, path: Path) -> None:
        self.app = App()
        self.http = Http1Server(self.app)
        self.plane: Any = SimpleNamespace(leaving=False)
        self.others_noticed = asyncio.Event()
        self.drain = Drain(path, self.plane, self.http, self.http.drain, self._sleep)

    async def _sleep(self, seconds: float) -> None:
        assert seconds == LEAVE_S
        await self.others_noticed.wait()


async def test_a_gateway_that_is_asked_to_leaves_without_breaking_anything_off(path: Path) -> None:
    node = Node(path)
    idle, busy = Peer(node.http), Peer(node.http)
    node.drain.look()
    busy.feed(get("/wait"))
    await turns()
    assert not node.plane.leaving

    ask(path)
    node.drain.look()
    await turns()
    assert node.plane.leaving
    late = Peer(node.http)  # from somebody who has not noticed
    late.feed(get("/echo"))
    await turns()
    assert (late.answer().headers[b"connection"], late.closed) == (b"close", True)
    assert not idle.closed

    node.others_noticed.set()
    await turns()
    assert (idle.closed, busy.closed, finished(path)) == (True, False, False)
    node.app.begun[0].gate.set()
    await turns()
    assert (busy.answer().status, busy.closed, finished(path)) == (200, True, True)


async def test_a_node_is_finished_when_all_of_its_gateways_are(path: Path) -> None:
    nodes = [Node(path), Node(path)]
    ask(path)
    for node in nodes:
        assert not finished(path)
        node.drain.look()
        node.others_noticed.set()
        await turns()
    assert finished(path)


async def test_what_was_asked_before_a_start_is_not_meant_for_it(path: Path) -> None:
    Node(path)
    ask(path)
    again = Node(path)
    again.drain.look()
    await turns()
    assert not again.plane.leaving
    ask(path)
    again.drain.look()
    await turns()
    assert again.plane.leaving
    again.others_noticed.set()
    await turns()


async def test_one_that_is_closed_does_not_hold_up_a_node(path: Path) -> None:
    node = Node(path)
    assert not finished(path)
    node.drain.close()
    node.drain.close()
    node.drain.look()
    assert finished(path)


def test_the_command_waits_until_all_have_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["drain", "--state-dir", str(tmp_path)]
    assert main(command) == 0
    assert "no gateway takes requests here" in capsys.readouterr().out
    (tmp_path / "run").mkdir()

    nothing: Any = None
    gateway = Drain(tmp_path / "run" / "drain", nothing, nothing, nothing)
    assert main([*command, "--within", "0"]) == 1
    assert "gateways still have requests after 0 s" in capsys.readouterr().err
    monkeypatch.setattr(time, "sleep", lambda _: gateway.close())
    assert main(command) == 0
    assert "drained" in capsys.readouterr().out
