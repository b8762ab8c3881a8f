"""Variants loaded and unloaded again, as a gateway does it, and the gateway's memory.

Every cycle publishes a snapshot that adds a variant with 10 % of the traffic, waits until it is open, has it
answer a few requests, publishes one without it and waits until it is closed. The data plane, the artifacts, the
sessions and the sockets are real; only Ray and HTTP are left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from loadtests.payloads import Row
from loadtests.rss import Resident, resident
from serving.clock import SystemClock
from serving.config import parse_config
from serving.contract import ControlWord, RouteTable, Snapshot, VariantEntry
from serving.core.routing import with_weight
from serving.gateway.dataplane import Caller, DataPlane
from serving.gateway.live import LiveRouting
from serving.gateway.recorder import Recorder
from serving.gateway.spool import SpoolWriter, latency_buckets_ms
from serving.gateway.variants import VariantPlane
from serving.protocol.types import InferRequest, Tensor
from serving.registry.store import Registry

MODEL, BASELINE = "moderation", "teacher"
#: Pinned and routed requests of each cycle, and the longest wait for anything, seconds.
REQUESTS, PATIENCE_S = 4, 30.0


class Kind(NamedTuple):
    """One way to load a variant."""

    name: str
    variant: str
    runtime: str
    placement: str


KINDS = (
    Kind("onnxruntime, colocated", "int8", "onnxruntime", "colocated"),
    Kind("torch, colocated", "distilled-torch", "torch", "colocated"),
    Kind("onnxruntime, colocated, fp32", "distilled", "onnxruntime", "colocated"),
    Kind("onnxruntime, isolated", "distilled-int8", "onnxruntime", "isolated"),
)


class Cycles:
    """A gateway's data plane over the quickstart's registry, with the teacher as its colocated baseline."""

    def __init__(self, registry: Path, folder: Path, rows: Sequence[Row]) -> None:
        self._registry, self._folder, self._rows = Registry(registry), folder, rows
        self._clock = SystemClock()
        self._config = parse_config(
            {
                "apiVersion": "canarium/v1",
                "registry": {"dir": str(registry)},
                "models": {
                    MODEL: {
                        "baseline": BASELINE,
                        # Memory is measured here: no request is to fail because the machine stood still.
                        "routing": {"queue": {"default_timeout_ms": 60_000}},
                        "variants": {BASELINE: {"artifact": f"{MODEL}/{BASELINE}:1", "placement": "colocated"}}
                        | {
                            kind.variant: {
                                "artifact": f"{MODEL}/{kind.variant}:1",
                                "runtime": kind.runtime,
                                "placement": kind.placement,
                            }
                            for kind in KINDS
                        },
                    }
                },
            }
        )
        word = ControlWord.open(folder / "control.word")
        self._word = word
        spool = SpoolWriter.create(folder / "spool", "cycles", self._clock, capacity=256)
        self._recorder = Recorder(spool, self._clock, "secret")
        self._recorder.model(MODEL, list(latency_buckets_ms()), ["ham", "spam"])
        self._routing = LiveRouting(self._config, word, self._clock)
        self._plane = DataPlane(self._config, self._routing, self._recorder, self._clock, self._make)
        self._table = RouteTable(MODEL, 1, "salt", BASELINE, BASELINE, {BASELINE: self._entry(BASELINE, "onnxruntime")})
        self._rev = 0
        self.cycles = 0

    def _entry(self, variant: str, runtime: str, placement: str = "colocated") -> VariantEntry:
        manifest = self._registry.resolve(f"{MODEL}/{variant}:1")
        return VariantEntry(variant, manifest.version, manifest.ref, placement, runtime)

    def _make(self, model: str, entry: VariantEntry) -> VariantPlane:
        manifest, folder = self._registry.open(entry.artifact)
        configured = self._config.models[model]
        return VariantPlane(
            model,
            entry,
            manifest,
            folder,
            config=configured.variants[entry.name],
            queue=configured.queue,
            recorder=self._recorder,
            clock=self._clock,
            socket_dir=self._sockets(entry.name),
            remote=None,
        )

    def _sockets(self, variant: str) -> Path:
        return self._folder / "w" / variant

    async def run(self, count: int, kinds: Sequence[Kind], every: int, told: Callable[[int, Resident], None]) -> None:
        """Go through `count` cycles, over the kinds in turn; tell the memory at the start and `every` so many."""
        await self._publish(self._table)
        try:
            for number in range(count):
                if number % every == 0:
                    told(number, resident())
                await self._cycle(kinds[number % len(kinds)])
                self.cycles += 1
            told(count, resident())
        finally:
            await self._plane.close()

    async def _cycle(self, kind: Kind) -> None:
        table = RouteTable(
            MODEL,
            self._table.epoch,
            "salt",
            BASELINE,
            BASELINE,
            self._table.variants | {kind.variant: self._entry(kind.variant, kind.runtime, kind.placement)},
        )
        async with self._replica(kind) if kind.placement == "isolated" else contextlib.nullcontext():
            await self._publish(with_weight(table, kind.variant, 1000, epoch=table.epoch + 1))
            plane = self._plane.planes.get(MODEL, kind.variant)
            assert plane is not None
            await plane.warm(PATIENCE_S)
            version = str(table.variants[kind.variant].version)
            for number in range(REQUESTS):
                await self._ask(f"{self.cycles}-{number}", version)
                await self._ask(f"{self.cycles}-{number}", "")
            del plane
            await self._publish(self._table)
            await self._plane.planes.closed()
        await _until(lambda: not any(kind.variant in thread.name for thread in threading.enumerate()))

    async def _publish(self, table: RouteTable) -> None:
        self._rev += 1
        self._word.beat(self._clock.monotonic_ns())
        await self._plane.apply(Snapshot(self._rev, 1, {MODEL: table}))
        await self._plane.planes.settled()

    async def _ask(self, name: str, version: str) -> None:
        text = self._rows[int(name.split("-")[1]) % len(self._rows)].text.encode()
        request = InferRequest(name, [Tensor("text", "BYTES", (1,), np.array([text], dtype=object))], None, {}, False)
        await self._plane.infer(MODEL, version, request, Caller(self._clock.monotonic_ns()))

    @contextlib.asynccontextmanager
    async def _replica(self, kind: Kind) -> AsyncIterator[None]:
        """A process of the variant on its Unix socket."""
        folder = self._sockets(kind.variant)
        folder.mkdir(parents=True, exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "loadtests.variant_process",
            self._config.registry.dir,
            f"{MODEL}/{kind.variant}:1",
            kind.runtime,
            str(folder / f"{self.cycles}.sock"),
        )
        try:
            yield
        finally:
            process.terminate()
            await asyncio.wait_for(process.wait(), PATIENCE_S)


async def _until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError("a closed variant's thread has not ended")
        await asyncio.sleep(0.005)
