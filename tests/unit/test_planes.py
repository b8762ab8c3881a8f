"""How a gateway follows the published tables: one that cannot be obeyed holds up no other, nothing is opened twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from serving.clock import FakeClock
from serving.config import QueueConfig, VariantConfig, parse_config
from serving.contract import ControlWord, Latch, RouteTable, Snapshot, VariantEntry
from serving.gateway import planes as module
from serving.gateway import variants
from serving.gateway.live import LiveRouting
from serving.gateway.planes import Planes
from serving.gateway.variants import VariantPlane
from serving.gateway.worker_server import WorkerServer
from serving.runtimes.base import open_session
from tests.support.gateway import InProcessGateway


class Opened:
    """What is used of a plane when it is opened and let go of."""

    def __init__(self, entry: VariantEntry) -> None:
        self.entry = entry
        self.closed = False

    async def start(self) -> None: ...

    async def warm(self, limit_s: float) -> None: ...

    async def drain(self, limit_s: float) -> None: ...

    async def close(self) -> None:
        self.closed = True


class Rig:
    """Two models, and a factory that fails for the artifacts in `broken`, and waits at `gate` if it is there."""

    def __init__(self, folder: Path) -> None:
        variants = {name: {"artifact": f"m/{name}:1"} for name in ("old", "new")}
        models = {name: {"baseline": "old", "variants": variants} for name in ("a", "b")}
        config = {"apiVersion": "canarium/v1", "models": models}
        self.broken: set[str] = set()
        self.gate: threading.Event | None = None
        self.opened: list[Opened] = []
        self.routing = LiveRouting(parse_config(config), ControlWord.open(folder / "control.word"), FakeClock())
        self.planes = Planes(["a", "b"], self.routing, self.make)

    def make(self, model: str, entry: VariantEntry) -> VariantPlane:
        if self.gate is not None:
            self.gate.wait(10)
        if entry.artifact in self.broken:
            raise OSError("damaged")
        self.opened.append(Opened(entry))
        return cast(VariantPlane, self.opened[-1])

    def answering(self, model: str) -> str | None:
        """The variant that answers a model's requests, all of which are the baseline's."""
        view = self.routing.view(model)
        return view.table.baseline if view is not None and self.planes.get(model, view.table.baseline) else None


def snapshot(rev: int, baselines: dict[str, str], **more: Any) -> Snapshot:
    tables = {
        model: RouteTable(
            model, rev, "salt", name, name, {n: VariantEntry(n, 1, f"{model}/{n}:1") for n in ("old", name)}
        )
        for model, name in baselines.items()
    }
    return Snapshot(rev, 1, tables, **more)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(module, "RETRY_S", 0.0)
    rig = Rig(tmp_path)
    yield rig
    assert sum(not plane.closed for plane in rig.opened) == 0


async def turn(times: int = 200) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def test_a_model_that_cannot_be_opened_keeps_no_other_from_starting(rig: Rig) -> None:
    rig.broken = {"a/old:1"}
    await rig.planes.apply(snapshot(1, {"a": "old", "b": "old"}, kills={"b": Latch(1, 0)}))
    assert (rig.answering("a"), rig.answering("b")) == (None, "old")
    view = rig.routing.view("b")
    assert view is not None
    assert view.killed
    assert [(model, entry.name) for model, entry in rig.planes.opening()] == [("a", "old")]
    rig.broken.clear()  # it was repaired
    await rig.planes.settled()
    assert rig.answering("a") == "old"
    await rig.planes.close()


async def test_a_new_baseline_that_cannot_be_opened_freezes_its_own_table_only(rig: Rig) -> None:
    await rig.planes.apply(snapshot(1, {"a": "old", "b": "old"}))
    rig.broken = {"a/new:1"}
    await rig.planes.apply(snapshot(2, {"a": "new", "b": "new"}))
    await turn()
    assert (rig.answering("a"), rig.answering("b")) == ("old", "new")
    await rig.planes.apply(snapshot(3, {"a": "old", "b": "old"}))  # the promotion is taken back
    await rig.planes.settled()
    assert (rig.answering("a"), rig.answering("b")) == ("old", "old")
    assert not [model for model, _ in rig.planes.opening()]
    await rig.planes.close()


async def test_an_isolated_variant_is_reached_on_a_node_that_joined_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "SEEK_S", 0.0)
    gateway = InProcessGateway(tmp_path, {})
    nodes, looks = 1, 0

    def remote() -> variants.FrameCall | None:
        nonlocal looks
        looks += 1
        return server.handle_frame if nodes > 1 else None

    entry = msgspec.structs.replace(gateway.snapshot.tables["tiny"].variants["teacher"], placement="isolated")
    manifest, folder = gateway.registry.open(entry.artifact)
    server = WorkerServer(open_session(manifest, folder, runtime=entry.runtime, threads=1), None)
    plane = VariantPlane(
        "tiny", entry, manifest, folder, config=VariantConfig(artifact=entry.artifact), queue=QueueConfig(),
        recorder=gateway.recorder, clock=gateway.clock, socket_dir=tmp_path / "no-replica-here", remote=remote,
    )  # fmt: skip
    await plane.start()
    for _ in range(100_000):
        if looks > 3:
            break
        await asyncio.sleep(0)
    assert not plane.ready
    nodes = 2
    for _ in range(100_000):
        if plane.ready:
            break
        await asyncio.sleep(0)
    inputs = await plane.preprocess({"text": np.array([b"spam"], object)}, 1, 2**62)
    answer = await plane.run(inputs, 1, gateway.clock.monotonic_ns() + 60 * 10**9)
    assert answer.tensors["label"].tolist() == [b"spam"]
    await plane.close()
    await server.close()
    await gateway.plane.close()


async def test_two_snapshots_at_once_open_a_variant_once(rig: Rig) -> None:
    rig.gate = threading.Event()
    first = snapshot(1, {"a": "old"})
    both = [asyncio.ensure_future(rig.planes.apply(each)) for each in (first, msgspec.structs.replace(first, rev=2))]
    await turn()
    rig.gate.set()
    await asyncio.gather(*both)
    await rig.planes.settled()
    assert len(rig.opened) == 1
    assert rig.answering("a") == "old"
    await rig.planes.close()
