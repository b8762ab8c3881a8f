"""The guard around unit tests does what it says."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest
import ray


@pytest.fixture
def refusal() -> type[BaseException]:
    """The guard's own exception, looked up where pytest loaded it."""
    with pytest.raises(BaseException, match="do not sleep") as caught:
        time.sleep(1)
    return caught.type


def test_ray_cannot_be_started(refusal: type[BaseException]) -> None:
    with pytest.raises(refusal, match=r"ray\.init: unit tests do not start Ray"):
        ray.init()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_no_socket_can_be_opened(refusal: type[BaseException], family: int, tmp_path: Path) -> None:
    address = ("127.0.0.1", 1) if family == socket.AF_INET else str(tmp_path / "s")
    with socket.socket(family) as opened:
        for operation in (opened.bind, opened.connect, opened.connect_ex):
            with pytest.raises(refusal, match="unit tests open no sockets"):
                operation(address)
        with pytest.raises(refusal, match="unit tests open no sockets"):
            opened.listen()


def test_no_name_can_be_looked_up_and_no_connection_made(refusal: type[BaseException]) -> None:
    with pytest.raises(refusal, match=r"socket\.getaddrinfo"):
        socket.create_connection(("example.invalid", 80))


async def test_asyncio_cannot_open_a_socket(refusal: type[BaseException]) -> None:
    with pytest.raises(refusal, match="unit tests open no sockets"):
        await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)


async def test_sleeping_is_refused_and_yielding_is_not(refusal: type[BaseException]) -> None:
    with pytest.raises(refusal, match=r"asyncio\.sleep\(0\.01\): unit tests do not sleep"):
        await asyncio.sleep(0.01)
    assert await asyncio.sleep(0, "yielded") == "yielded"


def test_an_event_loop_of_its_own_still_works() -> None:
    async def answer() -> int:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, lambda: 42)

    assert asyncio.run(answer()) == 42


def test_code_that_survives_every_error_cannot_hide_it(refusal: type[BaseException]) -> None:
    assert not issubclass(refusal, Exception)
