"""A gateway's data plane in this process: real sessions in threads (colocated), a real spool, no Ray, no network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from monitoring.ingest import Ingest, Totals
from monitoring.objectives import by_model
from serving.clock import SystemClock
from serving.config import Config, parse_config
from serving.contract import (
    C_STATUS,
    RECORD_DTYPE,
    RING_OFFSET,
    STATUS_CODES,
    ControlWord,
    Latch,
    RouteTable,
    Snapshot,
    VariantEntry,
)
from serving.core.routing import with_weight
from serving.gateway.dataplane import Caller, DataPlane, Reply
from serving.gateway.live import LiveRouting
from serving.gateway.recorder import Recorder
from serving.gateway.spool import SpoolWriter, latency_buckets_ms
from serving.gateway.variants import VariantPlane
from serving.protocol.types import InferRequest, Tensor
from serving.registry.store import Registry
from tests.support import tiny


class InProcessGateway:
    """Serves the model `tiny` with a healthy `teacher` and the faulty variants asked for."""

    def __init__(
        self,
        folder: Path,
        faults: Mapping[str, str | None],
        *,
        on_kill: str = "shed",
        slices: Any = (),
        hang_timeout_s: float = 1.0,
        **routing: Any,
    ) -> None:
        """`faults`: variant name -> fault of `tiny.graph`, "" or None for a healthy one; "x?" only on "boom".

        `hang_timeout_s` is of those that hang.
        """
        faults = {name: fault or "" for name, fault in {"teacher": "", **faults}.items()}
        graphs = {name: tiny.graph(fault.rstrip("?"), always=not fault.endswith("?")) for name, fault in faults.items()}
        self.manifests = tiny.build(folder / "registry", graphs)
        self.registry = Registry(folder / "registry")
        self.clock = SystemClock()
        self.config: Config = parse_config(
            {
                "apiVersion": "canarium/v1",
                "models": {
                    "tiny": {
                        "baseline": "teacher",
                        "variants": {
                            name: {
                                "artifact": f"tiny/{name}:1",
                                "placement": "colocated",
                                # Long where nothing hangs: a machine that stands still is no fault of the variant's.
                                "hang_timeout_s": hang_timeout_s if "hangs" in fault else 30.0,
                            }
                            for name, fault in faults.items()
                        },
                        "routing": {
                            "reference_percent": 0,
                            "noise_percent": 0,
                            "queue": {"default_timeout_ms": 60_000},
                            **routing,
                        },
                        "capacity": {"on_kill": on_kill},
                        "slices": dict(slices),
                    }
                },
            }
        )
        self.word = ControlWord.open(folder / "control.word")
        self.word.beat(self.clock.monotonic_ns())
        self.spool = SpoolWriter.create(folder / "spool", "test", self.clock, capacity=1024)
        self.recorder = Recorder(self.spool, self.clock, "secret")
        self.recorder.model("tiny", list(latency_buckets_ms()), ["ham", "spam"])
        self.live = LiveRouting(self.config, self.word, self.clock)
        self.plane = DataPlane(self.config, self.live, self.recorder, self.clock, self._make)
        self.snapshot = Snapshot(rev=1, lease=1, tables={"tiny": self._table()})

    def _table(self) -> RouteTable:
        return RouteTable(
            model="tiny",
            epoch=1,
            salt="salt",
            baseline="teacher",
            teacher="teacher",
            variants={
                name: VariantEntry(name, manifest.version, manifest.ref, placement="colocated", max_batch=4)
                for name, manifest in self.manifests.items()
            },
            reference_bp=int(self.config.models["tiny"].routing.reference_percent * 100),
        )

    def _make(self, model: str, entry: VariantEntry) -> VariantPlane:
        manifest, folder = self.registry.open(entry.artifact)
        settings = self.config.models[model]
        return VariantPlane(
            model,
            entry,
            manifest,
            folder,
            config=settings.variants[entry.name],
            queue=settings.queue,
            recorder=self.recorder,
            clock=self.clock,
            socket_dir=Path("/nonexistent"),
            remote=None,
        )

    async def publish(
        self,
        weights: Mapping[str, float] | None = None,
        *,
        shadow: Mapping[str, float] | None = None,
        kills: Mapping[str, Latch] | None = None,
    ) -> None:
        """Publish a new snapshot; percentages."""
        table = self.snapshot.tables["tiny"]
        for name, percent in (weights or {}).items():
            table = with_weight(table, name, int(percent * 100), epoch=table.epoch + 1)
        if shadow is not None:
            table = msgspec.structs.replace(
                table, shadow={name: int(percent * 100) for name, percent in shadow.items()}, epoch=table.epoch + 1
            )
        self.snapshot = msgspec.structs.replace(
            self.snapshot,
            rev=self.snapshot.rev + 1,
            tables={"tiny": table},
            kills=dict(kills) if kills is not None else self.snapshot.kills,
        )
        await self.plane.apply(self.snapshot)
        await self.plane.planes.settled()

    async def withdraw(self, variant: str) -> None:
        """Publish a snapshot without a variant."""
        table = self.snapshot.tables["tiny"]
        table = msgspec.structs.replace(
            with_weight(table, variant, 0, epoch=table.epoch + 1),
            variants={name: entry for name, entry in table.variants.items() if name != variant},
        )
        self.snapshot = msgspec.structs.replace(self.snapshot, rev=self.snapshot.rev + 1, tables={"tiny": table})
        await self.plane.apply(self.snapshot)
        await self.plane.planes.settled()

    async def ask(self, *texts: str, version: str = "", **caller: Any) -> Reply:
        """Send one request."""
        return await self.plane.infer("tiny", version, request(*texts), Caller(self.clock.monotonic_ns(), **caller))

    def records(self) -> np.ndarray:
        """All records written so far, oldest first."""
        ring = np.frombuffer(self.spool.path.read_bytes()[RING_OFFSET:], RECORD_DTYPE)
        return np.sort(ring[ring["seq"] > 0], order="seq")


#: Makes one with the faults of its variants, as `name=fault`; `routing`: settings of the model.
Start = Callable[..., InProcessGateway]


@asynccontextmanager
async def published(folder: Path, faults: Mapping[str, str | None], **how: Any) -> AsyncIterator[InProcessGateway]:
    """A gateway that has its first table; closed afterwards."""
    running = InProcessGateway(folder, faults, **how)
    await running.publish()
    try:
        yield running
    finally:
        await running.plane.close()


def request(*texts: str, id: str = "") -> InferRequest:
    """A text request of `len(texts)` rows."""
    data = np.array([text.encode() for text in texts], dtype=object)
    return InferRequest(id, [Tensor("text", "BYTES", (len(texts),), data)], None, {}, False)


def labels(reply: Reply) -> list[str]:
    """The labels of an answer."""
    (found,) = [tensor for tensor in reply.response.outputs if tensor.name == "label"]
    return [value.decode() for value in found.data]


def totals(gateway: InProcessGateway) -> dict[str, Totals]:
    """What the monitor reads of the gateway's counters, by variant."""
    ingest = Ingest(gateway.spool.path.parent, gateway.clock)
    ingest.scan()
    try:
        return by_model(ingest.totals(), "tiny")
    finally:
        ingest.close()


def status_cells(gateway: InProcessGateway, variant: str, block: int = C_STATUS) -> dict[int, int]:
    """Requests of a variant by HTTP status; `block`: `C_STATUS` or `C_PINNED`."""
    cells = totals(gateway)[variant].cells
    return {status: int(cells[block + at]) for at, status in enumerate(STATUS_CODES)}
