"""OIP v2 over gRPC: protobuf messages of the `inference.GRPCInferenceService` to and from plain values.

The message classes are tritonclient's, so that they are the same in every process that holds both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
from google.protobuf.json_format import ParseDict  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2 as pb

from serving.errors import bad_request
from serving.protocol.describe import Description, Index, ModelConfiguration, ModelMetadata, ServerMetadata, Statistics
from serving.protocol.tensors import (
    MAX_TENSORS,
    ask_if_many,
    check_count,
    check_datatype,
    check_dimensions,
    from_binary,
    position,
    shaped,
    to_binary,
)
from serving.protocol.types import (
    DTYPES,
    Admission,
    Array,
    InferRequest,
    InferResponse,
    OutputRequest,
    Tensor,
    TensorHead,
    shown,
)

#: Datatype -> the member of InferTensorContents that carries it. FP16 has none.
_CONTENTS: dict[str, str] = {
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
    "BYTES": "bytes_contents",
}

#: Members of one message, as each input, output, parameter and raw tensor is one; bytes from which they are counted.
_MAX_MEMBERS, _COUNTED_FROM = 4 * MAX_TENSORS + 8, 4096

_MESSAGES: dict[type, Any] = {
    ServerMetadata: pb.ServerMetadataResponse,
    ModelMetadata: pb.ModelMetadataResponse,
    Statistics: pb.ModelStatisticsResponse,
    Index: pb.RepositoryIndexResponse,
}


def check_members(raw: bytes) -> None:
    """Refuse a message of more members than a request can have, before each of them becomes an object.

    What is not a message is left to its parser.
    """
    if len(raw) < _COUNTED_FROM:
        return
    at = count = 0
    while at < len(raw):
        count += 1
        if count > _MAX_MEMBERS:
            raise bad_request(f"the message has more than {_MAX_MEMBERS} inputs, outputs, parameters and raw tensors")
        kind = raw[at] & 7
        at, _ = _varint(raw, at)
        if kind == 0:
            at, _ = _varint(raw, at)
        elif kind == 2:
            at, value = _varint(raw, at)
            at += value
        else:
            at += {1: 8, 5: 4}.get(kind, 0)


def decode_request(message: Any, admission: Admission | None = None) -> InferRequest:
    """Decode a `ModelInferRequest`, whose tensors are all in `raw_input_contents` or all in `contents`.

    Model name and version are left to the caller. Arrays from raw contents share their memory and are read-only.

    Args:
        admission: asked before many elements are decoded.

    Raises:
        RequestError: bad request; the message starts with the place of the fault.
    """
    parameters = _parameters(message.parameters, "parameters")
    raws = message.raw_input_contents
    if not message.inputs:
        raise bad_request("inputs: expected at least one, got none")
    if raws and len(raws) != len(message.inputs):
        raise bad_request(
            f"raw_input_contents: expected one for each of the {len(message.inputs)} inputs, got {len(raws)}"
        )
    check_count(len(message.inputs), "inputs")
    heads: list[TensorHead] = []
    names: set[str] = set()
    for index, entry in enumerate(message.inputs):
        place = f"inputs[{index}]"
        name = _name(entry.name, place, names)
        if entry.parameters:
            _parameters(entry.parameters, f"{place}.parameters")
        heads.append(TensorHead(name, check_datatype(entry.datatype, place), check_dimensions(entry.shape, place)))
    ask_if_many(heads, admission)
    tensors: list[Tensor] = []
    for index, (entry, (name, datatype, shape)) in enumerate(zip(message.inputs, heads, strict=True)):
        place = f"inputs[{index}]"
        if not raws:
            data = _from_contents(entry.contents, datatype, shape, f"{place}.contents")
        elif entry.HasField("contents"):
            raise bad_request(f"{place}: contents and raw_input_contents exclude each other")
        else:
            data = from_binary(raws[index], datatype, shape, f"raw_input_contents[{index}]")
        tensors.append(Tensor(name, datatype, shape, data))
    return InferRequest(message.id, tensors, _outputs(message.outputs), parameters, True)


def encode_response(response: InferResponse, parameters: Mapping[str, str] = MappingProxyType({})) -> Any:
    """The answer as a `ModelInferResponse`, its tensors in `raw_output_contents`, with string `parameters`."""
    message = pb.ModelInferResponse(model_name=response.model, model_version=response.version, id=response.id)
    for tensor in response.outputs:
        message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_output_contents.append(to_binary(tensor.data, tensor.datatype))
    for key, value in parameters.items():
        message.parameters[key].string_param = value
    return message


def message(description: Description) -> Any:
    """The protobuf form of a description: the response message of the RPC that asks for it."""
    members = msgspec.to_builtins(description)
    if isinstance(description, ModelConfiguration):
        return ParseDict({"config": members}, pb.ModelConfigResponse())
    return ParseDict(members, _MESSAGES[type(description)]())


def _outputs(entries: Any) -> list[OutputRequest] | None:
    if not entries:
        return None
    check_count(len(entries), "outputs")
    requested: list[OutputRequest] = []
    names: set[str] = set()
    for index, entry in enumerate(entries):
        place = f"outputs[{index}]"
        name = _name(entry.name, place, names)
        classes = 0
        if entry.parameters:
            classes = _parameters(entry.parameters, f"{place}.parameters").get("classification", 0)
            if type(classes) is not int or classes < 0:
                raise bad_request(
                    f"{place}.parameters.classification: expected a non-negative integer, got {shown(classes)}"
                )
        requested.append(OutputRequest(name, True, classes))
    return requested


def _name(name: str, place: str, taken: set[str]) -> str:
    if not name:
        raise bad_request(f"{place}.name: expected a non-empty string")
    if name in taken:
        raise bad_request(f"{place}.name: {shown(name)} occurs twice")
    taken.add(name)
    return name


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """Where a variable-length integer ends, past the end of all bytes if it does not, and its value."""
    value = 0
    for shift, byte in enumerate(raw[at : at + 10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return at + shift + 1, value
    return len(raw), 0


def _parameters(entries: Any, place: str) -> dict[str, Any]:
    check_count(len(entries), place)
    parameters: dict[str, Any] = {}
    for key, parameter in entries.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise bad_request(f"{place}.{key}: expected a value, got an empty parameter")
        parameters[key] = getattr(parameter, choice)
    if "shared_memory_region" in parameters:
        raise bad_request(f"{place}.shared_memory_region: shared memory is not supported, send the tensor itself")
    return parameters


def _from_contents(contents: Any, datatype: str, shape: tuple[int, ...], place: str) -> Array:
    member = _CONTENTS.get(datatype)
    if member is None:
        raise bad_request(f"{place}: {datatype} has no typed contents, send it in raw_input_contents")
    for field, _ in contents.ListFields():
        if field.name != member:
            raise bad_request(f"{place}.{field.name}: not for {datatype}, which goes in {member}")
    elements = getattr(contents, member)
    count = math.prod(shape)
    if len(elements) != count:
        raise bad_request(f"{place}.{member}: shape {list(shape)} takes {count} elements, got {len(elements)}")
    if datatype == "BYTES":
        return shaped(np.array(list(elements), dtype=object), shape, place)
    dtype = DTYPES[datatype]
    if member in ("int_contents", "uint_contents"):
        wide: Array = np.fromiter(elements, dtype=np.int64, count=count)
        limits = np.iinfo(dtype)
        outside = (wide < limits.min) | (wide > limits.max)
        if outside.any():
            at = int(np.argmax(outside))
            raise bad_request(
                f"{place}.{member}: {wide[at]} at {position(at, shape)} is out of range for {datatype} "
                f"({limits.min}..{limits.max})"
            )
        return shaped(wide.astype(dtype), shape, place)
    return shaped(np.fromiter(elements, dtype=dtype, count=count), shape, place)
