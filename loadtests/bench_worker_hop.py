"""What the worker hop and the batcher add to a request.

Starts a worker server in a second process, runs the same small batch through a direct call,
a colocated worker and the Unix socket, and prints p50 and p99 in microseconds; then the
overhead of the batcher with a worker that answers at once.

    python loadtests/bench_worker_hop.py [--rounds 5000] [--rows 1] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping

import numpy as np
import uvloop

from serving.clock import SystemClock
from serving.gateway.batcher import Batcher
from serving.gateway.worker_server import WorkerServer
from serving.gateway.workers import LocalWorker, SocketWorker

TARGET_ADDED_P50_US = 300.0
TOKENS = 96


class Tiny:
    """A classifier's shapes without its arithmetic: token ids in, two logits a row out."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        ids = inputs["input_ids"]
        return {"logits": np.stack([ids[:, 0], ids[:, -1]], axis=1).astype(np.float32)}

    def close(self) -> None:
        pass


class Instant:
    """A worker that answers without leaving the event loop's turn."""

    name, on_change, rank, available, hung = "instant", None, 0, True, False

    async def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"logits": inputs["input_ids"]}

    async def close(self) -> None:
        pass


def serve(path: str) -> None:
    async def forever() -> None:
        server = WorkerServer(Tiny(), path)
        await server.start()
        await asyncio.Event().wait()

    uvloop.run(forever())


def summary(samples_ns: list[int]) -> dict[str, float]:
    p50, p99 = np.percentile(np.array(samples_ns) / 1e3, [50, 99])
    return {"p50_us": round(float(p50), 1), "p99_us": round(float(p99), 1)}


async def timed(call: Callable[[], Awaitable[object]], rounds: int) -> dict[str, float]:
    samples = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        await call()
        samples.append(time.perf_counter_ns() - start)
    return summary(samples[rounds // 10 :])


async def overhead_us(concurrency: int, requests: int, inputs: dict[str, np.ndarray]) -> float:
    """Wall time a request, everything on one loop with an instant worker."""
    batcher = Batcher(
        "bench", max_batch=32, max_rows=1024, max_queue_delay_ms=0, clock=SystemClock(), hang_timeout_s=10
    )
    batcher.set_workers([Instant()])

    async def caller() -> None:
        for _ in range(requests // concurrency):
            await batcher.submit(inputs, 1, time.monotonic_ns() + 10**10)

    await caller()
    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(concurrency)))
    took = time.perf_counter() - start
    await batcher.close()
    return round(took * 1e6 / (requests // concurrency * concurrency), 1)


async def measure(path: str, rounds: int, rows: int) -> dict[str, object]:
    inputs = {"input_ids": np.arange(rows * TOKENS, dtype=np.int64).reshape(rows, TOKENS)}
    session = Tiny()

    async def direct() -> object:
        return session.run(inputs)

    local = LocalWorker("local", session)
    remote = await SocketWorker.connect(path, "remote")
    report: dict[str, object] = {
        "rows": rows,
        "request_bytes": inputs["input_ids"].nbytes,
        "direct": await timed(direct, rounds),
        "colocated": await timed(lambda: local.run(inputs), rounds),
        "socket": await timed(lambda: remote.run(inputs), rounds),
        "batcher_overhead_us": {
            f"{concurrency}_concurrent": await overhead_us(
                concurrency, 4 * rounds, {"input_ids": inputs["input_ids"][:1]}
            )
            for concurrency in (1, 32)
        },
    }
    direct_us, socket_us = report["direct"], report["socket"]
    assert isinstance(direct_us, dict)
    assert isinstance(socket_us, dict)
    report["added"] = {key: round(socket_us[key] - direct_us[key], 1) for key in direct_us}
    await remote.close()
    await local.close()
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5000)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="canarium-") as directory:
        path = os.path.join(directory, "bench.sock")
        server = multiprocessing.get_context("spawn").Process(target=serve, args=(path,), daemon=True)
        server.start()
        try:
            while not os.path.exists(path):
                if not server.is_alive():
                    raise SystemExit("the worker server did not start")
                time.sleep(0.02)
            report = uvloop.run(measure(path, options.rounds, options.rows))
        finally:
            server.kill()
            server.join()
    if options.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:22} {value}")
    added = report["added"]
    assert isinstance(added, dict)
    verdict = "within" if added["p50_us"] <= TARGET_ADDED_P50_US else "OVER"
    print(f"the hop adds {added['p50_us']} us at p50: {verdict} the target of {TARGET_ADDED_P50_US:g} us")


if __name__ == "__main__":
    main()
