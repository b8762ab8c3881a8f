"""What a request and an answer are once no wire format is left: plain values, no I/O.

The names of the data types are those of the Open Inference Protocol v2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: OIP name -> numpy type; multi-byte types are little-endian as on the wire. BYTES: objects of type `bytes`.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}

#: numpy type -> OIP name.
DATATYPES: dict[np.dtype[Any], str] = {dtype: name for name, dtype in DTYPES.items()}

#: Data types whose values may be NaN or infinite.
FLOATS = frozenset({"FP16", "FP32", "FP64"})


class Tensor(msgspec.Struct):
    """One named array. `data` has `shape`; it may be read-only and may share memory with the request body."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Array


class TensorHead(NamedTuple):
    """What a request says of an input before its elements."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class OutputRequest(msgspec.Struct, frozen=True):
    """One output that the client asked for.

    `classification` is Triton's extension: 0 for the tensor itself, k for its k best classes as BYTES.
    """

    name: str
    binary: bool = False
    classification: int = 0


class InferRequest(msgspec.Struct):
    """A decoded request. `outputs` is None when the client asked for none by name, which means all of them."""

    id: str
    inputs: list[Tensor]
    outputs: list[OutputRequest] | None
    parameters: dict[str, Any]
    binary_default: bool


class InferResponse(msgspec.Struct):
    """An answer: `version` is the integer version of the variant that answered, in decimal."""

    model: str
    version: str
    id: str
    outputs: list[Tensor]


class TensorSpecLike(Protocol):
    """What the protocol layer reads of a manifest's tensor specification; -1 in `shape` is any size."""

    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...


#: Looks at what a request says of its inputs before any element of theirs is decoded. Raises `RequestError`.
Admission = Callable[[Sequence[TensorHead]], None]


class SignatureLike(Protocol):
    """What the protocol layer reads of a manifest's signature."""

    @property
    def inputs(self) -> Sequence[TensorSpecLike]: ...
    @property
    def outputs(self) -> Sequence[TensorSpecLike]: ...


def tensor(name: str, data: Array) -> Tensor:
    """A tensor around an array. Raises `KeyError` if the protocol has no name for its dtype."""
    return Tensor(name, DATATYPES[data.dtype], data.shape, data)


def shown(value: object, limit: int = 80) -> str:
    """A value of the client's as it may stand in an error message: quoted, escaped and bounded."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
