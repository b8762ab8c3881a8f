"""A variant must take and give what its baseline does, because clients do not know who answers them."""

from __future__ import annotations

from pathlib import Path

import pytest
from governance_kit import SIGNATURE, config, onnx_frame, registry_at

from serving.artifacts import started
from serving.errors import ConfigError
from serving.registry.manifest import Signature, TensorSpec
from serving.registry.signatures import unlike
from serving.registry.store import Registry

X, STATE, RATE = (
    TensorSpec("x", "FP32", (-1, 2)),
    TensorSpec("state", "FP32", (2, -1, 4)),
    TensorSpec("sr", "INT64", ()),
)
Y, STATES = TensorSpec("y", "FP32", (-1, 2)), TensorSpec("states", "FP32", (2, -1, 4))
BASELINE = Signature((X, STATE, RATE), (Y, STATES))


def register(registry: Registry, variant: str, signature: Signature) -> None:
    path = registry.root.parent / f"{variant}.onnx"
    path.write_bytes(onnx_frame(variant))
    options = {"format": "onnx", "entry": "model.onnx", "signature": signature, "session": SIGNATURE}
    registry.register("m", variant, {"model.onnx": path}, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("signature", "said"),
    [
        (
            Signature((X,), (TensorSpec("z", "FP32", (-1, 2)),)),
            "output 'y' is missing here and FP32 [-1, 2] there",
        ),
        (
            Signature((TensorSpec("x", "FP64", (-1, 2)),), (Y,)),
            "input 'x' is FP64 [-1, 2] here and FP32 [-1, 2] there",
        ),
    ],
    ids=["another output", "another datatype"],
)
def test_what_would_refuse_the_baselines_clients_is_not_started(
    tmp_path: Path, signature: Signature, said: str
) -> None:
    registry = registry_at(tmp_path)
    register(registry, "next", signature)
    with pytest.raises(ConfigError) as error:
        started(config(registry, teacher="m/teacher:1", next="m/next:1"), registry)
    assert str(error.value) == (
        f"models.m.variants.next: m/next:1 cannot answer in the place of the baseline teacher, m/teacher:1: {said}"
    )
    assert started(config(registry, next="m/next:1"), registry)
    assert started(config(registry), registry)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ((X, STATE, RATE), (Y, STATES)),
        ((RATE, STATE, X), (STATES, Y)),
        ((TensorSpec("x", "FP32", (-1, -1)), STATE, RATE), (Y, STATES)),
        ((X, STATE, RATE), (Y, STATES, TensorSpec("more", "FP32", (-1,)))),
    ],
    ids=["equal", "another order", "a freer input", "a further output"],
)
def test_what_serves_all_of_the_baselines_clients_is_like_it(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> None:
    assert unlike(Signature(inputs, outputs), BASELINE) == ""


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        ((X, RATE), (Y, STATES), "input 'state' is missing"),
        ((X, STATE, RATE, TensorSpec("mask", "INT64", (-1, 2))), (Y, STATES), "input 'mask' is INT64 [-1, 2]"),
        ((TensorSpec("x", "FP32", (-1, 3)), STATE, RATE), (Y, STATES), "input 'x' is FP32 [-1, 3]"),
        ((TensorSpec("x", "FP32", (-1,)), STATE, RATE), (Y, STATES), "input 'x' is FP32 [-1]"),
        ((TensorSpec("x", "FP32", (1, 2)), STATE, RATE), (Y, STATES), "input 'x' is FP32 [1, 2]"),
        ((X, TensorSpec("state", "FP32", (-1, -1, 4)), RATE), (Y, STATES), "input 'state' is FP32 [-1, -1, 4]"),
        ((X, STATE, RATE), (TensorSpec("y", "FP32", (-1, -1)), STATES), "output 'y' is FP32 [-1, -1]"),
        ((X, STATE, RATE), (Y, TensorSpec("states", "FP16", (2, -1, 4))), "output 'states' is FP16 [2, -1, 4]"),
        ((X, STATE, RATE), (Y,), "output 'states' is missing"),
    ],
    ids=[
        "an input less",
        "a further input",
        "another width",
        "another rank",
        "no free axis",
        "rows on another axis",
        "a freer output",
        "an output's datatype",
        "an output less",
    ],
)
def test_the_first_difference_that_a_client_could_meet_is_named(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], said: str
) -> None:
    assert unlike(Signature(inputs, outputs), BASELINE).startswith(f"{said} here and ")
