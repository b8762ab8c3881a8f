"""The independent peer: requests as the unmodified tritonclient makes them, and its parser for answers.

The golden payloads in `data/` are what this client sent; `python tests/contract/peer.py` writes them anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.grpc._utils import _get_inference_request

DATA = Path(__file__).parent / "data"


class Case(NamedTuple):
    """One request: arrays with their datatypes, which of them go as binary data, which outputs are asked for."""

    inputs: dict[str, tuple[str, np.ndarray]]
    binary: frozenset[str] = frozenset()
    #: output name -> (binary, classes); None asks for none by name
    outputs: dict[str, tuple[bool, int]] | None = None
    request_id: str = ""
    options: Mapping[str, Any] = MappingProxyType({})


def texts(*values: bytes) -> np.ndarray:
    return np.array(values, dtype=object)


NUMBERS = np.arange(-3, 5, dtype=np.float32).reshape(2, 4) / 7
TEXTS = texts(b"win a prize", "Grüße, 世界".encode(), b"")

CASES: dict[str, Case] = {
    "fp32-json": Case({"x": ("FP32", NUMBERS)}, outputs={"y": (False, 0)}, request_id="r-1"),
    "fp32-binary": Case({"x": ("FP32", NUMBERS)}, frozenset("x"), {"y": (True, 0)}, "r-2"),
    "all-outputs": Case({"x": ("FP32", NUMBERS)}, frozenset("x")),
    "json-in-binary-out": Case({"x": ("FP32", NUMBERS)}),
    "text-json": Case({"text": ("BYTES", TEXTS)}, outputs={"label": (False, 0)}),
    "text-binary": Case({"text": ("BYTES", TEXTS)}, frozenset({"text"}), {"label": (True, 0)}),
    "text-not-utf8": Case({"text": ("BYTES", texts(b"\xff\x00\xfe"))}, frozenset({"text"})),
    "mixed": Case(
        {
            "flags": ("BOOL", np.array([[True, False]])),
            "text": ("BYTES", texts(b"a", b"bc")),
            "ids": ("INT64", np.array([2**62, -1], dtype=np.int64)),
            "half": ("FP16", np.array([[0.5], [-2.0]], dtype=np.float16)),
        },
        frozenset({"text", "half"}),
        {"y": (True, 0), "label": (False, 0)},
        options={"parameters": {"tenant": "a", "weight": 3}, "timeout": 5000, "priority": 1},
    ),
    "classification": Case({"x": ("FP32", NUMBERS)}, frozenset("x"), {"y": (True, 2)}),
}


def http_request(case: Case) -> tuple[bytes, int | None]:
    """Body and length of its JSON object (None: all of it), by the client's own encoder."""
    inputs = []
    for name, (datatype, array) in case.inputs.items():
        item = triton_http.InferInput(name, list(array.shape), datatype)
        item.set_data_from_numpy(array, binary_data=name in case.binary)
        inputs.append(item)
    outputs = None
    if case.outputs is not None:
        outputs = [
            triton_http.InferRequestedOutput(name, binary_data=binary, class_count=classes)
            for name, (binary, classes) in case.outputs.items()
        ]
    return triton_http.InferenceServerClient.generate_request_body(
        inputs, outputs=outputs, request_id=case.request_id, **case.options
    )


def http_result(body: bytes, json_length: int | None = None, encoding: str | None = None) -> triton_http.InferResult:
    """An answer as the client understands it."""
    return triton_http.InferenceServerClient.parse_response_body(
        body, header_length=json_length, content_encoding=encoding
    )


def grpc_request(case: Case, model: str = "m", version: str = "") -> Any:
    """The `ModelInferRequest` that the client would send."""
    inputs = []
    for name, (datatype, array) in case.inputs.items():
        item = triton_grpc.InferInput(name, list(array.shape), datatype)
        item.set_data_from_numpy(array)
        inputs.append(item)
    outputs = None
    if case.outputs is not None:
        outputs = [
            triton_grpc.InferRequestedOutput(name, class_count=classes) for name, (_, classes) in case.outputs.items()
        ]
    options = {
        "sequence_id": 0,
        "sequence_start": False,
        "sequence_end": False,
        "priority": 0,
        "timeout": None,
        "parameters": None,
    }
    return _get_inference_request(
        model_name=model,
        inputs=inputs,
        model_version=version,
        request_id=case.request_id,
        outputs=outputs,
        **(options | dict(case.options)),
    )


def golden(name: str) -> tuple[bytes, int | None]:
    """A stored HTTP request."""
    lengths = json.loads((DATA / "http-json-lengths.json").read_text(encoding="utf-8"))
    return (DATA / f"{name}.http").read_bytes(), lengths[name]


def write() -> None:
    """Store what the installed client sends."""
    DATA.mkdir(exist_ok=True)
    lengths = {}
    for name, case in CASES.items():
        body, lengths[name] = http_request(case)
        (DATA / f"{name}.http").write_bytes(body)
        (DATA / f"{name}.grpc").write_bytes(grpc_request(case).SerializeToString(deterministic=True))
    (DATA / "http-json-lengths.json").write_text(json.dumps(lengths, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
