"""What an ONNX file says of itself, read field by field: no library is asked, and what tensors hold is skipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

#: Wire types of protocol buffers, and how many bytes the fixed ones take.
_VARINT, BYTES = 0, 2
_FIXED = {1: 8, 5: 4}
_LONGEST_VARINT = 10
#: Messages of ONNX (onnx/onnx.proto) through which tensors are reached: number of the field -> what it holds.
INSIDE = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
}
#: Field of TensorProto whose entries, each a key and a value, say where its numbers are kept, and the key of the file.
EXTERNAL_DATA, _KEY, _VALUE, _LOCATION = 13, 1, 2, b"location"
#: Bytes that are read at once, to see if the key is in them; no name of a file is longer.
_SMALL = 4096


class Field(NamedTuple):
    """A field of a message: its number, its wire type, and where its content starts and ends in the file."""

    number: int
    kind: int
    start: int
    end: int


def fields(stream: BinaryIO, at: int, end: int) -> Iterator[Field]:
    """The fields between two offsets, which they must fill exactly. Raises `ValueError` with what is wrong of them."""
    while at < end:
        stream.seek(at)
        data = stream.read(2 * _LONGEST_VARINT)
        key, start = _varint(data[:_LONGEST_VARINT], at)
        number, kind = (key & 0xFFFF_FFFF) >> 3, key & 7  # as protocol buffers do, which drop what is over 32 bits
        if kind == BYTES:
            length, start = _varint(data[start - at :][:_LONGEST_VARINT], start)
            stop = start + length
        elif kind == _VARINT:
            _, stop = _varint(data[start - at :][:_LONGEST_VARINT], start)
        elif kind in _FIXED:
            stop = start + _FIXED[kind]
        else:
            raise ValueError(f"is no ONNX model: byte {at} begins no field")
        if stop > end:
            raise ValueError(f"is cut off: it has {end} bytes of at least {stop}")
        yield Field(number, kind, start, stop)
        at = stop


def locations(path: Path) -> set[str]:
    """Names of the files, relative to its own folder, in which an ONNX model keeps numbers of its tensors.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no ONNX model.
    """
    with path.open("rb") as stream:
        return locations_in(stream, path.stat().st_size)


def locations_in(stream: BinaryIO, size: int) -> set[str]:
    """`locations` of a model of `size` bytes that is read already, or opened."""
    found, pending = set[str](), list[tuple[str, Field]]()
    whole = Field(0, BYTES, 0, size)
    if _may_name(stream, whole):
        pending.append(("ModelProto", whole))
    while pending:
        message, outer = pending.pop()
        inside = INSIDE.get(message, {})
        for field in fields(stream, outer.start, outer.end):
            if field.kind != BYTES:
                continue
            if message == "TensorProto" and field.number == EXTERNAL_DATA:
                entry = {one.number: one for one in fields(stream, field.start, field.end) if one.kind == BYTES}
                if _KEY in entry and _read(stream, entry[_KEY]) == _LOCATION:
                    found.add(_read(stream, entry[_VALUE]).decode(errors="replace") if _VALUE in entry else "")
            elif field.number in inside and _may_name(stream, field):
                pending.append((inside[field.number], field))
    return found


def _may_name(stream: BinaryIO, field: Field) -> bool:
    """Whether a file may be named in it: a search in what is small spares most of the walk."""
    return field.end - field.start > _SMALL or _LOCATION in _read(stream, field)


def _read(stream: BinaryIO, field: Field) -> bytes:
    """What a field holds, as far as `_SMALL` bytes go."""
    stream.seek(field.start)
    return stream.read(min(field.end - field.start, _SMALL))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and where it ends; what is cut off ends beyond the file."""
    value = 0
    for index, byte in enumerate(data):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    return 0, at + _LONGEST_VARINT + 1
