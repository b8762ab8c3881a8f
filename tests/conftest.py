"""Shared by all tests: `isolated`, under which a test can neither start Ray, open a socket nor sleep."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("canarium", deadline=None, print_blob=True)  # a busy machine is not a slow test
settings.load_profile("canarium")

#: Audit events by which Python code reaches the network, however it imported `socket`.
_NETWORK = frozenset({"socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"})
_guarding = False


class NotIsolatedError(BaseException):
    """A unit test did what only an integration test may do.

    It is no `Exception`, so code under test that survives every error cannot hide it.
    """


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _guarding and event in _NETWORK:
        raise NotIsolatedError(f"{event}{arguments[1:]}: unit tests open no sockets, use a fake or tests/integration")


sys.addaudithook(_audit)  # cannot be removed; costs one global look-up an event when it is not guarding


def _refuse(what: str, instead: str) -> Callable[..., Any]:
    def refused(*_: object, **__: object) -> None:
        raise NotIsolatedError(f"{what}: {instead}")

    return refused


@pytest.fixture
def isolated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse `ray.init`, network access and sleeping. asyncio itself works: its wake-up pipe is a socket pair."""
    global _guarding
    import ray

    really_yield = asyncio.sleep

    async def yield_only(delay: float, result: Any = None) -> Any:
        if delay > 0:
            raise NotIsolatedError(f"asyncio.sleep({delay}): unit tests do not sleep, advance a FakeClock")
        return await really_yield(0, result)

    monkeypatch.setattr(ray, "init", _refuse("ray.init", "unit tests do not start Ray, test the pure part"))
    monkeypatch.setattr(time, "sleep", _refuse("time.sleep", "unit tests do not sleep, advance a FakeClock"))
    monkeypatch.setattr(asyncio, "sleep", yield_only)
    monkeypatch.setattr(asyncio.tasks, "sleep", yield_only)
    monkeypatch.setattr(socket.socket, "listen", _refuse("socket.listen", "unit tests open no sockets"))
    _guarding = True
    try:
        yield
    finally:
        _guarding = False
