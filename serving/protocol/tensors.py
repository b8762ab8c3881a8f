"""One tensor's elements in their three encodings: JSON lists, little-endian bytes, length-prefixed strings.

No Python loop runs over numbers: types are checked by `set(map(type, ...))`, ranges by numpy's own conversion.
Every error is a `RequestError` (bad request) that starts with the place of the fault, such as `inputs[0].data`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from serving.errors import bad_request
from serving.protocol.types import DTYPES, FLOATS, Admission, Array, TensorHead, shown

Buffer = bytes | bytearray | memoryview

#: Inputs or outputs of one request, dimensions of a tensor, and the size of one.
MAX_TENSORS, MAX_DIMENSIONS, MAX_DIMENSION = 256, 32, (1 << 31) - 1
#: Elements from which it is asked whether anybody takes them before they are decoded.
MANY_ELEMENTS = 16_384
_JSON_NAMES = {dict: "object", list: "array", str: "string", int: "integer", float: "number", bool: "boolean"}
_LENGTH = struct.Struct("<I")


def json_type(value: object) -> str:
    """The JSON word for the type of a decoded value."""
    return _JSON_NAMES.get(type(value), "null")


def check_datatype(datatype: object, place: str) -> str:
    """The datatype if the protocol has it."""
    if type(datatype) is not str:
        raise bad_request(f"{place}.datatype: expected a string, got {json_type(datatype)}")
    if datatype not in DTYPES:
        raise bad_request(f"{place}.datatype: {shown(datatype)} is not supported, expected one of {', '.join(DTYPES)}")
    return datatype


def check_shape(shape: Any, place: str) -> tuple[int, ...]:
    """The shape as a tuple if it is a list of at most 32 non-negative integers."""
    if type(shape) is not list:
        raise bad_request(f"{place}.shape: expected an array of integers, got {json_type(shape)}")
    return check_dimensions(shape, place)


def check_dimensions(shape: Sequence[Any], place: str) -> tuple[int, ...]:
    """The shape as a tuple if it has at most 32 dimensions, each a non-negative integer that a frame can carry."""
    if len(shape) > MAX_DIMENSIONS:
        raise bad_request(f"{place}.shape: {len(shape)} dimensions are over the limit of {MAX_DIMENSIONS}")
    for dimension in shape:
        if type(dimension) is not int or dimension < 0:
            raise bad_request(f"{place}.shape: expected non-negative integers, got {shown(dimension)}")
        if dimension > MAX_DIMENSION:
            raise bad_request(f"{place}.shape: {dimension} is over the limit of {MAX_DIMENSION}")
    return tuple(shape)


def check_count(count: int, place: str) -> None:
    """Refuse more tensors than a request may name."""
    if count > MAX_TENSORS:
        raise bad_request(f"{place}: {count} are over the limit of {MAX_TENSORS}")


def ask_if_many(heads: Sequence[TensorHead], admission: Admission | None) -> None:
    """Ask whether the inputs are wanted if their elements are so many that decoding them costs more than the answer."""
    if admission is not None and sum(math.prod(head.shape) for head in heads) > MANY_ELEMENTS:
        admission(heads)


def from_json(data: Any, datatype: str, shape: tuple[int, ...], place: str) -> Array:
    """Elements of a JSON `data` member, flat or nested as `shape` says, in row-major order."""
    if type(data) is not list:
        raise bad_request(f"{place}: expected an array, got {json_type(data)}")
    if datatype == "FP16":
        raise bad_request(f"{place}: FP16 has no JSON form, send it as binary data (binary_data_size)")
    flat = _flatten(data, shape, place)
    count = math.prod(shape)
    if len(flat) != count:
        raise bad_request(f"{place}: shape {list(shape)} takes {count} elements, got {len(flat)}")
    kinds = set(map(type, flat))
    if datatype == "BYTES":
        _only(kinds, (str,), "strings", flat, shape, place)
        values: Array = np.array(list(map(str.encode, flat)), dtype=object)
    elif datatype == "BOOL":
        _only(kinds, (bool,), "booleans", flat, shape, place)
        values = np.array(flat, dtype=np.bool_)
    elif datatype in FLOATS:
        _only(kinds, (float, int), "numbers", flat, shape, place)
        values = _floats(flat, datatype, shape, place)
    else:
        if float in kinds:
            _only(kinds, (int,), f"integers for {datatype}", flat, shape, place)
        _only(kinds, (int,), "integers", flat, shape, place)
        values = _integers(flat, datatype, shape, place)
    return shaped(values, shape, place)


def from_binary(view: Buffer, datatype: str, shape: tuple[int, ...], place: str) -> Array:
    """Elements of a binary tensor, zero-copy where size and alignment allow."""
    count, size = math.prod(shape), len(view)
    if datatype == "BYTES":
        return shaped(_strings(view, count, place), shape, place)
    dtype = DTYPES[datatype]
    if size != count * dtype.itemsize:
        expected = count * dtype.itemsize
        raise bad_request(f"{place}: shape {list(shape)} of {datatype} takes {expected} bytes, got {size}")
    if datatype == "BOOL" and count and int(np.frombuffer(view, dtype=np.uint8).max()) > 1:
        raise bad_request(f"{place}: a BOOL is a byte of 0 or 1")
    values: Array = np.frombuffer(view, dtype=dtype)
    return shaped(values if values.flags.aligned else values.copy(), shape, place)


def to_binary(data: Array, datatype: str) -> bytes:
    """Little-endian, row-major bytes of a tensor; BYTES elements each after their length (uint32)."""
    if datatype != "BYTES":
        return data.astype(DTYPES[datatype], copy=False).tobytes()
    pieces: list[bytes] = []
    for element in data.ravel():
        pieces += (_LENGTH.pack(len(element)), element)
    return b"".join(pieces)


def all_finite(values: Array) -> bool:
    """Whether no element is NaN or infinite.

    The sum of squares tells in most cases, several times faster than looking at each element; only if that is not
    finite, which may be for no more than its size, is each one looked at.
    """
    return math.isfinite(np.vdot(values, values)) or bool(np.isfinite(values).all())


def shaped(values: Array, shape: tuple[int, ...], place: str) -> Array:
    """`values` with `shape`; its element count is already right."""
    try:
        return values.reshape(shape)
    except ValueError:  # a dimension of 0 beside one too large for numpy
        raise bad_request(f"{place}: shape {list(shape)} is not possible") from None


def position(flat_index: int, shape: tuple[int, ...]) -> list[int]:
    """The index of an element, one number a dimension."""
    index = []
    for dimension in reversed(shape):
        flat_index, at = divmod(flat_index, dimension)
        index.append(at)
    return index[::-1]


def _flatten(data: list[Any], shape: tuple[int, ...], place: str) -> list[Any]:
    for depth, dimension in enumerate(shape):
        if not data or type(data[0]) is not list:
            break
        if depth + 1 == len(shape):
            raise bad_request(f"{place}: nested deeper than shape {list(shape)}")
        if depth == 0 and len(data) != dimension:
            raise bad_request(f"{place}: shape {list(shape)} takes {dimension} rows, got {len(data)}")
        width = shape[depth + 1]
        if set(map(type, data)) != {list} or set(map(len, data)) != {width}:
            at = next(i for i, row in enumerate(data) if type(row) is not list or len(row) != width)
            got = f"{len(data[at])} elements" if type(data[at]) is list else json_type(data[at])
            where = position(at, shape[: depth + 1])
            raise bad_request(f"{place}: expected an array of {width} elements at {where}, got {got}")
        data = list(chain.from_iterable(data))
    return data


def _only(
    kinds: set[type], allowed: tuple[type, ...], words: str, flat: list[Any], shape: tuple[int, ...], place: str
) -> None:
    if kinds.difference(allowed):
        at = next(i for i, element in enumerate(flat) if type(element) not in allowed)
        raise bad_request(f"{place}: expected {words}, got {shown(flat[at])} at {position(at, shape)}")


def _floats(flat: list[Any], datatype: str, shape: tuple[int, ...], place: str) -> Array:
    try:
        with np.errstate(over="raise"):
            return np.array(flat, dtype=DTYPES[datatype])
    except (FloatingPointError, OverflowError):
        largest = float(np.finfo(DTYPES[datatype]).max)
        at = max(range(len(flat)), key=lambda i: abs(flat[i]))
        raise bad_request(
            f"{place}: {shown(flat[at])} at {position(at, shape)} is out of range for {datatype} (±{largest:.4g})"
        ) from None


def _integers(flat: list[Any], datatype: str, shape: tuple[int, ...], place: str) -> Array:
    try:
        return np.array(flat, dtype=DTYPES[datatype])
    except OverflowError:
        low, high = int(np.iinfo(DTYPES[datatype]).min), int(np.iinfo(DTYPES[datatype]).max)
        at = next(i for i, element in enumerate(flat) if not low <= element <= high)
        raise bad_request(
            f"{place}: {flat[at]} at {position(at, shape)} is out of range for {datatype} ({low}..{high})"
        ) from None


def _strings(view: Buffer, count: int, place: str) -> Array:
    size = len(view)
    if count * _LENGTH.size > size:
        raise bad_request(f"{place}: {count} BYTES elements take at least {count * _LENGTH.size} bytes, got {size}")
    items: list[bytes] = []
    at = 0
    for index in range(count):
        if size - at < _LENGTH.size:
            raise bad_request(f"{place}: element {index} needs a length of 4 bytes, {size - at} are left")
        (length,) = _LENGTH.unpack_from(view, at)
        at += _LENGTH.size
        if size - at < length:
            raise bad_request(f"{place}: element {index} is {length} bytes long, {size - at} are left")
        items.append(bytes(view[at : at + length]))
        at += length
    if at != size:
        raise bad_request(f"{place}: {count} BYTES elements take {at} bytes, {size - at} more follow")
    return np.array(items, dtype=object)
