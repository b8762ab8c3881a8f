"""OIP v2 over HTTP: the JSON object of a request and of an answer.

Source: Open Inference Protocol v2 (`inference_rest`), with Triton's binary tensor and classification extensions.
`decode_request` reads a body that is JSON throughout; `oip_binary` shares `request_from` for JSON followed by tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from serving.errors import RequestError, bad_request
from serving.protocol.tensors import (
    Buffer,
    ask_if_many,
    check_count,
    check_datatype,
    check_shape,
    from_binary,
    from_json,
    json_type,
)
from serving.protocol.types import (
    Admission,
    Array,
    InferRequest,
    InferResponse,
    OutputRequest,
    Tensor,
    TensorHead,
    shown,
)


def decode_request(body: Buffer, admission: Admission | None = None) -> InferRequest:
    """Decode a body that is one JSON object.

    Args:
        admission: asked before many elements are decoded.

    Raises:
        RequestError: bad request; the message starts with the place of the fault (`inputs[0].data: …`).
    """
    return request_from(load_object(body), None, admission)


def encode_response(response: InferResponse) -> bytes:
    """The answer as one JSON object, tensors flat in row-major order; NaN and infinities become `null`.

    Raises:
        RequestError: bad request, when an output that has no JSON form was not asked for as binary data.
    """
    return orjson.dumps(response_document(response, {}), option=orjson.OPT_SERIALIZE_NUMPY)


def encode_error(error: RequestError | str) -> bytes:
    """The body of every refusal: `{"error": "…"}`."""
    return orjson.dumps({"error": error if isinstance(error, str) else error.message})


def load_object(body: Buffer) -> dict[str, Any]:
    """Parse strict UTF-8 JSON whose top is an object; nesting is bounded (1,024 levels)."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"body: not valid JSON: {error}") from None
    if type(document) is not dict:
        raise bad_request(f"body: expected a JSON object, got {json_type(document)}")
    return document


def request_from(document: dict[str, Any], tail: memoryview | None, admission: Admission | None = None) -> InferRequest:
    """Build a request from its JSON object and, if there is one, the binary data behind it."""
    request_id = document.get("id", "")
    if type(request_id) is not str:
        raise bad_request(f"id: expected a string, got {json_type(request_id)}")
    parameters = _parameters(document, "parameters")
    binary_default = _flag(parameters, "binary_data_output", False, "parameters")
    return InferRequest(
        request_id,
        _inputs(document.get("inputs"), tail, admission),
        _outputs(document.get("outputs"), binary_default),
        parameters,
        binary_default,
    )


def response_document(response: InferResponse, binary_sizes: Mapping[str, int]) -> dict[str, Any]:
    """The JSON object of an answer; outputs named in `binary_sizes` carry their size (bytes) and no data."""
    outputs: list[dict[str, Any]] = []
    for tensor in response.outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        size = binary_sizes.get(tensor.name)
        if size is None:
            entry["data"] = _json_data(tensor)
        else:
            entry["parameters"] = {"binary_data_size": size}
        outputs.append(entry)
    document: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if response.id:
        document["id"] = response.id
    document["outputs"] = outputs
    return document


def _inputs(entries: Any, tail: memoryview | None, admission: Admission | None) -> list[Tensor]:
    if type(entries) is not list or not entries:
        got = "no elements" if entries == [] else "nothing" if entries is None else json_type(entries)
        raise bad_request(f"inputs: expected a non-empty array, got {got}")
    check_count(len(entries), "inputs")
    heads: list[TensorHead] = []
    names: set[str] = set()
    for index, entry in enumerate(entries):
        place = f"inputs[{index}]"
        name = _name(entry, place, names)
        heads.append(
            TensorHead(name, check_datatype(entry.get("datatype"), place), check_shape(entry.get("shape"), place))
        )
    ask_if_many(heads, admission)
    tensors: list[Tensor] = []
    offset = 0
    for index, (entry, (name, datatype, shape)) in enumerate(zip(entries, heads, strict=True)):
        place = f"inputs[{index}]"
        parameters = _parameters(entry, f"{place}.parameters")
        size = parameters.get("binary_data_size") if parameters else None
        if size is None:
            if "data" not in entry:
                raise bad_request(f"{place}: input {shown(name)} has neither data nor parameters.binary_data_size")
            data = from_json(entry["data"], datatype, shape, f"{place}.data")
        else:
            if "data" in entry:
                raise bad_request(f"{place}: data and parameters.binary_data_size exclude each other")
            data = _binary_data(tail, offset, size, datatype, shape, place)
            offset += size
        tensors.append(Tensor(name, datatype, shape, data))
    if tail is not None and offset != len(tail):
        raise bad_request(
            f"body: {len(tail)} bytes follow the JSON object, the binary_data_size of the inputs add up to {offset}"
        )
    return tensors


def _binary_data(
    tail: memoryview | None, offset: int, size: Any, datatype: str, shape: tuple[int, ...], place: str
) -> Array:
    if type(size) is not int or size < 0:
        raise bad_request(f"{place}.parameters.binary_data_size: expected a non-negative integer, got {shown(size)}")
    if tail is None:
        raise bad_request(
            f"{place}: parameters.binary_data_size needs the header Inference-Header-Content-Length, "
            "which gives the length of the JSON object"
        )
    if offset + size > len(tail):
        left = len(tail) - offset
        raise bad_request(f"{place}: parameters.binary_data_size is {size}, {left} bytes are left in the body")
    return from_binary(tail[offset : offset + size], datatype, shape, place)


def _outputs(entries: Any, binary_default: bool) -> list[OutputRequest] | None:
    if entries is None or entries == []:
        return None
    if type(entries) is not list:
        raise bad_request(f"outputs: expected an array, got {json_type(entries)}")
    check_count(len(entries), "outputs")
    requested: list[OutputRequest] = []
    names: set[str] = set()
    for index, entry in enumerate(entries):
        place = f"outputs[{index}]"
        name = _name(entry, place, names)
        parameters = _parameters(entry, f"{place}.parameters")
        binary = _flag(parameters, "binary_data", binary_default, f"{place}.parameters")
        classes = parameters.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise bad_request(
                f"{place}.parameters.classification: expected a non-negative integer, got {shown(classes)}"
            )
        requested.append(OutputRequest(name, binary, classes))
    return requested


def _name(entry: Any, place: str, taken: set[str]) -> str:
    if type(entry) is not dict:
        raise bad_request(f"{place}: expected an object, got {json_type(entry)}")
    name = entry.get("name")
    if type(name) is not str or not name:
        raise bad_request(f"{place}.name: expected a non-empty string, got {shown(name)}")
    if name in taken:
        raise bad_request(f"{place}.name: {shown(name)} occurs twice")
    taken.add(name)
    return name


def _parameters(entry: dict[str, Any], place: str) -> dict[str, Any]:
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise bad_request(f"{place}: expected an object, got {json_type(parameters)}")
    if "shared_memory_region" in parameters:
        raise bad_request(
            f"{place}.shared_memory_region: shared memory is not supported, send the tensor in the request body"
        )
    return parameters


def _flag(parameters: dict[str, Any], key: str, default: bool, place: str) -> bool:
    value = parameters.get(key, default)
    if type(value) is not bool:
        raise bad_request(f"{place}.{key}: expected true or false, got {shown(value)}")
    return value


def _json_data(tensor: Tensor) -> Any:
    if tensor.datatype == "BYTES":
        try:
            return [element.decode() for element in tensor.data.ravel()]
        except UnicodeDecodeError:
            raise bad_request(
                f"outputs: {shown(tensor.name)} holds bytes that are not UTF-8, request it with binary_data: true"
            ) from None
    if tensor.datatype == "FP16":
        raise bad_request(f"outputs: {shown(tensor.name)} is FP16, which has no JSON form, request binary_data: true")
    return tensor.data.ravel()
