"""A real replica process over a real socket: a wrong scale inside an INT8 model becomes a verdict of the monitor."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import qdq_kit

from monitoring.config import MonitorConfig, MonitorModel, MonitorVariant
from monitoring.verdicts import Verdict
from monitoring.watch import Watch
from serving.clock import SystemClock
from serving.contract import RouteTable, Snapshot, VariantEntry
from serving.gateway.recorder import Recorder
from serving.gateway.sockets import SocketWorker
from serving.gateway.spool import SpoolWriter
from serving.runtimes.audit import Audit

pytestmark = pytest.mark.integration

PROGRAM = Path(__file__).with_name("audited_worker.py")
CLOCK = SystemClock()
ENOUGH = 40


@pytest.fixture
def folder() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="cna-"))  # pytest's own paths are too long for a socket
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def _start(path: str, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(PROGRAM), path, str(folder), "0.001"])


async def _connected(path: str, process: subprocess.Popen[bytes]) -> SocketWorker:
    for _ in range(300):
        assert process.poll() is None, "the replica did not start"
        try:
            return await SocketWorker.connect(path, "int8")
        except OSError:
            await asyncio.sleep(0.1)
    raise AssertionError("the replica's socket did not appear")


async def _judge(folder: Path) -> Verdict:
    """Ask a replica of the model in `folder` until `ENOUGH` audits came back; what the monitor says then."""
    variants = {"teacher": MonitorVariant(1), "int8": MonitorVariant(2, saturation=0.0)}
    config = MonitorConfig(
        "i", str(folder / "spool"), str(folder / "state"), str(folder / "word"), "http://127.0.0.1:1",
        {"m": MonitorModel("teacher", "teacher", variants)},
    )  # fmt: skip
    watch = Watch(config, CLOCK)
    entries = {name: VariantEntry(name, one.version, f"m/{name}:1") for name, one in variants.items()}
    watch.apply(Snapshot(1, 1, {"m": RouteTable("m", 1, "s", "teacher", "teacher", entries, shadow={"int8": 500})}))
    recorder = Recorder(SpoolWriter.create(config.spool_dir, "g0", CLOCK, 4096), CLOCK, "")
    recorder.model("m", [1.0], [])
    audits: list[Audit] = []
    path = str(folder / "w.sock")
    process = await asyncio.to_thread(_start, path, folder)
    try:
        worker = await _connected(path, process)
        worker.on_audits = audits.extend
        rows = np.random.default_rng(1).normal(0, 1, (1000, 16, 4)).astype(np.float32)
        async with asyncio.timeout(60):
            for at in range(1_000_000):
                outputs = await worker.run({"x": rows[at % 1000]})
                assert list(outputs) == ["logits"]
                if len(audits) >= ENOUGH:
                    break
        await worker.close()
    finally:
        process.terminate()
        process.wait(10)
    for audit in audits:
        recorder.audit("m", "int8", audit)
    watch.tick()
    while watch.step()[0]:
        pass
    assert watch.flow().consumed == len(audits)
    return next(one for one in watch.verdicts()["m"] if one.guard == "saturation")


async def test_a_sound_model_is_not_called_unsound(folder: Path) -> None:
    qdq_kit.write_model(folder, range_=6.0, hidden_range=6.0)
    verdict = await _judge(folder)
    assert (verdict.verdict, verdict.action) == ("inconclusive", "none"), verdict.sentence


async def test_a_scale_that_is_too_small_pauses(folder: Path) -> None:
    qdq_kit.write_model(folder, range_=6.0, hidden_range=1.0)
    verdict = await _judge(folder)
    assert (verdict.verdict, verdict.action) == ("fail", "pause"), verdict.sentence
    assert "activations are outside their calibrated ranges" in verdict.sentence
