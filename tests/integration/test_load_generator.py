"""The C load generator against real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from loadtests import load
from loadtests.load import LoadError, Result, http_request
from serving.processes import free_ports

pytestmark = pytest.mark.integration

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nright"


class Server:
    """Answers each request with `answer(number)`; None never answers, b"" closes the connection."""

    def __init__(self, answer: Callable[[int], bytes | None], delay_s: float = 0) -> None:
        self.answer, self.delay_s = answer, delay_s
        self.bodies: list[bytes] = []
        self.connections = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                self.bodies.append(await reader.readexactly(length))
                answer = self.answer(len(self.bodies))
                await asyncio.sleep(self.delay_s if answer is not None else 30)
                if not answer:
                    return
                middle = len(answer) // 2  # in two parts: a client may not take one read for an answer
                writer.write(answer[:middle])
                await writer.drain()
                await asyncio.sleep(0)
                writer.write(answer[middle:])
                if b"Connection: close" in answer or answer.startswith(b"HTTP/1.0"):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the generator is compiled, once."""
    return tmp_path_factory.mktemp("load")


@asynccontextmanager
async def serving(answer: Callable[[int], bytes | None], delay_s: float = 0) -> AsyncIterator[Server]:
    server = Server(answer, delay_s)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()


async def measured(port: int, folder: Path, **options: Any) -> Result:
    options = {"connections": 2, "seconds": 0.5, "warmup": 0.1, "timeout_s": 5.0, **options}
    requests = options.pop("requests", [http_request("/", b"one"), http_request("/", b"two")])
    return await asyncio.to_thread(load.run, port, requests, folder=folder, **options)


async def measured_until(enough: Callable[[Result], bool], port: int, folder: Path, **options: Any) -> Result:
    """Measured again, four times at most, while a machine that stands still leaves too little in so short a time."""
    for _ in range(4):
        result = await measured(port, folder, **options)
        if enough(result):
            return result
    return await measured(port, folder, **options)


def many(result: Result) -> bool:
    return result.count > 10


async def test_closed_loop_keeps_its_connections_busy_and_rotates_requests(folder: Path) -> None:
    for _ in range(5):
        async with serving(lambda _: OK, delay_s=0.01) as server:
            result = await measured(server.port, folder, connections=4)
        if many(result):
            break
    assert result.failed == 0
    assert server.connections == 4
    assert server.bodies[:4] == [b"one", b"two", b"one", b"two"]
    assert 4 <= result.count < len(server.bodies)  # the warm-up is not counted
    assert result.count / result.seconds == pytest.approx(result.rate, rel=0.01)
    assert result.rate <= 4 / 0.01
    assert result.latency_us["p50"] >= 10_000
    assert result.latency_us["p50"] <= result.latency_us["p99"] <= result.latency_us["max"]
    assert 0 < result.cpu_s < result.seconds


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nrig\r\n2;x=y\r\nht\r\n0\r\nT: v\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nright",
        b"HTTP/1.0 200 OK\r\n\r\nright",
        b"HTTP/1.1 200 OK\r\nContent-Length: 200005\r\n\r\nright" + b"." * 200_000,
    ],
    ids=["chunked", "closing", "until the end", "long"],
)
async def test_every_way_to_end_a_body_is_understood(answer: bytes, folder: Path) -> None:
    async with serving(lambda _: answer) as server:
        result = await measured_until(many, server.port, folder, expect="right")
        if b"200005" not in answer:
            exact = await measured_until(many, server.port, folder, expect_bytes=5)
            assert (exact.failed, exact.count > 10) == (0, True)
    assert result.failed == 0
    assert result.count > 10


async def test_a_large_request_arrives_whole(folder: Path) -> None:
    body = bytes(range(256)) * 20_000
    async with serving(lambda _: OK) as server:
        result = await measured_until(
            lambda found: found.count > 0, server.port, folder, requests=[http_request("/", body)]
        )
    assert result.count > 0
    assert set(server.bodies) == {body}


async def test_wrong_answers_and_statuses_are_failures(folder: Path) -> None:
    wrong = OK.replace(b"right", b"wrong")
    async with serving(
        lambda number: (OK, wrong, b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")[number % 3]
    ) as server:
        result = await measured_until(many, server.port, folder, expect="right")
    assert result.codes["503"] > 0
    assert result.failures["wrong"] > 0
    assert result.codes["200"] == result.count + result.failures["wrong"]
    assert result.failed == result.codes["503"] + result.failures["wrong"]


@pytest.mark.parametrize(
    ("answer", "kind"), [(b"", "lost"), (None, "timeout"), (b"SSH-2.0-x\r\n\r\n", "protocol")], ids=str
)
async def test_no_answer_is_counted_by_kind_and_tried_again(answer: bytes | None, kind: str, folder: Path) -> None:
    async with serving(lambda _: answer) as server:
        result = await measured_until(
            lambda found: found.failures[kind] >= 2,
            server.port,
            folder,
            timeout_s=0.15 if kind == "timeout" else 5.0,
        )
    assert result.count == 0
    assert result.failures[kind] >= 2
    assert result.failed == result.failures[kind]
    assert server.connections >= 4


async def test_nobody_listening_is_refused_without_spinning(folder: Path) -> None:
    (port,) = free_ports(1)
    result = await measured_until(lambda found: found.failures["refused"] >= 2, port, folder)
    assert 2 <= result.failures["refused"] <= 200
    assert result.cpu_s < 0.25


async def test_open_loop_charges_a_slow_server_from_the_scheduled_moment(folder: Path) -> None:
    # 20 ms an answer on one connection carry 50 a second: what is due meanwhile cannot be sent.
    async with serving(lambda _: OK, delay_s=0.02) as server:
        narrow = await measured(server.port, folder, connections=1, rate=200, seconds=1)
        wide = await measured(server.port, folder, connections=900, rate=200, seconds=1)
    assert narrow.unsent > 100
    assert narrow.count + narrow.unsent == pytest.approx(200, abs=60)
    assert wide.unsent == 0
    assert wide.failed == 0
    assert wide.count == pytest.approx(200, abs=60)
    assert wide.latency_us["p50"] >= 20_000


async def test_open_loop_waits_for_late_answers(folder: Path) -> None:
    async with serving(lambda _: OK, delay_s=0.4) as server:
        result = await measured(server.port, folder, connections=64, rate=50, seconds=0.5, warmup=0)
    assert result.seconds > 0.5
    assert result.count == pytest.approx(25, abs=20)
    assert result.failed == 0


def test_what_cannot_run_says_why(folder: Path) -> None:
    with pytest.raises(LoadError, match="the file of requests is empty"):
        load.run(1, [], connections=1, seconds=1, folder=folder)
