"""gRPC messages: what the unmodified client sends is understood, what we answer it understands."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from peer import CASES, DATA, NUMBERS, Case, grpc_request, texts
from tritonclient.grpc import service_pb2 as pb

from serving.errors import ErrorKind, RequestError
from serving.protocol import oip_grpc
from serving.protocol.types import DTYPES, InferResponse, OutputRequest, tensor
from serving.protocol.validate import select_outputs


def golden(name: str) -> Any:
    return pb.ModelInferRequest.FromString((DATA / f"{name}.grpc").read_bytes())


@pytest.mark.parametrize("name", CASES)
def test_golden_requests_are_understood(name: str) -> None:
    request = oip_grpc.decode_request(golden(name))
    case = CASES[name]
    assert request.id == case.request_id
    assert [item.name for item in request.inputs] == list(case.inputs)
    for item in request.inputs:
        datatype, array = case.inputs[item.name]
        assert (item.datatype, item.shape, item.data.dtype) == (datatype, array.shape, DTYPES[datatype])
        np.testing.assert_array_equal(item.data, array)


@pytest.mark.parametrize("name", CASES)
def test_the_installed_client_still_sends_the_golden_requests(name: str) -> None:
    assert grpc_request(CASES[name]) == golden(name)


def test_outputs_and_parameters() -> None:
    mixed = oip_grpc.decode_request(golden("mixed"))
    assert mixed.outputs == [OutputRequest("y", True), OutputRequest("label", True)]
    assert mixed.parameters == {"tenant": "a", "weight": 3, "timeout": 5000, "priority": 1}
    assert oip_grpc.decode_request(golden("all-outputs")).outputs is None
    assert oip_grpc.decode_request(golden("classification")).outputs == [OutputRequest("y", True, 2)]


TYPED = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def typed(datatype: str, shape: tuple[int, ...], **contents: Any) -> Any:
    entry = pb.ModelInferRequest.InferInputTensor(
        name="x", datatype=datatype, shape=shape, contents=pb.InferTensorContents(**contents)
    )
    return pb.ModelInferRequest(model_name="m", inputs=[entry])


@pytest.mark.parametrize("datatype", TYPED)
@settings(max_examples=30)
@given(data=st.data())
def test_typed_contents_are_understood(datatype: str, data: st.DataObject) -> None:
    array = data.draw(hnp.arrays(DTYPES[datatype], hnp.array_shapes(max_dims=3, min_side=0, max_side=4)))
    message = typed(datatype, array.shape, **{TYPED[datatype]: array.ravel().tolist()})
    decoded = oip_grpc.decode_request(message).inputs[0].data
    assert decoded.dtype == array.dtype
    np.testing.assert_array_equal(decoded, array)


def test_typed_texts_are_understood() -> None:
    message = typed("BYTES", (1, 2), bytes_contents=[b"a", b"\xff"])
    assert oip_grpc.decode_request(message).inputs[0].data.tolist() == [[b"a", b"\xff"]]


def raws(*contents: bytes, datatype: str = "FP32", shape: tuple[int, ...] = (1,), **members: Any) -> Any:
    entry = pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=shape, **members)
    return pb.ModelInferRequest(model_name="m", inputs=[entry], raw_input_contents=contents)


def parameter(**value: Any) -> dict[str, Any]:
    return {"parameters": {key: pb.InferParameter(**chosen) for key, chosen in value.items()}}


REGION = parameter(shared_memory_region={"string_param": "r"})
FP32 = np.zeros(1, dtype="<f4").tobytes()
TWICE = raws(FP32, FP32)
TWICE.inputs.append(TWICE.inputs[0])


def wanting(name: str, **members: Any) -> Any:
    message = raws(FP32)
    message.outputs.add(name="y")
    message.outputs.append(pb.ModelInferRequest.InferRequestedOutputTensor(name=name, **members))
    return message


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (pb.ModelInferRequest(), "inputs: expected at least one, got none"),
        (raws(FP32, FP32), "raw_input_contents: expected one for each of the 1 inputs, got 2"),
        (TWICE, "inputs[1].name: 'x' occurs twice"),
        (raws(FP32, datatype="FP8"), "inputs[0].datatype: 'FP8' is not supported, expected one of BOOL, UINT8"),
        (raws(FP32, shape=(-1,)), "inputs[0].shape: expected non-negative integers, got -1"),
        (raws(FP32, shape=(2,)), "raw_input_contents[0]: shape [2] of FP32 takes 8 bytes, got 4"),
        (raws(b"\x09", datatype="BYTES"), "raw_input_contents[0]: 1 BYTES elements take at least 4 bytes, got 1"),
        (raws(b"\x02", datatype="BOOL"), "raw_input_contents[0]: a BOOL is a byte of 0 or 1"),
        (
            raws(FP32, contents=pb.InferTensorContents(fp32_contents=[1])),
            "inputs[0]: contents and raw_input_contents exclude each other",
        ),
        (raws(FP32, **REGION), "inputs[0].parameters.shared_memory_region: shared memory is not supported"),
        (raws(FP32, **parameter(timeout={})), "inputs[0].parameters.timeout: expected a value, got an empty parameter"),
        (typed("FP32", (1,)), "inputs[0].contents.fp32_contents: shape [1] takes 1 elements, got 0"),
        (
            typed("FP32", (1,), int64_contents=[1]),
            "inputs[0].contents.int64_contents: not for FP32, which goes in fp32_contents",
        ),
        (
            typed("FP16", (1,), fp32_contents=[1]),
            "inputs[0].contents: FP16 has no typed contents, send it in raw_input_contents",
        ),
        (
            typed("UINT8", (2,), uint_contents=[1, 300]),
            "inputs[0].contents.uint_contents: 300 at [1] is out of range for UINT8 (0..255)",
        ),
        (
            typed("INT16", (1, 2), int_contents=[1, -40_000]),
            "inputs[0].contents.int_contents: -40000 at [0, 1] is out of range for INT16 (-32768..32767)",
        ),
        (typed("FP32", (2**31 - 1, 2**31 - 1)), "inputs[0].contents.fp32_contents: shape [2147483647, 2147483647"),
        (typed("FP32", (1, 0, 2**31)), "inputs[0].shape: 2147483648 is over the limit of 2147483647"),
        (typed("FP32", (1,) * 33), "inputs[0].shape: 33 dimensions are over the limit of 32"),
        (typed("FP32", (0, *[2**31 - 1] * 3)), "inputs[0].contents: shape [0, 2147483647"),
        (wanting("y"), "outputs[1].name: 'y' occurs twice"),
        (wanting(""), "outputs[1].name: expected a non-empty string"),
        (wanting("z", **REGION), "outputs[1].parameters.shared_memory_region: shared memory is not supported"),
        (
            wanting("z", **parameter(classification={"string_param": "2"})),
            "outputs[1].parameters.classification: expected a non-negative integer, got '2'",
        ),
    ],
)
def test_mistakes(message: Any, expected: str) -> None:
    with pytest.raises(RequestError) as caught:
        oip_grpc.decode_request(message)
    assert caught.value.kind is ErrorKind.BAD_REQUEST
    assert caught.value.message.startswith(expected)


@given(st.sampled_from(sorted(CASES)), st.data())
def test_damaged_messages_are_refused_cleanly(name: str, data: st.DataObject) -> None:
    damaged = bytearray((DATA / f"{name}.grpc").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    message = pb.ModelInferRequest()
    with suppress(DecodeError, RequestError):  # the first is gRPC's own refusal
        message.ParseFromString(bytes(damaged))
        oip_grpc.decode_request(message)


# ---------------------------------------------------------------- answers


def test_answers_are_understood_by_the_client() -> None:
    outputs = [tensor("y", NUMBERS.T), tensor("label", texts(b"spam", b"")), tensor("none", NUMBERS[:0])]
    message = oip_grpc.encode_response(InferResponse("m", "3", "r-1", outputs))
    result = triton_grpc.InferResult(pb.ModelInferResponse.FromString(message.SerializeToString()))
    np.testing.assert_array_equal(result.as_numpy("y"), NUMBERS.T)
    assert result.as_numpy("label").tolist() == [b"spam", b""]
    assert result.as_numpy("none").shape == (0, 4)
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == ("m", "3", "r-1")


def test_classes_are_understood_by_the_client() -> None:
    request = oip_grpc.decode_request(golden("classification"))
    outputs, _ = select_outputs(request, [tensor("y", np.array([[0.25, 0.75]], dtype=np.float32))], ("ham", "spam"))
    result = triton_grpc.InferResult(oip_grpc.encode_response(InferResponse("m", "1", "", outputs)))
    assert result.as_numpy("y").tolist() == [[b"0.750000:1:spam", b"0.250000:0:ham"]]


def test_a_case_without_outputs_is_one_that_wants_all() -> None:
    assert oip_grpc.decode_request(grpc_request(Case({"x": ("FP32", NUMBERS)}))).outputs is None


@pytest.mark.parametrize("empty", [b"\x2a\x00", b"\x3a\x00", b"\x32\x00", b"\x08\x00", b"\x0d" + bytes(4), b"\x0b"])
def test_a_message_of_too_many_members_is_refused_before_it_is_read(empty: bytes) -> None:
    with pytest.raises(RequestError, match="has more than 1032 inputs, outputs, parameters and raw tensors"):
        oip_grpc.check_members(empty * 5000)


@pytest.mark.parametrize("rest", [b"", b"\xff" * 5000, b"\x07", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"])
def test_what_is_no_message_is_left_to_its_parser(rest: bytes) -> None:
    oip_grpc.check_members(b"\x3a\x88\x27" + bytes(5000) + rest)


def test_every_request_that_fits_the_limits_has_few_enough_members() -> None:
    message = pb.ModelInferRequest(model_name="m", model_version="1", id="x")
    for at in range(256):
        message.inputs.add(name=str(at), datatype="INT8", shape=[1])
        message.outputs.add(name=str(at))
        message.raw_input_contents.append(bytes(100))
        message.parameters[str(at)].int64_param = at
    oip_grpc.check_members(message.SerializeToString())


@pytest.mark.parametrize("member", ["inputs", "outputs", "parameters"])
def test_more_tensors_or_parameters_than_the_limit_are_refused(member: str) -> None:
    message = pb.ModelInferRequest(model_name="m")
    for at in range(1 if member != "inputs" else 257):
        message.inputs.add(name=str(at), datatype="INT8", shape=[0])
    for at in range(257 if member != "inputs" else 0):
        if member == "outputs":
            message.outputs.add(name=str(at))
        else:
            message.parameters[str(at)].int64_param = at
    with pytest.raises(RequestError, match=f"{member}: 257 are over the limit of 256"):
        oip_grpc.decode_request(message)
