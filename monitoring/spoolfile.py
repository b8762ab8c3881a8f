"""The reading end of one spool file: `pread` only, so that no file, however damaged, can crash the monitor."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from serving.contract import (
    AGG_BYTES,
    AGG_OFFSET,
    C_CAPACITY,
    C_DURATION_NS,
    C_INFER_NS,
    C_POSTPROCESS_NS,
    C_PREPROCESS_NS,
    C_QUEUE_NS,
    C_QUEUE_ROWS,
    C_WORKERS,
    CELLS,
    CRC_START,
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
    H_VERSION,
    H_WRITTEN,
    META_BYTES,
    META_OFFSET,
    PAGE,
    RECORD_DTYPE,
    RECORD_SIZE,
    RING_OFFSET,
    SERIES_MAX,
    SPOOL_MAGIC,
    SPOOL_VERSION,
    SpoolMeta,
)

Records = npt.NDArray[np.void]
Cells = npt.NDArray[np.uint64]

#: Cells that say what is, not how much there was; and those that sum up nanoseconds.
GAUGES = (C_QUEUE_ROWS, C_WORKERS, C_CAPACITY)
SUMS_NS = (C_PREPROCESS_NS, C_QUEUE_NS, C_INFER_NS, C_POSTPROCESS_NS, C_DURATION_NS)
#: Polls for which a newest record that does not show the seq of the header is waited for.
PATIENCE = 3
MAX_CAPACITY = 1 << 24
#: No counter grows so much between two looks, which may be days apart: a flipped bit.
_JUMP: Cells = np.full(CELLS, 1 << 50, dtype=np.uint64)
_JUMP[list(SUMS_NS)] = 1 << 62


class Position(msgspec.Struct):
    """How far one file was read. `accepted` is the newest seq believed in."""

    next: int = 1
    accepted: int = 0
    consumed: int = 0
    lost: int = 0  # overwritten before they were read
    corrupt: int = 0  # present, but not what was written

    @property
    def pending(self) -> int:
        """Records written and not yet looked at."""
        return self.accepted - self.next + 1


class Kept(msgspec.Struct):
    """One file as of a commit: how far it was read, what its counters were, and who writes it.

    The commit is on the disk before what a gateway wrote meanwhile: a file that lived through a loss of power may be
    older than this, or have lost its header, or its name.
    """

    position: Position
    meta: SpoolMeta
    cells: list[list[int]]  # of each series
    pid: int
    boot: int
    start_mono_ns: int
    beat_mono_ns: int


class SpoolFile:
    """Reads one file, from where an earlier process stopped (`kept`) or from its beginning.

    Raises `OSError` or `ValueError` from the constructor if it is no readable spool.
    """

    def __init__(self, path: Path, kept: Kept | None = None) -> None:
        self.path = path
        self.nonce = path.stem
        self.position = msgspec.structs.replace(kept.position) if kept is not None else Position()
        self.meta = kept.meta if kept is not None else SpoolMeta("", self.nonce, [], {}, {})
        self.cells: Cells = np.zeros((SERIES_MAX, CELLS), dtype=np.uint64)
        if kept is not None and kept.cells:
            self.cells[: len(kept.cells)] = kept.cells
        self.header_errors = 0
        self._generation = -1
        self._doubted = (0, 0)  # (written, polls) of a header that its newest record does not confirm
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            header = self._header()
            if header is None or header[H_VERSION] != SPOOL_VERSION or header[H_RECORD_SIZE] != RECORD_SIZE:
                raise ValueError(f"{path}: not a spool of this version")
            self.capacity = int(header[H_CAPACITY])
            if not 0 < self.capacity <= MAX_CAPACITY:
                raise ValueError(f"{path}: impossible capacity {self.capacity}")
            self.pid = int(header[H_PID])
            self.boot = int(header[H_BOOT])
            self.start_mono_ns = int(header[H_START_MONO_NS])
            self.beat_mono_ns = int(header[H_BEAT_MONO_NS])
        except BaseException:
            os.close(self._file)
            raise
        self.closed = False
        self.gone = False  # the file has no name any more

    def close(self) -> None:
        os.close(self._file)

    def kept(self) -> Kept:
        """What a commit keeps of this file."""
        meta = msgspec.structs.replace(self.meta, labels={})
        cells = self.cells[: len(meta.series)].tolist()
        position = msgspec.structs.replace(self.position)
        return Kept(position, meta, cells, self.pid, self.boot, self.start_mono_ns, self.beat_mono_ns)

    @property
    def pending(self) -> int:
        """Records written and not yet looked at."""
        return self.position.pending

    def poll(self, limit: int) -> Records:
        """The next intact records, at most `limit` looked at; empty when there are none.

        Everything skipped is counted in `position`: written = consumed + lost + corrupt + pending.
        """
        self._accept()
        here = self.position
        skipped = here.accepted - self.capacity + 1 - here.next
        if skipped > 0:
            here.lost += skipped
            here.next += skipped
        count = min(self.pending, limit)
        if count <= 0:
            return np.empty(0, dtype=RECORD_DTYPE)
        records = self._read(here.next, count)
        intact = self._check(records, here.next)
        here.next += count
        here.consumed += int(intact.sum())
        self._refresh_meta()
        return records[intact]

    def refresh_cells(self) -> Cells:
        """The aggregate block (SERIES_MAX x CELLS), counters never lower than before, nor than in the last commit."""
        data = os.pread(self._file, AGG_BYTES, AGG_OFFSET).ljust(AGG_BYTES, b"\0")
        fresh = np.frombuffer(data, dtype="<u8").reshape(SERIES_MAX, CELLS)
        sound = (fresh >= self.cells) & (fresh - self.cells < _JUMP)
        sound[:, GAUGES] = fresh[:, GAUGES] < _JUMP[list(GAUGES)]
        self.cells = np.where(sound, fresh, self.cells)
        self._refresh_meta()
        return self.cells

    @property
    def in_doubt(self) -> bool:
        """Whether the header counts records that nothing confirms so far, and that are still waited for."""
        return 0 < self._doubted[1] < PATIENCE

    # ------------------------------------------------------------ header

    def _header(self) -> list[int] | None:
        data = os.pread(self._file, PAGE, 0)
        if len(data) < PAGE:
            return None
        cells: list[int] = np.frombuffer(data, dtype="<u8", count=16).tolist()
        return cells if cells[H_MAGIC] == SPOOL_MAGIC else None

    def _accept(self) -> None:
        """Take over what the header says, if the newest record confirms it."""
        self.gone = os.fstat(self._file).st_nlink == 0
        (doubted, polls), self._doubted = self._doubted, (0, 0)
        header = self._header()
        if header is None:
            self.header_errors += 1
            return
        self.beat_mono_ns = header[H_BEAT_MONO_NS]
        self.closed = header[H_CLOSED] == 1
        written, here = header[H_WRITTEN], self.position
        if written == here.accepted:
            return
        if written < here.accepted:
            self.header_errors += 1
        elif self._confirmed(written):
            here.accepted = written
        else:
            self.header_errors += 1
            polls = polls + 1 if doubted == written else 1
            if polls >= PATIENCE and (written - here.accepted <= self.capacity or self._likely(written)):
                here.accepted = written
            else:
                self._doubted = (written, polls)

    def _confirmed(self, written: int) -> bool:
        slot = os.pread(self._file, 8, RING_OFFSET + (written % self.capacity) * RECORD_SIZE)
        seq = int.from_bytes(slot, "little") if len(slot) == 8 else 0
        return seq >= written and (seq - written) % self.capacity == 0 and seq - written <= 1 << 32

    def _likely(self, written: int) -> bool:
        """Whether the ring holds any sound record of the last round before that one."""
        slots = np.frombuffer(self._slots(0, self.capacity), dtype=RECORD_DTYPE)
        near = (slots["seq"] + self.capacity > written) & (slots["seq"] <= written)
        return any(zlib.crc32(slot.tobytes()[CRC_START:]) == int(slot["crc"]) for slot in slots[near])

    def _refresh_meta(self) -> None:
        for _ in range(3):
            header = self._header()
            if header is None:
                return
            generation, length = header[H_META_GENERATION], header[H_META_LENGTH]
            if generation == self._generation:
                return
            if generation % 2 or length > META_BYTES:
                continue
            payload = os.pread(self._file, length, META_OFFSET)
            if zlib.crc32(payload) != header[H_META_CRC]:
                continue
            try:
                meta = msgspec.json.decode(payload, type=SpoolMeta)
            except msgspec.MsgspecError:
                return
            if len(meta.series) >= len(self.meta.series):  # an older one would leave counters without a name
                self.meta = meta
            self._generation = generation
            return

    # ------------------------------------------------------------ ring

    def _read(self, first: int, count: int) -> Records:
        start = first % self.capacity
        head = min(count, self.capacity - start)
        data = self._slots(start, head) + self._slots(0, count - head)
        return np.frombuffer(data, dtype=RECORD_DTYPE)

    def _slots(self, start: int, count: int) -> bytes:
        size = count * RECORD_SIZE
        return os.pread(self._file, size, RING_OFFSET + start * RECORD_SIZE).ljust(size, b"\0") if count else b""

    def _check(self, records: Records, first: int) -> npt.NDArray[np.bool_]:
        """Which records are what was written; counts the others as lost or corrupt."""
        seqs = records["seq"].astype(np.int64)
        wanted = np.arange(first, first + len(records))
        view, crc32 = memoryview(records.tobytes()), zlib.crc32
        sums = [crc32(view[at + CRC_START : at + RECORD_SIZE]) for at in range(0, len(view), RECORD_SIZE)]
        intact: npt.NDArray[np.bool_] = (seqs == wanted) & (np.array(sums, dtype=np.uint32) == records["crc"])
        if not intact.all():
            header = self._header()
            written = header[H_WRITTEN] if header is not None else 0
            newest = written if written >= self.position.accepted and self._confirmed(written) else 0
            overwritten = ~intact & (wanted <= newest - self.capacity + 1)
            self.position.lost += int(overwritten.sum())
            self.position.corrupt += int((~intact & ~overwritten).sum())
        return intact
