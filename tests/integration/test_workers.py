"""Workers over real Unix sockets between real processes: answers, deaths, hangs, overload, shutdown."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import uvloop

from serving.contract import Cause
from serving.errors import StartError
from serving.gateway.frames import HEADER, FrameKind, FrameReader, decode, encode, encode_text
from serving.gateway.worker_server import WorkerServer
from serving.gateway.workers import SocketPool, SocketWorker, WorkerFailure
from tests.support.workers import CLOCK, answered_again, batcher, soon, until

pytestmark = pytest.mark.integration

PROGRAM = Path(__file__).with_name("worker_process.py")


class Fleet:
    """Replica processes of one test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def path(self, name: str = "a") -> str:
        return str(self.directory / f"{name}.sock")

    def start(self, name: str = "a", max_queue: int = 32) -> None:
        before = _inode(self.path(name))
        process = subprocess.Popen([sys.executable, str(PROGRAM), self.path(name), str(max_queue)])
        self.processes[name] = process
        deadline = time.monotonic() + 30
        while _inode(self.path(name)) in (None, before):
            assert process.poll() is None, "the replica did not start"
            assert time.monotonic() < deadline, "the replica's socket did not appear"
            time.sleep(0.01)

    def signal(self, number: int, name: str = "a") -> None:
        self.processes[name].send_signal(number)

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait(10)


def _inode(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return None


@pytest.fixture
def sockets() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="cnr-"))  # pytest's own paths are too long for a socket
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def fleet(sockets: Path) -> Iterator[Fleet]:
    fleet = Fleet(sockets / "v")
    yield fleet
    fleet.stop()


def sleep_ms(value: float) -> dict[str, np.ndarray]:
    return {"x": np.ones((1, 2)), "sleep_ms": np.array([value])}


def gated(gate: Path) -> dict[str, np.ndarray]:
    """A batch that runs until the file is there."""
    return {"x": np.ones((1, 2)), "until": np.array([bytes(gate)], object)}


async def until_queued(worker: SocketWorker, count: int) -> None:
    """Until so many batches wait or run at the worker's replica."""
    async with asyncio.timeout(30):
        while (await worker.ping())["queued"] != count:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.005)


async def until_busy(worker: SocketWorker, seconds: float) -> None:
    """Until the worker's replica has been at its batch for longer."""
    async with asyncio.timeout(30):
        while (await worker.ping())["busy_ns"] <= seconds * 1e9:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("run", [uvloop.run, asyncio.run], ids=["uvloop", "asyncio"])
def test_everybody_gets_their_own_rows_over_several_connections(fleet: Fleet, run: Callable[..., None]) -> None:
    async def main() -> None:
        fleet.start()
        workers = [await SocketWorker.connect(fleet.path(), f"w{number}") for number in range(3)]
        target = batcher(*workers)

        async def caller(number: int) -> None:
            rows, width = 1 + number % 3, 1 + number % 4
            x = np.full((rows, width), number, np.int64)
            text = np.array([b"%d" % number] * rows, object)
            result = await target.submit({"x": x, "text": text}, rows, soon())
            assert result.outputs["x"].tolist() == (x * 2).tolist()
            assert result.outputs["text"].tolist() == text.tolist()

        await asyncio.gather(*(caller(number) for number in range(300)))
        large = np.arange(3_000_000, dtype=np.float64).reshape(2, -1)  # 24 MB: many reads and writes
        outputs = await workers[0].run({"x": large, "empty": np.zeros((2, 0), np.float32)})
        assert np.array_equal(outputs["x"], large * 2)
        assert outputs["empty"].shape == (2, 0)
        await target.close()
        for worker in workers:
            await worker.close()

    run(main())


@pytest.mark.parametrize("run", [uvloop.run, asyncio.run], ids=["uvloop", "asyncio"])
def test_kill_9_fails_the_running_batch_at_once_and_the_pool_finds_the_next_replica(
    fleet: Fleet, run: Callable[..., None]
) -> None:
    async def main() -> None:
        fleet.start()
        target = batcher()
        changes: list[int] = []
        pool = SocketPool(
            fleet.directory,
            clock=CLOCK,
            on_change=lambda workers: (changes.append(len(workers)), target.set_workers(workers))[1],
        )
        await pool.start()
        assert changes == [1]  # known before start() returns
        batch = [asyncio.create_task(target.submit(sleep_ms(60_000), 1, soon())) for _ in range(2)]
        await asyncio.sleep(0.2)
        killed_at = time.monotonic()
        fleet.signal(signal.SIGKILL)
        failures = await asyncio.gather(*batch, return_exceptions=True)
        assert time.monotonic() - killed_at < 20  # of the 60 s that the batch takes
        for failure in failures:
            assert isinstance(failure, WorkerFailure)
            assert failure.cause is Cause.DIED
            assert failure.message.startswith("v/a was lost") or "no worker" in failure.message
        assert target.workers_available == 0
        assert pool.workers == []

        fleet.processes["a"].wait(10)
        fleet.start()  # over the stale socket file of the killed one
        await until(lambda: target.workers_available == 1, "the pool connects to the new replica")
        assert (await target.submit({"x": np.ones((1, 2))}, 1, soon())).outputs["x"].tolist() == [[2, 2]]
        fleet.start("b")
        await until(lambda: target.workers_available == 2, "the pool connects to a second replica")
        assert changes == [1, 0, 1, 2]
        await pool.close()
        await target.close()

    run(main())


def test_a_hung_replica_is_quarantined_answers_pings_and_comes_back(fleet: Fleet) -> None:
    async def main() -> None:
        fleet.start()
        worker = await SocketWorker.connect(fleet.path(), "w")
        target = batcher(worker, hang_timeout_s=0.5)
        gate = fleet.directory / "gate"
        with pytest.raises(WorkerFailure, match="has not answered a batch") as caught:
            await target.submit(gated(gate), 1, soon())
        assert caught.value.cause is Cause.TIMEOUT
        assert target.workers_available == 0
        await until_busy(worker, 0.1)
        assert (await worker.ping())["queued"] == 1
        with pytest.raises(WorkerFailure, match="quarantined"):
            await target.submit(sleep_ms(0), 1, soon())
        gate.touch()
        await until(lambda: target.workers_available == 1, "the late answer ends the quarantine")
        await answered_again(target, sleep_ms(0))
        assert (await worker.ping())["busy_ns"] == 0
        await target.close()
        await worker.close()

    uvloop.run(main())


def test_a_failing_session_answers_one_line_and_goes_on(fleet: Fleet) -> None:
    async def main() -> None:
        fleet.start()
        worker = await SocketWorker.connect(fleet.path(), "w")
        with pytest.raises(WorkerFailure) as caught:
            await worker.run({"x": np.ones(1), "fail": np.array([b"no such kernel"], object)})
        assert caught.value.cause is Cause.ERROR
        assert caught.value.message == "RuntimeError: no such kernel"
        with pytest.raises(WorkerFailure, match="dtype complex128 cannot be sent"):
            await worker.run({"unfit": np.ones(1)})
        with pytest.raises(WorkerFailure, match="the batch cannot be sent"):
            await worker.run({"x": np.ones(1, complex)})
        assert (await worker.run({"x": np.ones(1)}))["x"].tolist() == [2]
        about = await worker.describe()
        assert about == {"variant": "obedient", "pid": fleet.processes["a"].pid}
        await worker.close()
        with pytest.raises(WorkerFailure, match=r"w (was lost|is not connected)"):
            await worker.run({"x": np.ones(1)})

    uvloop.run(main())


def test_a_batch_that_cannot_be_read_fails_and_those_beside_it_do_not(fleet: Fleet) -> None:
    fleet.start()
    good = b"".join(encode(FrameKind.RUN, 6, {"x": np.ones(3)}))
    bad = bytearray(good)
    bad[8], bad[HEADER.size + 1] = 5, 99  # the request id, the dtype code
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(10)
        raw.connect(fleet.path())
        raw.sendall(bytes(bad) + good)
        reader, frames = FrameReader(), []
        while len(frames) < 2:
            count = raw.recv_into(reader.get_buffer())
            assert count, "hung up"
            frames += [decode(frame) for frame in reader.received(count)]
    failed, answered = sorted(frames, key=lambda frame: frame.request_id)
    assert (failed.kind, failed.request_id) == (FrameKind.ERROR, 5)
    assert "unknown dtype code 99" in failed.text
    assert answered.tensors["x"].tolist() == [2, 2, 2]


def test_a_malformed_frame_costs_its_sender_the_connection_and_nobody_else(fleet: Fleet) -> None:
    fleet.start()
    for sent, number, reason in (
        (b"GET / HTTP/1.1\r\nHost: replica\r\n\r\n", 0, "frame version"),
        (HEADER.pack(1 << 31, FrameKind.RUN, 2, 1, 5, 0), 0, "expected 24 to"),
        (encode_text(FrameKind.PONG, 5), 5, "takes RUN, PING and DESCRIBE, not PONG"),
    ):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.settimeout(10)
            raw.connect(fleet.path())
            raw.sendall(sent)
            answer = b""
            while data := raw.recv(4096):
                answer += data
        frame = decode(answer)
        assert (frame.kind, frame.request_id) == (FrameKind.ERROR, number)
        assert reason in frame.text

    async def main() -> None:
        worker = await SocketWorker.connect(fleet.path(), "w")
        assert (await worker.run({"x": np.ones(1)}))["x"].tolist() == [2]
        await worker.close()

    uvloop.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage, garbage, garbage",
        encode_text(FrameKind.PONG, 999),
        b"".join(encode(FrameKind.OK, 1 << 56, {})),
    ],
)
def test_a_replica_that_answers_nonsense_is_dropped(sockets: Path, answer: bytes) -> None:
    async def main() -> None:
        async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(answer)

        path = str(sockets / "n.sock")
        server = await asyncio.start_unix_server(nonsense, path)
        worker = await SocketWorker.connect(path, "w")
        with pytest.raises(WorkerFailure) as caught:
            await worker.run({"x": np.ones(1)})
        assert caught.value.cause is Cause.DIED
        assert not worker.available
        server.close()

    asyncio.run(main())


def test_more_batches_than_the_replica_queues_are_refused_as_overload(fleet: Fleet) -> None:
    async def main() -> None:
        fleet.start(max_queue=2)
        workers = [await SocketWorker.connect(fleet.path(), f"w{number}") for number in range(4)]
        gate = fleet.directory / "gate"
        running = [asyncio.create_task(worker.run(gated(gate))) for worker in workers]
        await until(lambda: sum(each.done() for each in running) == 2, "two are refused while two are in the queue")
        gate.touch()
        outcomes = await asyncio.gather(*running, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, WorkerFailure)]
        assert [failure.cause for failure in refused] == [Cause.OVERLOADED] * 2
        assert "queue is full (2 batches)" in refused[0].message
        assert all(worker.available for worker in workers)

    uvloop.run(main())


def test_a_batch_whose_gateway_hung_up_is_not_run(fleet: Fleet) -> None:
    async def main() -> None:
        fleet.start()
        busy, gone, last = [await SocketWorker.connect(fleet.path(), name) for name in "abc"]
        gate = fleet.directory / "gate"
        first = asyncio.create_task(busy.run(gated(gate)))
        await until_queued(last, 1)
        dropped = asyncio.create_task(gone.run(sleep_ms(120_000)))
        await until_queued(last, 2)
        await gone.close()
        with pytest.raises(WorkerFailure):
            await dropped
        for _ in range(3):
            await last.ping()  # the replica has seen by now that somebody hung up
        gate.touch()
        async with asyncio.timeout(30):
            await first
            await last.run(sleep_ms(0))

    uvloop.run(main())


def test_a_replica_that_shuts_down_loses_no_batch(fleet: Fleet) -> None:
    async def main() -> None:
        fleet.start("a")
        fleet.start("b")
        target = batcher()
        pool = SocketPool(fleet.directory, clock=CLOCK, on_change=target.set_workers)
        await pool.start()
        stop = asyncio.Event()
        answered = 0

        async def caller() -> None:
            nonlocal answered
            while not stop.is_set():
                await target.submit(sleep_ms(2), 1, soon())
                answered += 1

        callers = [asyncio.create_task(caller()) for _ in range(8)]
        await until(lambda: answered > 50, "they answer")
        fleet.signal(signal.SIGTERM, "a")
        await until(lambda: fleet.processes["a"].poll() is not None, "the replica ends")
        assert fleet.processes["a"].returncode == 0
        assert not os.path.exists(fleet.path("a"))
        await until(lambda: [worker.name for worker in pool.workers] == ["v/b"], "the other is left")
        before = answered
        await until(lambda: answered > before + 50 or any(each.done() for each in callers), "it answers")
        stop.set()
        await asyncio.gather(*callers)  # a failure of any would raise here
        await pool.close()
        await target.close()

    uvloop.run(main())


def test_sockets_are_private_stale_ones_replaced_and_long_paths_refused(sockets: Path) -> None:
    class Nothing:
        def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {}

        def close(self) -> None:
            pass

    async def main() -> None:
        directory = sockets / "open"
        directory.mkdir(mode=0o755)
        path = directory / "s.sock"
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
        server = WorkerServer(Nothing(), path)
        await server.start()
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        worker = await SocketWorker.connect(str(path), "w")
        assert (await worker.ping())["queued"] == 0
        await server.close()
        assert list(directory.iterdir()) == []
        assert not worker.available
        with pytest.raises(StartError, match="longer than the 107 bytes"):
            await WorkerServer(Nothing(), sockets / ("x" * 100) / "s.sock").start()

    uvloop.run(main())


def test_the_pool_retries_with_a_pause_and_clears_sockets_nobody_listens_on(sockets: Path) -> None:
    async def main() -> None:
        path = sockets / "stale.sock"
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
        (sockets / "not-a-socket.sock").write_text("")
        told: list[int] = []
        pool = SocketPool(
            sockets, clock=CLOCK, on_change=lambda found: told.append(len(found)), poll_s=0.01, max_backoff_s=0.05
        )
        await pool.start()
        assert told == [0]  # also when there is nobody yet
        await until(lambda: not path.exists(), "the stale socket is removed")
        assert pool.workers == []
        assert (sockets / "not-a-socket.sock").exists()
        await pool.close()

    uvloop.run(main())
