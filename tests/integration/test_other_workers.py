"""Workers without a socket: a session in the gateway's own process, and a replica behind Serve's handle."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Mapping

import numpy as np
import pytest
import uvloop

from serving.contract import Cause
from serving.gateway.frames import FrameKind, decode
from serving.gateway.worker_server import WorkerServer
from serving.gateway.workers import HandleWorker, LocalWorker, WorkerFailure
from tests.support.workers import answered_again, batcher, soon, until

pytestmark = pytest.mark.integration


class Doubling:
    """A session that runs until `release` is set, when told to hang."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.terminated = False
        self.threads: set[str] = set()
        self.closed = threading.Event()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.threads.add(threading.current_thread().name)
        x = inputs["x"]
        if (x == 13).any():
            self.release.wait(60)
            raise RuntimeError("terminated")
        if (x < 0).any():
            raise ValueError("negative")
        return {"y": x * 2}

    def terminate(self) -> None:
        self.terminated = True

    def close(self) -> None:
        self.closed.set()


def test_a_colocated_session_runs_in_one_thread_and_a_hung_run_is_terminated() -> None:
    async def main() -> None:
        session = Doubling()
        worker = LocalWorker("local", session)
        patient = batcher(worker)
        results = await asyncio.gather(*(patient.submit({"x": np.full((1, 1), i)}, 1, soon()) for i in range(20, 40)))
        assert [int(result.outputs["y"][0, 0]) for result in results] == list(range(40, 80, 2))
        assert session.threads == {"canarium-local"}
        with pytest.raises(WorkerFailure, match="ValueError: negative"):
            await patient.submit({"x": np.full((1, 1), -1)}, 1, soon())
        await patient.close()
        target = batcher(worker, hang_timeout_s=0.5)
        with pytest.raises(WorkerFailure) as caught:
            await target.submit({"x": np.full((1, 1), 13)}, 1, soon())
        assert caught.value.cause is Cause.TIMEOUT
        assert session.terminated
        assert not worker.available
        session.release.set()
        await until(lambda: worker.available, "the run ends and the worker is back")
        await answered_again(target, {"x": np.ones((1, 1))})
        await target.close()
        await worker.close()
        assert await asyncio.to_thread(session.closed.wait, 30)

    uvloop.run(main())


def test_the_handle_path_speaks_the_same_frames() -> None:
    async def main() -> None:
        session = Doubling()
        server = WorkerServer(session, None)
        worker = HandleWorker("far", server.handle_frame)
        target = batcher(worker)
        assert (await target.submit({"x": np.ones((2, 1))}, 2, soon())).outputs["y"].tolist() == [[2], [2]]
        with pytest.raises(WorkerFailure, match="ValueError: negative"):
            await target.submit({"x": np.full((1, 1), -1)}, 1, soon())
        refused = decode(await server.handle_frame(b"nonsense of some length"))
        assert refused.kind is FrameKind.ERROR
        assert "malformed frame" in refused.text
        await target.close()
        await server.close()

    uvloop.run(main())


def test_a_handle_that_fails_rests_and_one_that_hangs_is_quarantined() -> None:
    async def main() -> None:
        session = Doubling()
        server = WorkerServer(session, None)
        broken = True

        def call(frame: bytes) -> Awaitable[bytes]:
            if broken:
                raise ConnectionError("the replica is gone")
            return server.handle_frame(frame)

        worker = HandleWorker("far", call, retry_s=1)
        target = batcher(worker, hang_timeout_s=0.5)
        with pytest.raises(WorkerFailure, match="ConnectionError: the replica is gone") as caught:
            await target.submit({"x": np.ones((1, 1))}, 1, soon())
        assert caught.value.cause is Cause.DIED
        assert not worker.available
        broken = False
        await until(lambda: worker.available, "it is tried again")
        with pytest.raises(WorkerFailure) as caught:
            await target.submit({"x": np.full((1, 1), 13)}, 1, soon())
        assert caught.value.cause is Cause.TIMEOUT
        assert worker.hung
        session.release.set()
        await until(lambda: worker.available, "the late answer ends the quarantine")
        await answered_again(target, {"x": np.ones((1, 1))})
        await target.close()
        await worker.close()
        await server.close()

    uvloop.run(main())
