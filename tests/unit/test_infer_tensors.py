"""`canarium infer --tensors`: JSON or an archive becomes a request, and state is carried from step to step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serving.cli import main

INPUTS = [
    {"name": "input", "datatype": "FP32", "shape": [-1, 2]},
    {"name": "state", "datatype": "FP32", "shape": [2, -1, 3]},
    {"name": "sr", "datatype": "INT64", "shape": []},
]


class Model:
    """A server whose state counts the steps; keeps what it was asked."""

    def __init__(self, inputs: list[dict[str, Any]]) -> None:
        self.inputs = inputs
        self.asked: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"name": "m", "inputs": self.inputs, "outputs": []})
        tensors = {tensor["name"]: tensor for tensor in json.loads(request.content)["inputs"]}
        self.asked.append(tensors)
        outputs = [{"name": "output", "datatype": "FP32", "shape": [1, 1], "data": [0.25]}]
        if "state" in tensors:
            state = [value + 1 for value in tensors["state"]["data"]]
            outputs.append({"name": "stateN", "datatype": "FP32", "shape": [2, 1, 3], "data": state})
        return httpx.Response(200, json={"model_name": "m", "model_version": "1", "outputs": outputs})

    def run(self, *arguments: str) -> int:
        return main(["infer", "m", *arguments, "--tensors"], transport=httpx.MockTransport(self))


def test_one_row_of_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    model = Model([INPUTS[0]])
    assert model.run("[1, 2]") == 0
    assert model.asked == [{"input": {"name": "input", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}}]
    assert "output: 0.2500" in capsys.readouterr().out


def test_steps_carry_the_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "w.npz", input=np.ones((3, 1, 2), np.float32), sr=np.array(16000))
    model = Model(INPUTS)
    assert model.run(f"@{tmp_path / 'w.npz'}", "--state", "stateN=state") == 0
    assert [asked["state"]["data"] for asked in model.asked] == [[0.0] * 6, [1.0] * 6, [2.0] * 6]
    assert model.asked[0]["state"]["shape"] == [2, 1, 3]
    assert model.asked[0]["sr"] == {"name": "sr", "datatype": "INT64", "shape": [], "data": [16000]}
    printed = capsys.readouterr().out
    assert printed.count("output: 0.2500") == 3
    assert "stateN" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["[1"], "neither JSON nor @FILE.npz"),
        (["@/no/such/file.npz"], "/no/such/file.npz: No such file"),
        (["[1, 2]"], "the model takes input, state, sr: give an object of arrays by name"),
        (['{"input": [1, 2], "sr": 1}'], "input 'state' is missing: it takes FP32 [2, -1, 3]"),
        (['{"input": ["x"], "sr": 1}', "--state", "stateN=state"], "input 'input': no array of FP32"),
        (['{"noise": [1]}'], "no input 'noise': the model takes input, sr, state"),
        (['{"input": [1, 2], "sr": 1}', "--state", "stateN"], "--state stateN: expected OUTPUT=INPUT"),
        (
            ['{"input": [1, 2], "sr": 1}', "--state", "memory=state"],
            "--state memory=state: the model gives output, stateN",
        ),
    ],
)
def test_what_cannot_be_sent_is_said(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert Model(INPUTS).run(*arguments) != 0
    assert message in capsys.readouterr().err


def test_an_archive_that_is_cut_short_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, input=np.zeros(1_000, np.float32))
    path.write_bytes(path.read_bytes()[:2_000])
    assert Model(INPUTS).run(f"@{path}") != 0
    assert "neither JSON nor @FILE.npz" in capsys.readouterr().err
