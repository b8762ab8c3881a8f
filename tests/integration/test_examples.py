"""The examples as a user runs them: built, served by `canarium up`, asked by an unmodified client."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from serving import yaml12
from serving.build.imported.sound import expand
from serving.build.runner import build
from serving.registry.store import Registry
from tests.integration.conftest import PATIENT
from tests.support.stack import ROOT, Stack, running

pytestmark = pytest.mark.integration

EXAMPLES = ROOT / "deployments" / "examples"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Both quick examples, built from nothing, in one instance."""
    folder = tmp_path_factory.mktemp("examples")
    registry = Registry(folder / "registry")
    document = {"apiVersion": "canarium/v1", "registry": {"dir": str(registry.root)}, "models": {}}
    for name in ("iot", "voice"):
        assert not build(EXAMPLES / name / "recipe.yaml", registry, cache_dir=folder / "build").refused
        document["models"] |= yaml12.load((EXAMPLES / name / "canarium.yaml").read_text())["models"]  # type: ignore[operator]
    for model in document["models"].values():  # type: ignore[attr-defined]
        model.setdefault("routing", {})["queue"] = model.get("routing", {}).get("queue", {}) | PATIENT
    with running(document, folder) as started:
        yield started


def _readings(label: str) -> np.ndarray:
    with gzip.open(EXAMPLES / "iot" / "data" / "shuttle.csv.gz", "rt") as file:
        rows = [row for row in csv.DictReader(file) if (row["split"], row["label"]) == ("test", label)][:40]
    return np.array([[float(row[f"f{number}"]) for number in range(1, 10)] for row in rows], np.float32)


def test_readings_are_told_apart_by_every_variant(stack: Stack) -> None:
    client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{stack.http_port}")
    for variant in ("teacher", "int8", "distilled", "control"):
        for label in ("normal", "anomaly"):
            readings = _readings(label)
            features = tritonclient.http.InferInput("features", list(readings.shape), "FP32")
            features.set_data_from_numpy(readings)
            answer = client.infer("iot", [features], headers={"x-canarium-variant": variant})
            assert (answer.as_numpy("label") == label.encode()).mean() >= 0.9
            assert answer.as_numpy("probabilities").shape == (40, 2)


def test_a_stream_gives_its_state_back_and_comes_out_as_measured(stack: Stack) -> None:
    spoken = _stream_client()
    with np.load(EXAMPLES / "voice" / "data" / "speech.npz") as data:
        sound, classes = expand(data["test-sound"][:2]), data["test-classes"][:2]
    client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{stack.grpc_port}")
    for call in range(2):
        scores = np.array(list(spoken.probabilities(client, sound[call], f"call-{call}")))
        assert len(scores) == classes.shape[1]
        assert ((scores >= 0.5) == classes[call]).mean() > 0.75


def test_callers_share_requests_without_sharing_state(stack: Stack) -> None:
    client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{stack.grpc_port}")
    chance = np.random.default_rng(1)
    sound = chance.normal(0, 0.2, (3, 576)).astype(np.float32)
    state = chance.normal(0, 0.5, (2, 3, 128)).astype(np.float32)

    def ask(rows: slice, variant: str) -> tuple[np.ndarray, np.ndarray]:
        inputs = []
        for name, array in (("input", sound[rows]), ("state", state[:, rows]), ("sr", np.array(16000, np.int64))):
            inputs.append(tritonclient.grpc.InferInput(name, list(array.shape), "INT64" if name == "sr" else "FP32"))
            inputs[-1].set_data_from_numpy(array.copy())
        answer = client.infer("voice", inputs, headers={"x-canarium-variant": variant})
        return answer.as_numpy("output"), answer.as_numpy("stateN")

    for variant in ("fp32", "fp16", "int8"):
        together, states = ask(slice(0, 3), variant)
        assert together.shape == (3, 1)
        assert states.shape == (2, 3, 128)
        for row in range(3):
            alone, own = ask(slice(row, row + 1), variant)
            assert alone[0] == pytest.approx(together[row], abs=1e-4)
            assert own[:, 0] == pytest.approx(states[:, row], abs=1e-4)


def test_the_command_line_asks_both(stack: Stack, tmp_path: Path) -> None:
    url = ("--url", f"http://127.0.0.1:{stack.http_port}")
    reading = "[" + ", ".join(f"{value:g}" for value in _readings("normal")[0]) + "]"
    assert "label: normal" in stack.canarium("infer", "iot", reading, "--tensors", *url).stdout
    np.savez(tmp_path / "windows.npz", input=np.zeros((4, 1, 576), np.float32), sr=np.array(16000))
    shown = stack.canarium(
        "infer", "voice", f"@{tmp_path / 'windows.npz'}", "--tensors", "--state", "stateN=state", *url
    ).stdout
    assert shown.count("output: ") == 4
    assert shown.count("answered by fp32") == 4


def _stream_client() -> ModuleType:
    path = EXAMPLES / "voice" / "stream.py"
    spec = importlib.util.spec_from_file_location("voice_stream", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
