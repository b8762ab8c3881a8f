"""HTTP payloads: what the unmodified client sends is understood, what we answer it understands."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from peer import CASES, NUMBERS, Case, golden, http_request, http_result, texts

from serving.protocol import oip_binary, oip_json
from serving.protocol.types import DTYPES, InferRequest, InferResponse, OutputRequest, Tensor, tensor
from serving.protocol.validate import select_outputs
from serving.registry.manifest import Signature, TensorSpec


def decode(body: bytes, json_length: int | None) -> InferRequest:
    return oip_json.decode_request(body) if json_length is None else oip_binary.decode_request(body, json_length)


def check(request: InferRequest, case: Case) -> None:
    """A decoded request says exactly what the client was told to send."""
    assert [item.name for item in request.inputs] == list(case.inputs)
    for item in request.inputs:
        datatype, array = case.inputs[item.name]
        assert (item.datatype, item.shape, item.data.shape) == (datatype, array.shape, array.shape)
        assert item.data.dtype == DTYPES[datatype]
        np.testing.assert_array_equal(item.data, array)
    assert request.id == case.request_id


def answer(*outputs: Tensor, request_id: str = "r-1") -> InferResponse:
    return InferResponse("m", "3", request_id, list(outputs))


# ---------------------------------------------------------------- requests


@pytest.mark.parametrize("name", CASES)
def test_golden_requests_are_understood(name: str) -> None:
    check(decode(*golden(name)), CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_the_installed_client_still_sends_the_golden_requests(name: str) -> None:
    body, json_length = http_request(CASES[name])
    stored, stored_length = golden(name)
    assert json.loads(body[:json_length]) == json.loads(stored[:stored_length])
    assert body[len(body) if json_length is None else json_length :] == (
        b"" if stored_length is None else stored[stored_length:]
    )


def requested(name: str) -> tuple[list[OutputRequest] | None, bool]:
    request = decode(*golden(name))
    return request.outputs, request.binary_default


def test_requested_outputs() -> None:
    assert requested("fp32-json") == ([OutputRequest("y", False)], False)
    assert requested("fp32-binary") == ([OutputRequest("y", True)], False)
    assert requested("all-outputs") == (None, True)
    assert requested("json-in-binary-out") == (None, True)
    assert requested("mixed") == ([OutputRequest("y", True), OutputRequest("label", False)], False)
    assert requested("classification") == ([OutputRequest("y", True, 2)], False)


def test_request_parameters_are_kept() -> None:
    parameters = decode(*golden("mixed")).parameters
    assert parameters == {"tenant": "a", "weight": 3, "timeout": 5000, "priority": 1}


def test_an_output_overrides_the_default_of_the_request() -> None:
    body = oip_json.orjson.dumps(
        {
            "inputs": [{"name": "x", "datatype": "INT8", "shape": [1], "data": [1]}],
            "outputs": [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}],
            "parameters": {"binary_data_output": True},
        }
    )
    assert oip_json.decode_request(body).outputs == [OutputRequest("a", True), OutputRequest("b", False)]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("datatype", [name for name in DTYPES if name != "BYTES"])
@settings(max_examples=30)
@given(data=st.data())
def test_every_number_survives(datatype: str, binary: bool, data: st.DataObject) -> None:
    if datatype == "FP16" and not binary:
        return
    elements = {"allow_nan": binary, "allow_infinity": binary} if datatype.startswith("FP") else {}
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5))
    array = data.draw(hnp.arrays(DTYPES[datatype], shape, elements=elements))
    request = decode(*http_request(Case({"x": (datatype, array)}, frozenset("x") if binary else frozenset())))
    assert request.inputs[0].data.dtype == array.dtype
    np.testing.assert_array_equal(request.inputs[0].data, array)


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_every_byte_survives_as_binary_data(values: list[bytes]) -> None:
    array = np.array(values, dtype=object)
    request = decode(*http_request(Case({"x": ("BYTES", array)}, frozenset("x"))))
    assert request.inputs[0].data.tolist() == values


@given(st.lists(st.text(max_size=40), max_size=6))
def test_every_text_survives_as_json(values: list[str]) -> None:
    array = np.array([value.encode() for value in values], dtype=object)
    request = decode(*http_request(Case({"x": ("BYTES", array)})))
    assert [element.decode() for element in request.inputs[0].data] == values


@pytest.mark.parametrize("data", [[[1, 2, 3], [4, 5, 6]], [1, 2, 3, 4, 5, 6]])
def test_data_is_flat_or_nested(data: list[Any]) -> None:
    entry = {"name": "x", "datatype": "INT32", "shape": [2, 3], "data": data}
    request = oip_json.decode_request(json.dumps({"inputs": [entry]}).encode())
    np.testing.assert_array_equal(request.inputs[0].data, [[1, 2, 3], [4, 5, 6]])


def test_aligned_binary_data_is_not_copied() -> None:
    body, json_length = golden("fp32-binary")
    assert json_length is not None
    padded = b" " * (-json_length % 8) + body  # JSON may start with white space
    request = oip_binary.decode_request(padded, json_length + (-json_length % 8))
    assert np.shares_memory(request.inputs[0].data, np.frombuffer(padded, dtype=np.uint8))


@pytest.mark.parametrize("shift", range(8))
def test_arrays_are_aligned_whatever_the_length_of_the_json(shift: int) -> None:
    body, json_length = golden("fp32-binary")
    assert json_length is not None
    request = oip_binary.decode_request(b" " * shift + body, json_length + shift)
    assert request.inputs[0].data.flags.aligned
    np.testing.assert_array_equal(request.inputs[0].data, NUMBERS)


# ---------------------------------------------------------------- raw requests


def signature(datatype: str, *shape: int) -> Signature:
    return Signature((TensorSpec("x", datatype, shape),), (TensorSpec("y", "FP32", (-1, 2)),))


@pytest.mark.parametrize(
    ("shape", "inferred"),
    [((-1, 4), (2, 4)), ((-1, -1), (1, 8)), ((2, 4), (2, 4)), ((-1,), (8,)), ((-1, 2, -1), (1, 2, 4))],
)
def test_a_raw_request_takes_its_shape_from_the_model(shape: tuple[int, ...], inferred: tuple[int, ...]) -> None:
    request = oip_binary.decode_raw(NUMBERS.tobytes(), signature("FP32", *shape))
    assert (request.inputs[0].name, request.inputs[0].shape) == ("x", inferred)
    np.testing.assert_array_equal(request.inputs[0].data.ravel(), NUMBERS.ravel())
    assert (request.outputs, request.binary_default) == (None, True)


def test_a_raw_text_is_the_body_itself() -> None:
    request = oip_binary.decode_raw("Grüße".encode(), signature("BYTES", -1))
    assert request.inputs[0].data.tolist() == ["Grüße".encode()]


# ---------------------------------------------------------------- answers

PROBABILITIES = np.array([[0.25, 0.75], [0.9, 0.1]], dtype=np.float32)
OUTPUTS = [tensor("probabilities", PROBABILITIES), tensor("label", texts(b"spam", b"ham"))]


@pytest.mark.parametrize("binary", [frozenset(), {"probabilities"}, {"label"}, {"probabilities", "label"}])
def test_answers_are_understood_by_the_client(binary: frozenset[str]) -> None:
    pieces, json_length = oip_binary.encode_response(answer(*OUTPUTS), binary)
    assert len(pieces) == 1 + len(binary)
    result = http_result(b"".join(pieces), json_length)
    np.testing.assert_array_equal(result.as_numpy("probabilities"), PROBABILITIES)
    labels = result.as_numpy("label").tolist()
    assert [label.decode() if isinstance(label, bytes) else label for label in labels] == ["spam", "ham"]
    response = result.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == ("m", "3", "r-1")


def test_the_json_of_an_answer() -> None:
    assert json.loads(oip_json.encode_response(answer(*OUTPUTS, request_id=""))) == {
        "model_name": "m",
        "model_version": "3",
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [2, 2], "data": [0.25, 0.75, 0.9, 0.1]},
            {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["spam", "ham"]},
        ],
    }


def test_an_output_has_no_other_parameter_than_its_size() -> None:
    pieces, _ = oip_binary.encode_response(answer(*OUTPUTS), {"label"})
    outputs = json.loads(pieces[0])["outputs"]
    assert "parameters" not in outputs[0]
    assert outputs[1]["parameters"] == {"binary_data_size": len(pieces[1])}
    assert "data" not in outputs[1]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("datatype", [name for name in DTYPES if name != "BYTES"])
@settings(max_examples=30)
@given(data=st.data())
def test_every_output_survives(datatype: str, binary: bool, data: st.DataObject) -> None:
    if datatype == "FP16" and not binary:
        return
    elements = {"allow_nan": binary, "allow_infinity": binary} if datatype.startswith("FP") else {}
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5))
    array = data.draw(hnp.arrays(DTYPES[datatype], shape, elements=elements))
    pieces, json_length = oip_binary.encode_response(answer(tensor("y", array)), {"y"} if binary else ())
    result = http_result(b"".join(pieces), json_length).as_numpy("y")
    np.testing.assert_array_equal(result, array)


def test_arrays_that_are_not_contiguous_are_sent_in_row_major_order() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    for binary in ((), {"y"}):
        pieces, json_length = oip_binary.encode_response(answer(tensor("y", array)), binary)
        np.testing.assert_array_equal(http_result(b"".join(pieces), json_length).as_numpy("y"), array)


def test_errors_are_an_object_with_one_member() -> None:
    assert oip_json.encode_error("x is missing") == b'{"error":"x is missing"}'


# ---------------------------------------------------------------- which outputs are sent


def selected(name: str) -> tuple[list[str], frozenset[str]]:
    outputs = [tensor("y", PROBABILITIES), tensor("label", texts(b"spam", b"ham")), tensor("other", PROBABILITIES)]
    chosen, binary = select_outputs(decode(*golden(name)), outputs)
    return [item.name for item in chosen], binary


def test_only_what_was_asked_for_is_sent_in_that_order() -> None:
    assert selected("mixed") == (["y", "label"], {"y"})
    assert selected("all-outputs") == (["y", "label", "other"], {"y", "label", "other"})
    assert selected("fp32-json") == (["y"], frozenset())


def test_classes_instead_of_probabilities() -> None:
    request = decode(*golden("classification"))
    chosen, _ = select_outputs(request, [tensor("y", PROBABILITIES)], ("ham", "spam"))
    pieces, json_length = oip_binary.encode_response(answer(*chosen), {"y"})
    result = http_result(b"".join(pieces), json_length).as_numpy("y")
    assert result.tolist() == [
        [b"0.750000:1:spam", b"0.250000:0:ham"],
        [b"0.900000:0:ham", b"0.100000:1:spam"],
    ]


def test_classes_without_names() -> None:
    request = decode(*golden("classification"))
    chosen, _ = select_outputs(request, [tensor("y", PROBABILITIES[:1])])
    assert chosen[0].data.tolist() == [[b"0.750000:1", b"0.250000:0"]]
