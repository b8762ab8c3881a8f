"""Requests of a model whose state has its rows on axis 1 share batches, and each gets its own state back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import stream_kit

from serving.clock import SystemClock
from serving.config import parse_config
from serving.contract import VariantEntry
from serving.errors import RegistryError
from serving.gateway.recorder import Recorder
from serving.gateway.spool import SpoolWriter, latency_buckets_ms
from serving.gateway.variants import VariantPlane
from serving.registry.manifest import Postprocess, Signature, TensorSpec
from serving.registry.store import Registry

WIDTH, ROWS = 72, 10
SIGNATURE = Signature(
    inputs=(
        TensorSpec("input", "FP32", (-1, WIDTH)),
        TensorSpec("state", "FP32", (1, -1, 1)),
        TensorSpec("sr", "INT64", ()),
    ),
    outputs=(TensorSpec("output", "FP32", (-1, 1)), TensorSpec("stateN", "FP32", (1, -1, 1))),
)


def plane(folder: Path) -> VariantPlane:
    (folder / "model.onnx").write_bytes(stream_kit.graph().SerializeToString())
    registry, clock = Registry(folder / "registry"), SystemClock()
    manifest = registry.register(
        "loud",
        "fp32",
        {"model.onnx": folder / "model.onnx"},
        format="onnx",
        entry="model.onnx",
        signature=SIGNATURE,
        session=SIGNATURE,
        postprocess=Postprocess("detection", labels=("silence", "speech"), score="output", threshold=0.5),
    )
    variants = {"fp32": {"artifact": manifest.ref, "placement": "colocated"}}
    model = parse_config({"apiVersion": "canarium/v1", "models": {"loud": {"baseline": "fp32", "variants": variants}}})
    spool = SpoolWriter.create(folder / "spool", "test", clock, capacity=64)
    recorder = Recorder(spool, clock, "secret")
    recorder.model("loud", list(latency_buckets_ms()), ["silence", "speech"])
    return VariantPlane(
        "loud",
        VariantEntry("fp32", manifest.version, manifest.ref, placement="colocated", max_batch=4),
        *registry.open(manifest.ref),
        config=model.models["loud"].variants["fp32"],
        queue=model.models["loud"].routing.queue,
        recorder=recorder,
        clock=clock,
        socket_dir=Path("/nonexistent"),
        remote=None,
    )


async def test_callers_share_a_batch_and_not_their_state(tmp_path: Path) -> None:
    at = plane(tmp_path)
    await at.start()
    chance = np.random.default_rng(1)
    sound = chance.normal(0, 0.3, (ROWS, WIDTH)).astype(np.float32)
    state = chance.random((1, ROWS, 1)).astype(np.float32)
    deadline_ns = SystemClock().monotonic_ns() + 20 * 10**9

    async def ask(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        inputs = {"input": sound[first:last], "state": state[:, first:last], "sr": np.array(16000)}
        answer = await at.run(inputs, last - first, deadline_ns)
        return answer.tensors["output"], answer.tensors["stateN"]

    try:
        alone = [await ask(row, row + 1) for row in range(ROWS)]
        # More than one batch holds, so it is split and put together again; and many at once, which share batches.
        output, after = await ask(0, ROWS)
        together = await asyncio.gather(*(ask(row, row + 2) for row in range(ROWS - 1)))
        assert any(rows > 2 for rows in at.stats.batches)
    finally:
        await at.close()
    expected, states = np.concatenate([one for one, _ in alone]), np.concatenate([one for _, one in alone], axis=1)
    np.testing.assert_allclose(output, expected, atol=1e-5)
    np.testing.assert_allclose(after, states, atol=1e-5)
    for row, (some, own) in enumerate(together):
        np.testing.assert_allclose(some, expected[row : row + 2], atol=1e-5)
        np.testing.assert_allclose(own, states[:, row : row + 2], atol=1e-5)


@pytest.mark.parametrize(
    ("post", "message"),
    [
        (Postprocess("detection", labels=("no", "yes"), score="loud", threshold=0.5), "'loud' is no session output"),
        (
            Postprocess("detection", labels=("no", "yes"), score="stateN", threshold=0.5),
            "'stateN' is no session output",
        ),
        (Postprocess("detection", labels=("no", "yes"), score="output"), "two labels and a threshold between 0 and 1"),
        (Postprocess("detection", labels=("no",), score="output", threshold=0.5), "two labels and a threshold"),
    ],
)
def test_a_detection_names_its_score_and_threshold(tmp_path: Path, post: Postprocess, message: str) -> None:
    (tmp_path / "model.onnx").write_bytes(stream_kit.graph().SerializeToString())
    with pytest.raises(RegistryError, match=message):
        Registry(tmp_path / "registry").register(
            "loud",
            "fp32",
            {"model.onnx": tmp_path / "model.onnx"},
            format="onnx",
            entry="model.onnx",
            signature=SIGNATURE,
            session=SIGNATURE,
            postprocess=post,
        )
