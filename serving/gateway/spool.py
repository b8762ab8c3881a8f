"""The writing end of the event spool: one mmapped file a gateway process.

Two parts (layout in `serving.contract`): an aggregate page of u64 counters, lossless, and a ring
of fixed records, where the newest overwrites the oldest. One writer, on the event loop's thread;
no call here makes a system call, takes a lock, waits or, once the spool is made, raises.

The file is allocated block by block (`posix_fallocate`): a store into a sparse mapping of a full
disk is SIGBUS. It appears under its name only when it is complete. The monitor reads it with
`pread`; `H_WRITTEN` is stored last, so that a reader never looks at a record in the making.
"""

from __future__ import annotations

import math
import mmap
import os
import secrets
import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from serving.clock import Clock, boot_id
from serving.contract import (
    AGG_OFFSET,
    BATCH_SIZE_BOUNDS,
    C_BATCH_ROWS,
    C_BATCH_SIZE,
    C_BATCHES,
    C_DURATION_NS,
    C_INFER_NS,
    C_LATENCY,
    C_POSTPROCESS_NS,
    C_PREPROCESS_NS,
    C_QUEUE_NS,
    C_ROWS,
    C_STATUS,
    CELLS,
    CRC_OFFSET,
    CRC_START,
    DEFAULT_LATENCY_BUCKETS_MS,
    H_BEAT_MONO_NS,
    H_BOOT,
    H_CAPACITY,
    H_CLOSED,
    H_MAGIC,
    H_META_CRC,
    H_META_GENERATION,
    H_META_LENGTH,
    H_PID,
    H_RECORD_SIZE,
    H_START_MONO_NS,
    H_START_WALL_NS,
    H_VERSION,
    H_WRITTEN,
    LATENCY_CELLS,
    META_BYTES,
    META_OFFSET,
    RECORD_FORMAT,
    RECORD_SIZE,
    RING_OFFSET,
    SERIES_MAX,
    SPOOL_CAPACITY,
    SPOOL_MAGIC,
    SPOOL_SUFFIX,
    SPOOL_VERSION,
    STATUS_CODES,
    SpoolMeta,
    spool_bytes,
)

_U64 = (1 << 64) - 1
_F32_MAX = 3.4028234e38
_RECORD = struct.Struct(RECORD_FORMAT)
#: (lowest, highest) of each field after `seq` and `crc`, in order; None marks a float.
_LIMITS: tuple[tuple[int, int] | None, ...] = tuple(
    {"B": (0, 255), "H": (0, 65_535), "I": (0, (1 << 32) - 1), "Q": (0, _U64), "h": (-32_768, 32_767), "f": None}[code]
    for code in RECORD_FORMAT[3:]
)
_STATUS_CELL = {code: C_STATUS + index for index, code in enumerate(STATUS_CODES)}
_OTHER_STATUS = C_STATUS + len(STATUS_CODES)


def latency_buckets_ms(thresholds_ms: Iterable[float] = ()) -> tuple[float, ...]:
    """The default latency buckets with every SLO threshold among them, ascending, at most 31 (ms)."""
    wanted = set(map(float, thresholds_ms))
    room = LATENCY_CELLS - 1 - len(wanted)
    if room < 0:
        raise ValueError(f"{len(wanted)} latency thresholds, at most {LATENCY_CELLS - 1} fit")
    rest = [bound for bound in map(float, DEFAULT_LATENCY_BUCKETS_MS) if bound not in wanted]
    return tuple(sorted((*wanted, *rest[:room])))


class SpoolWriter:
    """One process's spool. Make it with `create`; call it from one thread only.

    `record` and the counters are for the request path: bounded work, no exception. What they are
    given is clipped to the width of its field.
    """

    def __init__(self, mapped: mmap.mmap, path: Path, meta: SpoolMeta, clock: Clock, capacity: int) -> None:
        self.path = path
        self._map = mapped
        self._view = memoryview(mapped)
        self._cells = self._view.cast("Q")
        self._words = self._view.cast("I")
        self._clock = clock
        self._capacity = capacity
        self._written = 0
        self._gateway, self._nonce = meta.gateway, meta.nonce
        self._series: dict[tuple[str, str], int] = {}
        self._buckets: dict[str, list[float]] = {}
        self._labels: dict[str, list[str]] = {}

    @classmethod
    def create(cls, spool_dir: str | Path, gateway: str, clock: Clock, capacity: int = SPOOL_CAPACITY) -> SpoolWriter:
        """Make a new spool file, `<nonce>.spool`, in `spool_dir`.

        Args:
            spool_dir: made (mode 0700) if absent.
            gateway: the name under which the monitor reports this process.
            clock: for the start time and `beat`.
            capacity: records that fit before the oldest is overwritten.

        Raises:
            OSError: the directory cannot be written or has no room; names the file and the bytes needed.
        """
        directory = Path(spool_dir)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        nonce = secrets.token_hex(8)
        path = directory / f"{nonce}{SPOOL_SUFFIX}"
        unfinished = directory / f"{nonce}.new"
        size = spool_bytes(capacity)
        descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            mapped = mmap.mmap(descriptor, size)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            reason = f"{path}: cannot allocate {size} bytes for the spool: {error.strerror}"
            raise OSError(error.errno, reason) from error
        finally:
            os.close(descriptor)
        writer = cls(mapped, path, SpoolMeta(gateway, nonce, [], {}, {}), clock, capacity)
        writer._start()
        unfinished.rename(path)
        return writer

    def _start(self) -> None:
        cells = self._cells
        cells[H_VERSION] = SPOOL_VERSION
        cells[H_RECORD_SIZE] = RECORD_SIZE
        cells[H_CAPACITY] = self._capacity
        cells[H_PID] = os.getpid()
        cells[H_START_MONO_NS] = cells[H_BEAT_MONO_NS] = self._clock.monotonic_ns()
        cells[H_START_WALL_NS] = self._clock.wall_ns()
        cells[H_BOOT] = boot_id()
        self._publish_meta()
        cells[H_MAGIC] = SPOOL_MAGIC

    # ------------------------------------------------------------ dictionary

    def set_model(self, model: str, latency_buckets_ms: Sequence[float], labels: Sequence[str]) -> None:
        """Say what a model's latency buckets (ms, ascending, at most 31) and class names are.

        Raises:
            ValueError: unusable bounds, or other bounds than those already counted with.
        """
        bounds = [float(bound) for bound in latency_buckets_ms]
        if not 0 < len(bounds) < LATENCY_CELLS or sorted(set(bounds)) != bounds:
            raise ValueError(f"{model}: latency buckets must ascend and number 1..{LATENCY_CELLS - 1}, got {bounds}")
        counted = any(name == model for name, _ in self._series)
        if counted and self._buckets.get(model) != bounds:
            raise ValueError(f"{model}: its latency buckets are in use: call set_model before series_id")
        self._buckets[model] = bounds
        self._labels[model] = list(labels)
        self._publish_meta()

    def series_id(self, model: str, variant: str) -> int:
        """The small integer of (model, variant), added to the dictionary if new.

        Raises:
            ValueError: there is room for `SERIES_MAX` in one spool.
        """
        known = self._series.get((model, variant))
        if known is not None:
            return known
        if len(self._series) >= SERIES_MAX:
            raise ValueError(f"{model}/{variant}: a spool holds {SERIES_MAX} variants: restart the gateway")
        self._buckets.setdefault(model, [float(bound) for bound in DEFAULT_LATENCY_BUCKETS_MS])
        self._labels.setdefault(model, [])
        series = self._series[model, variant] = len(self._series)
        self._publish_meta()
        return series

    def _publish_meta(self) -> None:
        meta = SpoolMeta(self._gateway, self._nonce, list(self._series), self._buckets, self._labels)
        payload = msgspec.json.encode(meta)
        if len(payload) > META_BYTES:
            raise ValueError(f"the spool's dictionary takes {len(payload)} of {META_BYTES} bytes: shorten the labels")
        cells = self._cells
        cells[H_META_GENERATION] += 1  # odd: in the making
        self._view[META_OFFSET : META_OFFSET + len(payload)] = payload
        cells[H_META_LENGTH] = len(payload)
        cells[H_META_CRC] = zlib.crc32(payload)
        cells[H_META_GENERATION] += 1

    # ------------------------------------------------------------ counters

    def add(self, series: int, cell: int, n: int = 1) -> None:
        """Add `n` >= 0 to one of the series' counters (`contract.C_*`)."""
        at = AGG_OFFSET // 8 + series * CELLS + cell
        self._cells[at] = (self._cells[at] + n) & _U64 if n > 0 else self._cells[at]

    def set_gauge(self, series: int, cell: int, value: int) -> None:
        """Set a gauge cell (`C_QUEUE_ROWS`, `C_WORKERS`)."""
        self._cells[AGG_OFFSET // 8 + series * CELLS + cell] = value if value > 0 else 0

    def observe_status(self, series: int, status: int) -> None:
        """Count one answer by its HTTP status."""
        self.add(series, _STATUS_CELL.get(status, _OTHER_STATUS))

    def observe_request(
        self, series: int, status_cell: int, rows: int, stages_ns: tuple[int, int, int, int] | None
    ) -> None:
        """Count one request: its status (a cell from `C_STATUS` or `C_PINNED` on), its rows, and of an answered one the
        nanoseconds of preprocessing, queue, inference and postprocessing."""
        cells, base = self._cells, AGG_OFFSET // 8 + series * CELLS
        cells[base + status_cell] += 1
        cells[base + C_ROWS] += rows
        if stages_ns is not None:
            preprocess, queue, infer, postprocess = stages_ns
            if preprocess:
                cells[base + C_PREPROCESS_NS] += preprocess
            cells[base + C_QUEUE_NS] += queue
            cells[base + C_INFER_NS] += infer
            cells[base + C_POSTPROCESS_NS] += postprocess

    def observe_latency(self, series: int, bounds_ms: Sequence[float], duration_ns: int) -> None:
        """Count the duration of one live request, in all and in its bucket; `bounds_ms` as given to `set_model`."""
        cells, base = self._cells, AGG_OFFSET // 8 + series * CELLS
        cells[base + C_DURATION_NS] += duration_ns
        cells[base + C_LATENCY + bisect_left(bounds_ms, duration_ns / 1e6)] += 1

    def observe_batch(self, series: int, rows: int) -> None:
        """Count one batch of `rows` rows that a worker was given."""
        base = AGG_OFFSET // 8 + series * CELLS
        self._cells[base + C_BATCHES] += 1
        self._cells[base + C_BATCH_ROWS] += max(0, rows)
        self._cells[base + C_BATCH_SIZE + bisect_left(BATCH_SIZE_BOUNDS, rows)] += 1

    # ------------------------------------------------------------ records

    def record(
        self,
        kind: int,
        flags: int = 0,
        reason: int = 0,
        cause: int = 0,
        mono_ns: int = 0,
        wall_ns: int = 0,
        request_key: int = 0,
        unit_key: int = 0,
        batch_key: int = 0,
        trace_hi: int = 0,
        trace_lo: int = 0,
        series: int = 0,
        answered: int = 0,
        status: int = 0,
        rows: int = 0,
        epoch: int = 0,
        total_us: int = 0,
        preprocess_us: int = 0,
        queue_us: int = 0,
        infer_us: int = 0,
        candidate_us: int = 0,
        cls: int = -1,
        ref_cls: int = -1,
        flips: int = 0,
        prob: float = 0.0,
        ref_prob: float = 0.0,
        margin: float = 0.0,
        energy: float = 0.0,
        inclusion: float = 1.0,
        slices: int = 0,
        extra: int = 0,
        overlap: int = 0,
    ) -> None:
        """Append one record (fields of `contract.RECORD_DTYPE`), over the oldest one if the ring is full."""
        seq = self._written + 1
        offset = RING_OFFSET + (seq % self._capacity) * RECORD_SIZE
        try:
            _RECORD.pack_into(
                self._map, offset, seq, 0, kind, flags, reason, cause, mono_ns, wall_ns, request_key, unit_key,
                batch_key, trace_hi, trace_lo, series, answered, status, rows, epoch, total_us, preprocess_us,
                queue_us, infer_us, candidate_us, cls, ref_cls, flips, overlap, prob, ref_prob, margin, energy,
                inclusion, slices, extra,
            )  # fmt: skip
        except (struct.error, OverflowError, TypeError):
            values = (
                kind, flags, reason, cause, mono_ns, wall_ns, request_key, unit_key, batch_key, trace_hi, trace_lo,
                series, answered, status, rows, epoch, total_us, preprocess_us, queue_us, infer_us, candidate_us,
                cls, ref_cls, flips, overlap, prob, ref_prob, margin, energy, inclusion, slices, extra,
            )  # fmt: skip
            _RECORD.pack_into(self._map, offset, seq, 0, *map(_clip, values, _LIMITS))
        self._words[(offset + CRC_OFFSET) >> 2] = zlib.crc32(self._view[offset + CRC_START : offset + RECORD_SIZE])
        self._cells[H_WRITTEN] = self._written = seq

    @property
    def written(self) -> int:
        """Records ever written."""
        return self._written

    def beat(self) -> None:
        """Say that this process lives; call it about once a second."""
        self._cells[H_BEAT_MONO_NS] = self._clock.monotonic_ns()

    def close(self) -> None:
        """Mark the spool as finished: the monitor drains it, keeps its totals and removes the file.
        Anything recorded afterwards is lost, silently: a late answer must not fail over its record."""
        self._cells[H_CLOSED] = 1


def _clip(value: Any, limits: tuple[int, int] | None) -> int | float:
    """`value` as its field can hold it; what is no number at all becomes 0."""
    try:
        if limits is None:
            number = float(value)
            return number if math.isnan(number) else min(max(number, -_F32_MAX), _F32_MAX)
        return int(min(max(value, limits[0]), limits[1]))
    except (TypeError, ValueError, OverflowError):
        return 0
