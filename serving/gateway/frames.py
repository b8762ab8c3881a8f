"""The frames of the worker hop: length-prefixed, little-endian, raw tensors, no pickle.

    header  u32 length of the whole frame, u8 kind, u8 version, u16 tensors, u64 request id,
            u64 nanoseconds that the batch ran (of OK; else 0)
    tensor  u8 name length, u8 dtype code, u8 axes, u8 zero, u32 data length,
            u64 x axes, name, data; name and data are each filled up to 8 bytes
    error   u8 cause (contract.Cause), UTF-8 message
    others  UTF-8 JSON, possibly empty

A BYTES tensor (dtype object) holds each element as a u32 length and its bytes. Everything is
bounds-checked on decoding; numeric arrays are views of the frame, aligned to 8 bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from serving.contract import Cause
from serving.errors import CanariumError
from serving.protocol.tensors import MAX_DIMENSION, MAX_DIMENSIONS, MAX_TENSORS

Buffer = bytes | bytearray | memoryview

VERSION = 2
MAX_FRAME = 256 << 20
MAX_MESSAGE = 500

HEADER = struct.Struct("<IBBHQQ")
_TENSOR = struct.Struct("<BBBBI")
_LENGTH = struct.Struct("<I")
_PADDING = tuple(b"\0" * ((-n) % 8) for n in range(8))

_BYTES_CODE = 13
_DTYPES: tuple[np.dtype, ...] = tuple(
    np.dtype(code) for code in ("?", "i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8")
)
_BY_CODE: dict[int, np.dtype] = dict(enumerate(_DTYPES, 1))
_CODES: dict[np.dtype, int] = {dtype: code for code, dtype in _BY_CODE.items()}


class FrameError(CanariumError):
    """Bytes that are not a frame, or arrays that cannot be put into one."""


class FrameKind(IntEnum):
    """What a frame asks or answers."""

    RUN = 1
    OK = 2
    ERROR = 3
    PING = 4
    PONG = 5
    DESCRIBE = 6
    DESCRIPTION = 7
    LEAVING = 8  # the worker closes: finish what is open, send nothing new, hang up


_KINDS = {int(kind): kind for kind in FrameKind}
_WITH_TENSORS = (FrameKind.RUN, FrameKind.OK)


class Frame(NamedTuple):
    """A decoded frame; `tensors` of RUN and OK, `ran_ns` of OK, `cause` and `text` of ERROR, `text` of the others."""

    kind: FrameKind
    request_id: int
    tensors: dict[str, np.ndarray]
    text: str = ""
    cause: Cause = Cause.NONE
    ran_ns: int = 0


def encode(
    kind: FrameKind, request_id: int, tensors: Mapping[str, np.ndarray], max_frame: int = MAX_FRAME, ran_ns: int = 0
) -> list[Buffer]:
    """Buffers of a RUN or OK frame, for `transport.writelines`; numeric arrays are not copied.

    Raises:
        FrameError: an unsupported dtype, too many tensors or axes, too long an axis, or a frame over `max_frame` bytes.
    """
    if len(tensors) > MAX_TENSORS:
        raise FrameError(f"{len(tensors)} tensors do not fit a frame, at most {MAX_TENSORS} do")
    buffers: list[Buffer] = [b""]
    total = HEADER.size
    for name, array in tensors.items():
        label = name.encode()
        code, data = _data(name, array)
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        if not 0 < len(label) < 256 or array.ndim > MAX_DIMENSIONS:
            raise FrameError(f"tensor {name[:40]!r}: names take 1 to 255 bytes and at most {MAX_DIMENSIONS} axes")
        if max(array.shape, default=0) > MAX_DIMENSION:
            raise FrameError(f"tensor {name[:40]!r}: shape {list(array.shape)} is out of range")
        total += _TENSOR.size + 8 * array.ndim + _up(len(label)) + _up(size)
        if total > max_frame:
            raise FrameError(f"tensor {name!r} makes the frame larger than {max_frame} bytes")
        head = _TENSOR.pack(len(label), code, array.ndim, 0, size) + struct.pack(f"<{array.ndim}Q", *array.shape)
        buffers.append(head + label + _PADDING[len(label) % 8])
        if size:
            buffers.append(data)
        if size % 8:
            buffers.append(_PADDING[size % 8])
    buffers[0] = HEADER.pack(total, kind, VERSION, len(tensors), request_id, ran_ns)
    return buffers


def encode_error(request_id: int, cause: Cause, message: str) -> bytes:
    """An ERROR frame; the message is cut to `MAX_MESSAGE` characters."""
    body = bytes((cause,)) + message[:MAX_MESSAGE].encode("utf-8", "replace")
    return HEADER.pack(HEADER.size + len(body), FrameKind.ERROR, VERSION, 0, request_id, 0) + body


def encode_text(kind: FrameKind, request_id: int, text: str = "") -> bytes:
    """A frame that carries text only (PING, PONG, DESCRIBE, DESCRIPTION, LEAVING)."""
    body = text.encode()
    return HEADER.pack(HEADER.size + len(body), kind, VERSION, 0, request_id, 0) + body


def frame_length(header: Buffer, max_frame: int = MAX_FRAME) -> int:
    """The length that a frame's header announces, checked. Raises `FrameError`."""
    length, kind, version, _, _, _ = HEADER.unpack_from(header)
    if version != VERSION:
        raise FrameError(f"frame version {version}, expected {VERSION}: gateway and worker are of different releases")
    if kind not in _KINDS:
        raise FrameError(f"unknown frame kind {kind}")
    if not HEADER.size <= length <= max_frame:
        raise FrameError(f"a frame of {length} bytes, expected {HEADER.size} to {max_frame}")
    return int(length)


def decode(frame: Buffer, max_frame: int = MAX_FRAME) -> Frame:
    """Read one whole frame. Numeric tensors are views of `frame`, writable if it is.

    Raises:
        FrameError: anything malformed; says what and where.
    """
    view = memoryview(frame)
    if len(view) < HEADER.size:
        raise FrameError(f"a frame of {len(view)} bytes, expected at least {HEADER.size}")
    if frame_length(view, max_frame) != len(view):
        raise FrameError(f"the frame announces {frame_length(view, max_frame)} bytes and has {len(view)}")
    _, code, _, count, request_id, ran_ns = HEADER.unpack_from(view)
    kind = _KINDS[code]
    if kind in _WITH_TENSORS:
        return Frame(kind, request_id, _tensors(view, count), ran_ns=ran_ns)
    if count:
        raise FrameError(f"a {kind.name} frame has no tensors, this one announces {count}")
    body = view[HEADER.size :]
    cause = Cause.NONE
    if kind is FrameKind.ERROR:
        if not len(body) or body[0] not in Cause._value2member_map_:
            raise FrameError("an ERROR frame without a known cause")
        cause, body = Cause(body[0]), body[1:]
    return Frame(kind, request_id, {}, bytes(body).decode("utf-8", "replace"), cause)


def _tensors(view: memoryview, count: int) -> dict[str, np.ndarray]:
    if count > MAX_TENSORS:
        raise FrameError(f"{count} tensors in a frame, at most {MAX_TENSORS}")
    tensors: dict[str, np.ndarray] = {}
    at, end = HEADER.size, len(view)
    for index in range(count):
        if at + _TENSOR.size > end:
            raise FrameError(f"tensor {index} of {count}: the frame ends in its head")
        name_length, code, axes, _, size = _TENSOR.unpack_from(view, at)
        at += _TENSOR.size
        if axes > MAX_DIMENSIONS or at + 8 * axes + _up(name_length) + _up(size) > end:
            raise FrameError(f"tensor {index} of {count}: {axes} axes and {size} bytes overrun the frame")
        shape = struct.unpack_from(f"<{axes}Q", view, at)
        at += 8 * axes
        name = _name(view[at : at + name_length], index)
        at += _up(name_length)
        if name in tensors:
            raise FrameError(f"tensor {name!r} occurs twice")
        tensors[name] = _array(name, code, shape, view[at : at + size])
        at += _up(size)
    if at != end:
        raise FrameError(f"{end - at} bytes follow the last tensor")
    return tensors


def _array(name: str, code: int, shape: tuple[int, ...], data: memoryview) -> np.ndarray:
    if any(axis > MAX_DIMENSION for axis in shape):
        raise FrameError(f"tensor {name!r}: shape {list(shape)} is out of range")
    elements = math.prod(shape)
    if code == _BYTES_CODE:
        return _bytes_array(name, elements, shape, data)
    dtype = _BY_CODE.get(code)
    if dtype is None:
        raise FrameError(f"tensor {name!r}: unknown dtype code {code}")
    if elements * dtype.itemsize != len(data):
        raise FrameError(
            f"tensor {name!r}: shape {list(shape)} of {dtype} takes {elements * dtype.itemsize} bytes, got {len(data)}"
        )
    return np.frombuffer(data, dtype).reshape(shape) if elements else _empty(name, shape, dtype)


def _bytes_array(name: str, elements: int, shape: tuple[int, ...], data: memoryview) -> np.ndarray:
    if elements * 4 > len(data):
        raise FrameError(f"tensor {name!r}: {elements} BYTES elements do not fit {len(data)} bytes")
    if not elements and not data:
        return _empty(name, shape, np.dtype(object))
    items = np.empty(elements, object)
    at = 0
    for index in range(elements):
        if at + 4 > len(data):
            raise FrameError(f"tensor {name!r}: element {index} overruns the data")
        (length,) = _LENGTH.unpack_from(data, at)
        at += 4
        if at + length > len(data):
            raise FrameError(f"tensor {name!r}: element {index} of {length} bytes overruns the data")
        items[index] = bytes(data[at : at + length])
        at += length
    if at != len(data):
        raise FrameError(f"tensor {name!r}: {len(data) - at} bytes follow its last element")
    return items.reshape(shape)


def _empty(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    try:
        return np.zeros(shape, dtype)
    except ValueError:  # an axis of 0 beside others too long for numpy
        raise FrameError(f"tensor {name!r}: shape {list(shape)} is out of range") from None


def _data(name: str, array: np.ndarray) -> tuple[int, Buffer]:
    if array.dtype.hasobject:
        parts: list[bytes] = []
        for item in array.flat:
            value = item.encode() if isinstance(item, str) else item
            if not isinstance(value, bytes):
                raise FrameError(f"tensor {name!r}: BYTES elements are bytes, got {type(item).__name__}")
            parts += (_LENGTH.pack(len(value)), value)
        return _BYTES_CODE, b"".join(parts)
    little = array.dtype.newbyteorder("<")
    code = _CODES.get(little)
    if code is None:
        raise FrameError(f"tensor {name!r}: dtype {array.dtype} cannot be sent")
    plain = np.ascontiguousarray(array, little)
    return code, plain.reshape(-1).view(np.uint8).data if plain.size else b""


def _name(data: memoryview, index: int) -> str:
    try:
        name = bytes(data).decode()
    except UnicodeDecodeError:
        name = ""
    if not name:
        raise FrameError(f"tensor {index}: its name is empty or not UTF-8")
    return name


def _up(size: int) -> int:
    return (size + 7) & ~7


class FrameReader:
    """Cuts a byte stream into frames; for `asyncio.BufferedProtocol`, without any I/O of its own.

    Small frames are copied out of one reused buffer; a frame that does not fit it is received
    straight into memory of its own. Each frame returned belongs to the caller.
    """

    def __init__(self, max_frame: int = MAX_FRAME, capacity: int = 1 << 16) -> None:
        self._max_frame = max_frame
        self._small = memoryview(bytearray(capacity))
        self._start = self._end = 0
        self._large: bytearray | None = None
        self._filled = 0

    def get_buffer(self) -> memoryview:
        """Where the next bytes go; never empty."""
        if self._large is not None:
            return memoryview(self._large)[self._filled :]
        return self._small[self._end :]

    def received(self, count: int) -> list[bytearray]:
        """Note that `count` bytes were written to the buffer; the frames that are now complete.

        Raises:
            FrameError: the stream is not made of frames; the connection is of no more use.
        """
        if self._large is not None:
            self._filled += count
            if self._filled < len(self._large):
                return []
            frame, self._large = self._large, None
            return [frame]
        self._end += count
        frames: list[bytearray] = []
        while self._end - self._start >= HEADER.size:
            length = frame_length(self._small[self._start : self._start + HEADER.size], self._max_frame)
            have = self._end - self._start
            if have >= length:
                frames.append(bytearray(self._small[self._start : self._start + length]))
                self._start += length
                continue
            if length > len(self._small):
                self._large = bytearray(length)
                self._large[:have] = self._small[self._start : self._end]
                self._filled = have
                self._start = self._end
            break
        self._rewind()
        return frames

    def _rewind(self) -> None:
        have = self._end - self._start
        if self._start:
            if have:
                self._small[:have] = bytes(self._small[self._start : self._end])
            self._start, self._end = 0, have
