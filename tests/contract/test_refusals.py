"""Every unusable request is refused with 400, the place of the fault, what was expected and what came."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peer import CASES, golden, texts

from serving.errors import ErrorKind, RequestError
from serving.protocol import oip_binary, oip_json
from serving.protocol.types import InferRequest, OutputRequest, Tensor, tensor
from serving.protocol.validate import select_outputs, validate
from serving.registry.manifest import Signature, TensorSpec


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(RequestError) as caught:
        call(*arguments)
    assert caught.value.kind is ErrorKind.BAD_REQUEST
    return caught.value.message


def entry(**changes: Any) -> dict[str, Any]:
    base = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]} | changes
    return {key: value for key, value in base.items() if value is not ...}


def body(*inputs: Any, **members: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **members}).encode()


KNOWN = "BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, INT32, INT64, FP16, FP32, FP64, BYTES"

JSON_MISTAKES: list[tuple[bytes, str]] = [
    (b"", "body: not valid JSON: Input is a zero-length, empty document"),
    (b"{", "body: not valid JSON"),
    (b"\xff{}", "body: not valid JSON: str is not valid UTF-8"),
    (b'{"id": "\\ud800"}', "body: not valid JSON"),
    (b"[1]", "body: expected a JSON object, got array"),
    (b"null", "body: expected a JSON object, got null"),
    (b"[" * 10_000 + b"]" * 10_000, "body: not valid JSON: depth limit exceeded"),
    (b'{"inputs":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "body: not valid JSON: depth limit exceeded"),
    (b"{}", "inputs: expected a non-empty array, got nothing"),
    (b'{"inputs": []}', "inputs: expected a non-empty array, got no elements"),
    (b'{"inputs": {}}', "inputs: expected a non-empty array, got object"),
    (body(5), "inputs[0]: expected an object, got integer"),
    (body(entry(), id=5), "id: expected a string, got integer"),
    (body(entry(), parameters=[]), "parameters: expected an object, got array"),
    (
        body(entry(), parameters={"binary_data_output": 1}),
        "parameters.binary_data_output: expected true or false, got 1",
    ),
    (body(entry(name=...)), "inputs[0].name: expected a non-empty string, got None"),
    (body(entry(name="")), "inputs[0].name: expected a non-empty string, got ''"),
    (body(entry(), entry()), "inputs[1].name: 'x' occurs twice"),
    (body(entry(datatype=...)), "inputs[0].datatype: expected a string, got null"),
    (body(entry(datatype="FP8")), f"inputs[0].datatype: 'FP8' is not supported, expected one of {KNOWN}"),
    (body(entry(datatype="BF16")), f"inputs[0].datatype: 'BF16' is not supported, expected one of {KNOWN}"),
    (body(entry(shape=...)), "inputs[0].shape: expected an array of integers, got null"),
    (body(entry(shape=[-1])), "inputs[0].shape: expected non-negative integers, got -1"),
    (body(entry(shape=[True])), "inputs[0].shape: expected non-negative integers, got True"),
    (body(entry(shape=[2.0])), "inputs[0].shape: expected non-negative integers, got 2.0"),
    (body(entry(shape=[1] * 33)), "inputs[0].shape: 33 dimensions are over the limit of 32"),
    (body(entry(shape=[2**31 - 1] * 2)), "inputs[0].data: shape [2147483647, 2147483647] takes"),
    (body(entry(shape=[0, *[2**31 - 1] * 3], data=[])), "inputs[0].data: shape [0, 2147483647"),
    (body(entry(shape=[1, 0, 2**31], data=[])), "inputs[0].shape: 2147483648 is over the limit of 2147483647"),
    (body(*(entry(name=str(at)) for at in range(257))), "inputs: 257 are over the limit of 256"),
    (body(entry(), outputs=[{"name": str(at)} for at in range(257)]), "outputs: 257 are over the limit of 256"),
    (body(entry(data=...)), "inputs[0]: input 'x' has neither data nor parameters.binary_data_size"),
    (body(entry(data="1")), "inputs[0].data: expected an array, got string"),
    (body(entry(data=[1])), "inputs[0].data: shape [2] takes 2 elements, got 1"),
    (body(entry(data=[1, "2"])), "inputs[0].data: expected numbers, got '2' at [1]"),
    (body(entry(data=[1, None])), "inputs[0].data: expected numbers, got None at [1]"),
    (body(entry(data=[1, True])), "inputs[0].data: expected numbers, got True at [1]"),
    (body(entry(data=[1, 1e39])), "inputs[0].data: 1e+39 at [1] is out of range for FP32 (±3.403e+38)"),
    (body(entry(datatype="FP16")), "inputs[0].data: FP16 has no JSON form, send it as binary data (binary_data_size)"),
    (body(entry(datatype="UINT8", data=[1, 300])), "inputs[0].data: 300 at [1] is out of range for UINT8 (0..255)"),
    (body(entry(datatype="UINT64", data=[1, -1])), "inputs[0].data: -1 at [1] is out of range for UINT64"),
    (
        body(entry(datatype="INT64", data=[1, 2**63])),
        "inputs[0].data: 9223372036854775808 at [1] is out of range for INT64",
    ),
    (body(entry(datatype="INT64", data=[1, 2**70])), "inputs[0].data: expected integers for INT64, got 1.18"),
    (body(entry(datatype="INT8", data=[1, 1.5])), "inputs[0].data: expected integers for INT8, got 1.5 at [1]"),
    (body(entry(datatype="INT8", data=[1, False])), "inputs[0].data: expected integers, got False at [1]"),
    (body(entry(datatype="BOOL")), "inputs[0].data: expected booleans, got 1 at [0]"),
    (body(entry(datatype="BYTES")), "inputs[0].data: expected strings, got 1 at [0]"),
    (body(entry(shape=[2, 2], data=[[1, 2], [3]])), "inputs[0].data: expected an array of 2 elements at [1], got 1 el"),
    (
        body(entry(shape=[2, 2], data=[[1, 2], 3])),
        "inputs[0].data: expected an array of 2 elements at [1], got integer",
    ),
    (body(entry(shape=[2, 2], data=[1, [2], 3, 4])), "inputs[0].data: expected numbers, got [2] at [0, 1]"),
    (body(entry(shape=[2, 2], data=[[1, 2]])), "inputs[0].data: shape [2, 2] takes 2 rows, got 1"),
    (body(entry(shape=[2], data=[[1], [2]])), "inputs[0].data: nested deeper than shape [2]"),
    (
        body(entry(shape=[2, 1, 2], data=[[[1, 2]], [[3]]])),
        "inputs[0].data: expected an array of 2 elements at [1, 0], got 1 elements",
    ),
    (
        body(entry(data=..., parameters={"binary_data_size": 8})),
        "inputs[0]: parameters.binary_data_size needs the header Inference-Header-Content-Length",
    ),
    (
        body(entry(parameters={"binary_data_size": 8})),
        "inputs[0]: data and parameters.binary_data_size exclude each other",
    ),
    (
        body(entry(data=..., parameters={"shared_memory_region": "r"})),
        "inputs[0].parameters.shared_memory_region: shared memory is not supported, send the tensor in the request",
    ),
    (body(entry(), outputs={}), "outputs: expected an array, got object"),
    (body(entry(), outputs=["y"]), "outputs[0]: expected an object, got string"),
    (body(entry(), outputs=[{"name": "y"}, {"name": "y"}]), "outputs[1].name: 'y' occurs twice"),
    (
        body(entry(), outputs=[{"name": "y", "parameters": {"binary_data": "yes"}}]),
        "outputs[0].parameters.binary_data: expected true or false, got 'yes'",
    ),
    (
        body(entry(), outputs=[{"name": "y", "parameters": {"classification": -1}}]),
        "outputs[0].parameters.classification: expected a non-negative integer, got -1",
    ),
    (
        body(entry(), outputs=[{"name": "y", "parameters": {"shared_memory_region": "r"}}]),
        "outputs[0].parameters.shared_memory_region: shared memory is not supported",
    ),
]


@pytest.mark.parametrize(("payload", "message"), JSON_MISTAKES, ids=[message[:60] for _, message in JSON_MISTAKES])
def test_json_mistakes(payload: bytes, message: str) -> None:
    assert refused(oip_json.decode_request, payload).startswith(message)


def binary(size: Any, tail: bytes, datatype: str = "FP32", shape: tuple[int, ...] = (2,)) -> tuple[bytes, int]:
    head = body(entry(data=..., datatype=datatype, shape=list(shape), parameters={"binary_data_size": size}))
    return head + tail, len(head)


BINARY_MISTAKES: list[tuple[tuple[bytes, int], str]] = [
    (binary(8, b"1234"), "inputs[0]: parameters.binary_data_size is 8, 4 bytes are left in the body"),
    (binary(8, b"12345678+"), "body: 9 bytes follow the JSON object, the binary_data_size of the inputs add up to 8"),
    (binary(4, b"1234"), "inputs[0]: shape [2] of FP32 takes 8 bytes, got 4"),
    (binary(-1, b""), "inputs[0].parameters.binary_data_size: expected a non-negative integer, got -1"),
    (binary("8", b"12345678"), "inputs[0].parameters.binary_data_size: expected a non-negative integer, got '8'"),
    (binary(8, b"12345678", shape=(2**31 - 1,)), "inputs[0]: shape [2147483647] of FP32 takes"),
    (binary(2, b"\x01\x02", "BOOL"), "inputs[0]: a BOOL is a byte of 0 or 1"),
    (binary(2, b"\x01\x00", "BYTES"), "inputs[0]: 2 BYTES elements take at least 8 bytes, got 2"),
    (
        binary(9, b"\x05\0\0\0abcde", "BYTES"),
        "inputs[0]: element 1 needs a length of 4 bytes, 0 are left",
    ),
    (
        binary(9, b"\0\0\0\0\x05\0\0\0a", "BYTES"),
        "inputs[0]: element 1 is 5 bytes long, 1 are left",
    ),
    (
        binary(12, b"\x01\0\0\0a\x01\0\0\0b!!", "BYTES"),
        "inputs[0]: 2 BYTES elements take 10 bytes, 2 more follow",
    ),
    (binary(4, b"\xff\xff\xff\xff", "BYTES", (1,)), "inputs[0]: element 0 is 4294967295 bytes long, 0 are left"),
    ((b"{}", 3), "Inference-Header-Content-Length: 3 is over the body's 2 bytes"),
    ((b'{"inputs": []}', 5), "body: not valid JSON"),
]


@pytest.mark.parametrize(("payload", "message"), BINARY_MISTAKES, ids=[message[:60] for _, message in BINARY_MISTAKES])
def test_binary_mistakes(payload: tuple[bytes, int], message: str) -> None:
    assert refused(oip_binary.decode_request, *payload).startswith(message)


@pytest.mark.parametrize("value", ["-1", "x", "", "1.5", "１", "9" * 19, "+3", "1_0"])
def test_a_header_length_is_a_number(value: str) -> None:
    assert refused(oip_binary.header_length, value).startswith("Inference-Header-Content-Length: expected a number")


def test_header_lengths() -> None:
    assert [oip_binary.header_length(value) for value in (None, "0", "17", b"17")] == [None, 0, 17, 17]


# ---------------------------------------------------------------- raw


def signature(*inputs: TensorSpec) -> Signature:
    return Signature(inputs, (TensorSpec("y", "FP32", (-1, 2)), TensorSpec("label", "BYTES", (-1,))))


X = TensorSpec("x", "FP32", (-1, 4))


@pytest.mark.parametrize(
    ("inputs", "payload", "message"),
    [
        ((X, X), b"", "Inference-Header-Content-Length: 0 is for models with one input, this one has 2"),
        ((X,), b"12345", "body: 5 bytes are not a multiple of 16, one step of FP32 [-1, 4]"),
        (
            (TensorSpec("x", "FP32", (2, -1, -1)),),
            b"",
            "body: a raw request cannot say the shape of an input [2, -1, -1]",
        ),
        ((TensorSpec("x", "FP32", (2,)),), b"1234", "body: shape [2] of FP32 takes 8 bytes, got 4"),
    ],
)
def test_raw_mistakes(inputs: tuple[TensorSpec, ...], payload: bytes, message: str) -> None:
    assert refused(oip_binary.decode_raw, payload, signature(*inputs)).startswith(message)


# ---------------------------------------------------------------- against the model's signature


def request(*tensors: Tensor, outputs: list[OutputRequest] | None = None) -> InferRequest:
    return InferRequest("", list(tensors), outputs, {}, False)


def floats(*shape: int, name: str = "x") -> Tensor:
    return tensor(name, np.zeros(shape, dtype=np.float32))


TWO = signature(X, TensorSpec("z", "FP32", (-1,)))


@pytest.mark.parametrize(
    ("of", "sent", "message"),
    [
        (signature(X), request(floats(1, 4, name="w")), "input 'x' is missing: model 'm' takes x FP32 [-1, 4]"),
        (TWO, request(floats(1, 4)), "input 'z' is missing: model 'm' takes x FP32 [-1, 4], z FP32 [-1]"),
        (
            signature(X),
            request(floats(1, 4), floats(1, name="w")),
            "input 'w' is unknown: model 'm' takes x FP32 [-1, 4]",
        ),
        (signature(X), request(floats(1, 5)), "input 'x': expected FP32 [-1, 4], got FP32 [1, 5]"),
        (signature(X), request(floats(4)), "input 'x': expected FP32 [-1, 4], got FP32 [4]"),
        (signature(X), request(floats(0, 4)), "input 'x': expected at least one row, got shape [0, 4]"),
        (
            signature(X),
            request(tensor("x", np.zeros((1, 4), dtype=np.int64))),
            "input 'x': expected FP32 [-1, 4], got INT64 [1, 4]",
        ),
        (
            TWO,
            request(floats(2, 4), floats(3, name="z")),
            "input 'z': expected the same batch size as input 'x', 2, got 3",
        ),
        (
            signature(X),
            request(floats(1, 4), outputs=[OutputRequest("prob")]),
            "output 'prob' is unknown: model 'm' gives y, label",
        ),
    ],
)
def test_requests_that_do_not_fit_the_model(of: Signature, sent: InferRequest, message: str) -> None:
    assert refused(validate, sent, of, "m") == message


@pytest.mark.parametrize(("value", "word"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numbers_are_finite_unless_allowed(value: float, word: str, dtype: type) -> None:
    array = np.zeros((2, 4), dtype=dtype)
    array[1, 2] = array[1, 3] = value
    spec = TensorSpec("x", {2: "FP16", 4: "FP32", 8: "FP64"}[array.itemsize], (-1, 4))
    message = refused(validate, request(tensor("x", array)), signature(spec), "m")
    assert message == f"input 'x': expected finite numbers, got {word} at [1, 2]"
    assert validate(request(tensor("x", array)), signature(spec), "m", allow_nonfinite=True) == 2


def test_rows_are_counted() -> None:
    assert validate(request(floats(3, 4), floats(3, name="z")), TWO, "m") == 3
    assert validate(request(floats(2)), signature(TensorSpec("x", "FP32", (2,))), "m") == 1
    text = tensor("x", texts(b"a", b"b"))
    assert validate(request(text), signature(TensorSpec("x", "BYTES", (-1,))), "m") == 2


def test_outputs_that_cannot_be_given() -> None:
    label = [tensor("label", texts(b"\xff"))]
    asked = request(outputs=[OutputRequest("y")])
    assert refused(select_outputs, asked, label) == "output 'y' is unknown, expected one of label"
    asked = request(outputs=[OutputRequest("label", True, 2)])
    assert refused(select_outputs, asked, label) == "output 'label': classification needs numbers, got BYTES [1]"


def test_outputs_without_a_json_form_ask_for_binary_data() -> None:
    for output, reason in (
        (tensor("y", texts(b"\xff")), "holds bytes that are not UTF-8, request it with binary_data: true"),
        (tensor("y", np.zeros(1, dtype=np.float16)), "is FP16, which has no JSON form, request binary_data: true"),
    ):
        response = oip_json.InferResponse("m", "1", "", [output])
        assert refused(oip_json.encode_response, response) == f"outputs: 'y' {reason}"


# ---------------------------------------------------------------- anything at all


def test_messages_stay_short_and_printable_whatever_the_client_sends() -> None:
    message = refused(oip_json.decode_request, body(entry(datatype="\r\nx" * 10_000)))
    assert len(message) < 300
    assert message.isprintable()


def only_request_errors(call: Any, *arguments: Any) -> None:
    with suppress(RequestError):
        call(*arguments)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**65) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
shapes = st.lists(st.integers(0, 2**65) | st.integers(0, 3), max_size=4)
inputs = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "y"]) | json_values,
        "datatype": st.sampled_from(KNOWN.split(", ")) | json_values,
        "shape": shapes | json_values,
        "data": st.lists(st.integers(-300, 300) | st.floats() | st.text(max_size=3), max_size=9) | json_values,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 40) | json_values})
        | json_values,
    },
)
outputs = st.fixed_dictionaries({}, optional={"name": json_values, "parameters": json_values})
documents = st.fixed_dictionaries(
    {},
    optional={
        "id": json_values,
        "inputs": st.lists(inputs, max_size=3) | json_values,
        "outputs": st.lists(outputs, max_size=2) | json_values,
        "parameters": json_values,
    },
)


@given(st.binary(max_size=200), st.integers(0, 220))
def test_random_bytes_are_refused_cleanly(payload: bytes, json_length: int) -> None:
    only_request_errors(oip_json.decode_request, payload)
    only_request_errors(oip_binary.decode_request, payload, json_length)
    only_request_errors(oip_binary.decode_raw, payload, signature(X))


@given(documents, st.binary(max_size=40))
def test_random_documents_are_refused_cleanly(document: Any, tail: bytes) -> None:
    head = json.dumps(document).encode()
    only_request_errors(oip_json.decode_request, head)
    only_request_errors(oip_binary.decode_request, head + tail, len(head))


@given(st.sampled_from(sorted(CASES)), st.data())
def test_damaged_requests_are_refused_cleanly(name: str, data: st.DataObject) -> None:
    payload, json_length = golden(name)
    damaged = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    length = data.draw(st.sampled_from([json_length or len(payload), json_length or 0])) + data.draw(st.integers(-2, 2))
    only_request_errors(oip_json.decode_request, bytes(damaged))
    only_request_errors(oip_binary.decode_request, bytes(damaged), max(length, 0))
