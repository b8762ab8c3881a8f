"""Triton's binary tensor data extension: a JSON object followed by the tensors' bytes, or raw bytes alone.

The header `Inference-Header-Content-Length` says where the JSON ends: absent means all of it, 0 means none of it.
Source: `docs/protocol/extension_binary_data.md` of the Triton Inference Server.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import orjson

from serving.errors import bad_request
from serving.protocol.oip_json import load_object, request_from, response_document
from serving.protocol.tensors import Buffer, from_binary, to_binary
from serving.protocol.types import DTYPES, Admission, InferRequest, InferResponse, SignatureLike, Tensor, shown

HEADER = "inference-header-content-length"


def header_length(value: str | bytes | None) -> int | None:
    """Parse the value of `Inference-Header-Content-Length`: bytes of JSON, or None if the header is absent."""
    if value is None:
        return None
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise bad_request(f"Inference-Header-Content-Length: expected a number of bytes, got {shown(text)}")
    return int(text)


def decode_request(body: Buffer, json_length: int, admission: Admission | None = None) -> InferRequest:
    """Decode a JSON object of `json_length` bytes and the binary tensors behind it.

    Arrays of fixed-size types share the memory of `body` (read-only if it is) unless it is misaligned for them.

    Args:
        admission: asked before many elements are decoded.

    Raises:
        RequestError: bad request; the message starts with the place of the fault.
    """
    view = memoryview(body)
    if json_length > len(view):
        raise bad_request(f"Inference-Header-Content-Length: {json_length} is over the body's {len(view)} bytes")
    return request_from(load_object(view[:json_length]), view[json_length:], admission)


def decode_raw(body: Buffer, signature: SignatureLike) -> InferRequest:
    """Decode a body that is nothing but the model's only input (`Inference-Header-Content-Length: 0`).

    Name and datatype come from the signature, the one dimension of variable size from the length of the body;
    if a second one varies, the first is a batch of 1. A BYTES input takes the body as its only element.
    All outputs are returned as binary data.

    Raises:
        RequestError: bad request, when the model has several inputs or the length fits no shape.
    """
    if len(signature.inputs) != 1:
        raise bad_request(
            f"Inference-Header-Content-Length: 0 is for models with one input, this one has {len(signature.inputs)}"
        )
    spec = signature.inputs[0]
    view = memoryview(body)
    if spec.datatype == "BYTES":
        shape = (1,) * len(spec.shape)
        data = np.array([bytes(view)], dtype=object).reshape(shape)
        return InferRequest("", [Tensor(spec.name, "BYTES", shape, data)], None, {}, True)
    shape = _raw_shape(spec.shape, len(view), spec.datatype)
    tensor = Tensor(spec.name, spec.datatype, shape, from_binary(view, spec.datatype, shape, "body"))
    return InferRequest("", [tensor], None, {}, True)


def encode_response(response: InferResponse, binary_names: Collection[str]) -> tuple[list[bytes], int]:
    """The answer with the outputs in `binary_names` as binary data.

    Returns:
        The pieces of the body and the length of the JSON object, which is the first piece. The header
        `Inference-Header-Content-Length` belongs in the answer only if there is more than one piece.
    """
    tails = {t.name: to_binary(t.data, t.datatype) for t in response.outputs if t.name in binary_names}
    document = response_document(response, {name: len(tail) for name, tail in tails.items()})
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return [head, *tails.values()], len(head)


def _raw_shape(dimensions: Collection[int], size: int, datatype: str) -> tuple[int, ...]:
    shape = list(dimensions)
    if shape.count(-1) == 2 and shape[0] == -1:
        shape[0] = 1
    if shape.count(-1) > 1:
        raise bad_request(
            f"body: a raw request cannot say the shape of an input {list(dimensions)}, send it after a JSON object"
        )
    unit = DTYPES[datatype].itemsize * math.prod(dimension for dimension in shape if dimension != -1)
    if -1 in shape:
        if not unit or size % unit:
            raise bad_request(f"body: {size} bytes are not a multiple of {unit}, one step of {datatype} {shape}")
        shape[shape.index(-1)] = size // unit
    return tuple(shape)
