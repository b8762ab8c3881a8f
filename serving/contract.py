"""The structures that cross process borders: routing snapshot, event spool, control word.

`monitoring` imports this module (and `clock`) and nothing else of `serving`.
The only I/O here is opening the control word, so that all its readers and writers agree.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

import msgspec
import numpy as np
import xxhash

# ---------------------------------------------------------------- routing snapshot

#: Traffic is divided into this many buckets: one bucket is 0.01 % (a basis point).
BUCKETS = 10_000


class VariantEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One variant as the gateways need it."""

    name: str
    version: int  # the integer of /v2/models/M/versions/V, unique within the model
    artifact: str  # "model/variant:revision" in the registry
    placement: str = "isolated"  # isolated | colocated
    runtime: str = "onnxruntime"  # onnxruntime | torch
    max_batch: int = 16
    replicas: int = 1
    app: str = ""  # name of the Ray Serve application of an isolated variant


class RouteTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The immutable routing table of one model. Percentages are in basis points (0..10000)."""

    model: str
    epoch: int
    salt: str
    baseline: str
    teacher: str
    variants: dict[str, VariantEntry]
    #: Half-open bucket intervals [lo, hi) of each candidate; what is left is the baseline's.
    candidates: dict[str, tuple[tuple[int, int], ...]] = {}
    #: The epoch at which each candidate last went from no traffic to some.
    since: dict[str, int] = {}
    shadow: dict[str, int] = {}
    reference_bp: int = 0


class Latch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A kill (or veto) counter: in force while `seq > cleared`."""

    seq: int = 0
    cleared: int = 0

    @property
    def on(self) -> bool:
        return self.seq > self.cleared


class Snapshot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a gateway obeys, published by the control plane as one value.

    `rev` names this value; `lease` is the fencing token of the control plane that wrote
    it: a gateway refuses a snapshot of an older lease. `kills` is keyed by model name, with
    "*" for all models. `vetoes` is keyed by "model/variant".
    """

    rev: int
    lease: int
    tables: dict[str, RouteTable]
    kills: dict[str, Latch] = {}
    vetoes: dict[str, Latch] = {}
    #: State of the latest rollout of each variant, by "model/variant"; for the monitor's metrics.
    rollouts: dict[str, str] = {}


#: States of a rollout, in the order in which it may pass through them.
ROLLOUT_STATES: tuple[str, ...] = (
    "pending", "warmup", "shadow", "ramping", "paused", "promoting", "monitoring", "succeeded", "rolling_back",
    "rolled_back", "killed",
)  # fmt: skip


# ---------------------------------------------------------------- guards


class GuardRole(msgspec.Struct, frozen=True):
    """What rollouts need to know of a guard.

    Args:
        action: what its failure does: alert (it is told, nothing more) | pause | rollback | kill.
        passes: it can say that a candidate is within its limit, so a rollout may require it; else it only has a veto.
        shadow: the answers to copies, which no client gets, are enough for it.
    """

    action: str
    passes: bool = True
    shadow: bool = False


#: The statistical guards of a candidate; the monitor judges them (`monitoring.guards.table`), rollouts wait for them.
GUARD_ROLES: dict[str, GuardRole] = {
    "invalid_output": GuardRole("kill"),
    "errors": GuardRole("rollback"),
    "latency": GuardRole("rollback"),
    "agreement": GuardRole("rollback", shadow=True),
    "harm": GuardRole("rollback", shadow=True),
    "calibration": GuardRole("rollback", passes=False, shadow=True),
    "slices": GuardRole("pause", passes=False, shadow=True),
    "saturation": GuardRole("pause", shadow=True),
    "interference": GuardRole("rollback"),
    "srm": GuardRole("pause"),
    "kpi": GuardRole("pause"),
    "ood": GuardRole("alert", passes=False, shadow=True),
    "embedding": GuardRole("alert", passes=False, shadow=True),
}
GUARDS: tuple[str, ...] = tuple(GUARD_ROLES)
#: Those that can be judged by the answers to copies, which no client gets.
SHADOW_GUARDS: tuple[str, ...] = tuple(name for name, role in GUARD_ROLES.items() if role.shadow)
#: Those that a rollout may require.
PASSING_GUARDS: tuple[str, ...] = tuple(name for name, role in GUARD_ROLES.items() if role.passes)


# ---------------------------------------------------------------- enumerations in records


class Kind(IntEnum):
    """What a spool record is about."""

    REQUEST = 0  # an answered (or refused) client request
    REFERENCE = 1  # the teacher's answer to an input that a candidate answered
    SHADOW = 2  # a shadow answer compared with the answer that was returned
    LABEL = 3  # ground truth for an earlier request (joined by request_key)
    KPI = 4  # a business KPI for an earlier request
    AUDIT = 5  # one row looked at inside a variant: how much saturated, how far its embedding is; NaN: not looked at


class Reason(IntEnum):
    """Why a variant answered; the first word of `x-canarium-reason`."""

    BASELINE = 0
    CANARY = 1
    OVERRIDE = 2
    PINNED = 3
    FALLBACK = 4
    KILLED = 5


class Cause(IntEnum):
    """What a candidate did wrong when the baseline answered in its place."""

    NONE = 0
    ERROR = 1
    TIMEOUT = 2
    INVALID_OUTPUT = 3
    DIED = 4
    OVERLOADED = 5
    KILLED = 6


REASON_WORDS: tuple[str, ...] = tuple(reason.name.lower() for reason in Reason)
CAUSE_WORDS: tuple[str, ...] = tuple(cause.name.lower() for cause in Cause)


class Flag(IntEnum):
    """Bits of a record's `flags`."""

    LIVE = 1  # counts in live statistics (not pinned, overridden, golden or shadow)
    BASELINE_VALID = 2  # the baseline's answer to the same input was valid
    CLIENT_FAULT = 4  # a 4xx that no variant is to blame for
    KILLED = 8  # routed while a kill or a silent monitor had the model on its baseline, whoever owned the bucket
    UNOPENED = 16  # of a candidate's bucket, answered by the baseline because this gateway has not opened the candidate


# ---------------------------------------------------------------- event spool

SPOOL_MAGIC = 0x314C4F4F50534E43  # "CNSPOOL1", little-endian
SPOOL_VERSION = 1
SPOOL_SUFFIX = ".spool"
SPOOL_CAPACITY = 65_536

#: One fixed record, 144 bytes, little-endian, packed. `crc` is CRC-32 of the bytes after it.
RECORD_DTYPE = np.dtype(
    [
        ("seq", "<u8"),  # 1-based; a slot holds record seq when seq % capacity == slot
        ("crc", "<u4"),
        ("kind", "u1"),
        ("flags", "u1"),
        ("reason", "u1"),
        ("cause", "u1"),
        ("mono_ns", "<u8"),
        ("wall_ns", "<u8"),
        ("request_key", "<u8"),  # hash of the request id: joins labels and reference answers
        ("unit_key", "<u8"),  # keyed hash of the sticky unit
        ("batch_key", "<u8"),  # the same for all requests of one batch: a failed batch is one event
        ("trace_hi", "<u8"),
        ("trace_lo", "<u8"),
        ("series", "<u2"),  # the variant that was routed to (candidate for pairs)
        ("answered", "<u2"),  # the variant that answered (teacher for pairs)
        ("status", "<u2"),  # HTTP status
        ("rows", "<u2"),
        ("epoch", "<u4"),
        ("total_us", "<u4"),
        ("preprocess_us", "<u4"),
        ("queue_us", "<u4"),
        ("infer_us", "<u4"),
        ("candidate_us", "<u4"),  # time spent waiting for the candidate before a fallback
        ("cls", "<i2"),  # predicted class of row 0; -1 unknown. LABEL: the true class
        ("ref_cls", "<i2"),  # pairs: the teacher's class of row 0
        ("flips", "<u2"),  # pairs: rows whose top-1 differs
        ("overlap", "<u2"),  # pairs: see `packing.pack_overlap`
        ("prob", "<f4"),  # probability of the predicted class, row 0. KPI: the value. AUDIT: share that saturated
        ("ref_prob", "<f4"),  # pairs: the teacher's probability of the *candidate's* class. AUDIT: the worst tensor's
        ("margin", "<f4"),  # top-1 minus top-2 probability, row 0
        ("energy", "<f4"),  # -logsumexp(logits), row 0. AUDIT: distance of the embedding, in thresholds
        ("inclusion", "<f4"),  # probability with which this observation was sampled
        ("slices", "<u4"),  # bits of the declared slices that the request is in, by name in the alphabet
        # KPI: hash of its name. Pairs, audits, requests: see `packing.pack_divergence`, `pack_noise`, `pack_unopened`
        ("extra", "<u8"),
    ]
)
#: The same layout for `struct.pack_into`; fields in RECORD_DTYPE's order.
RECORD_FORMAT = "<QIBBBBQQQQQQQHHHHIIIIIIhhHHfffffIQ"
RECORD_SIZE = RECORD_DTYPE.itemsize
CRC_OFFSET = 8
CRC_START = 12

# Header page: u64 cells.
PAGE = 4096
(
    H_MAGIC,
    H_VERSION,
    H_RECORD_SIZE,
    H_CAPACITY,
    H_WRITTEN,  # records ever written; the newest record has this seq
    H_META_GENERATION,  # even: meta is stable; odd: being rewritten
    H_META_LENGTH,
    H_META_CRC,
    H_PID,
    H_START_MONO_NS,
    H_START_WALL_NS,
    H_BEAT_MONO_NS,
    H_CLOSED,
    H_BOOT,  # `clock.boot_id`; 0: unknown
) = range(14)
META_OFFSET = PAGE
META_BYTES = 16 * PAGE
AGG_OFFSET = META_OFFSET + META_BYTES
SERIES_MAX = 64
CELLS = 128  # u64 cells of one series' block
AGG_BYTES = SERIES_MAX * CELLS * 8
RING_OFFSET = AGG_OFFSET + AGG_BYTES


def spool_bytes(capacity: int) -> int:
    """Size in bytes of a spool file with `capacity` record slots."""
    return RING_OFFSET + capacity * RECORD_SIZE


class SpoolMeta(msgspec.Struct, frozen=True):
    """The dictionary of a spool: what its small integers mean."""

    gateway: str
    nonce: str
    #: series id -> ("model", "variant")
    series: list[tuple[str, str]]
    #: model -> upper bounds of its latency buckets, milliseconds, ascending (at most 31)
    latency_buckets_ms: dict[str, list[float]]
    #: model -> class names, index = `cls`
    labels: dict[str, list[str]]


# Cells of one series' aggregate block (u64, only ever growing unless marked gauge).
STATUS_CODES: tuple[int, ...] = (200, 400, 401, 403, 404, 413, 429, 499, 500, 503, 504)
C_STATUS = 0  # + index in STATUS_CODES, last one +len = any other status; without those of C_PINNED
C_FALLBACK = 16  # + Cause: requests routed here that the baseline answered
C_SHADOW_OK, C_SHADOW_ERROR, C_SHADOW_SHED, C_SHADOW_TIMEOUT = 24, 25, 26, 27
C_REFERENCE_OK, C_REFERENCE_ERROR, C_REFERENCE_SHED = 28, 29, 30
C_ROWS, C_BATCHES, C_BATCH_ROWS = 31, 32, 33
C_QUEUE_ROWS = 34  # gauge
C_WORKERS = 35  # gauge: workers that can take a batch
C_PREPROCESS_NS, C_QUEUE_NS, C_INFER_NS, C_POSTPROCESS_NS = 36, 37, 38, 39
C_SHED = 40  # live requests refused because the queue was full or the wait too long
C_DROPPED_CANCELLED = 41  # queued requests dropped because their client went away
C_PAIRS, C_PAIR_FLIPS = 42, 43
C_CAPACITY = 46  # gauge: rows in 1,000 s that its workers can do for this gateway, at least; 0: unknown
C_LIVE_OK, C_LIVE_ERROR = 44, 45  # live requests routed here: good or bad, after blame
C_DURATION_NS = 48  # sum over live requests
C_PAYLOADS, C_PAYLOADS_DROPPED, C_AUDITS = 50, 51, 52  # sampled rows: taken, given up (queue or disk full); audits
C_LATENCY = 64  # + bucket index (first bucket whose bound >= duration; last = +Inf)
LATENCY_CELLS = 32
C_BATCH_SIZE = 96  # + bucket index of BATCH_SIZE_BOUNDS
BATCH_SIZE_BOUNDS: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
C_PINNED = 104  # + as for C_STATUS: pinned and overridden requests, golden rows among them

DEFAULT_LATENCY_BUCKETS_MS: tuple[float, ...] = (
    0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 750, 1000, 2000, 5000,
)  # fmt: skip


def record_crc(record: bytes | memoryview) -> int:
    """CRC-32 of one packed record, excluding `seq` and the checksum itself."""
    return zlib.crc32(record[CRC_START:])


def request_key(model: str, request_id: str) -> int:
    """The 64-bit key by which labels and reference answers find their request."""
    return xxhash.xxh3_64_intdigest(f"{model}\0{request_id}")


def kpi_key(name: str) -> int:
    """The 64 bits by which records name a business KPI."""
    return xxhash.xxh3_64_intdigest(name)


# ---------------------------------------------------------------- control word

WORD_FILE = "control.word"
WORD_MAGIC = 0x31444F5752544E43  # "CNTRWOD1"
WORD_SLOTS = 254
WORD_HEADER_CELLS = 8
WORD_SLOT_CELLS = 4
W_MAGIC, W_SLOTS, W_BEAT_MONO_NS, W_BOOT_ID = range(4)
S_KEY, S_SEQ, S_CLEARED, S_CHECK = range(4)
WORD_BYTES = 8 * (WORD_HEADER_CELLS + WORD_SLOTS * WORD_SLOT_CELLS)
_MASK = (1 << 64) - 1
_ABSENT, _UNSURE = 0, -1  # no slot starts at cell 0
_FREE_SLOT = bytes(8 * WORD_SLOT_CELLS)


def slot_key(model: str, variant: str = "*") -> int:
    """Key of a latch slot: ("*", "*") is the global kill, (model, "*") a model's kill,
    (model, variant) the veto by which a rollback reaches gateways without the control plane."""
    return xxhash.xxh3_64_intdigest(f"{model}\0{variant}") | 1  # never 0: 0 marks a free slot


def slot_check(key: int, seq: int, cleared: int) -> int:
    """Checksum of a slot; a slot that does not match is unreadable, which means baseline."""
    return (key ^ (seq * 0x9E3779B97F4A7C15) ^ (cleared * 0xC2B2AE3D27D4EB4F) ^ WORD_MAGIC) & _MASK


class ControlWord:
    """The node-local latches by which a kill or rollback reaches gateways when all else is down.

    Readers take no lock: a slot whose checksum does not match (torn or corrupt) reads as
    `None`, which everyone must treat as "baseline". Writers serialise on `flock`.
    """

    def __init__(self, mapped: mmap.mmap, descriptor: int) -> None:
        self._map = mapped
        self._cells = memoryview(mapped).cast("Q")
        self._watched = 0  # bytes up to and with the first free slot, where the next one will appear
        self._descriptor = descriptor
        self._release = weakref.finalize(self, os.close, descriptor)
        self._slots: dict[int, int] = {}
        self._unseen: dict[int, int] = {}

    @classmethod
    def open(cls, path: str | Path) -> ControlWord:
        """Map the word at `path`, creating it (mode 0600) if absent. Raises `OSError`."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_size != WORD_BYTES:
                os.ftruncate(descriptor, WORD_BYTES)
            os.posix_fallocate(descriptor, 0, WORD_BYTES)  # a kill must not need disk space
            mapped = mmap.mmap(descriptor, WORD_BYTES)
            cells = memoryview(mapped).cast("Q")
            if cells[W_MAGIC] == 0:
                cells[W_SLOTS] = WORD_SLOTS
                cells[W_MAGIC] = WORD_MAGIC
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        except BaseException:
            os.close(descriptor)  # and with it the lock: who tries again and again must not run out of descriptors
            raise
        return cls(mapped, descriptor)

    def stamp(self) -> bytes:
        """All that latches can be read from, as it is now: while it stays the same, so do they.

        A copy of a few hundred bytes, far cheaper than reading the latches. Take it before you read them, so that
        what is written meanwhile makes the next one differ.
        """
        stamp = self._map[: self._watched]
        if stamp[-WORD_SLOT_CELLS * 8 :] != _FREE_SLOT:
            self._watched = self._used_bytes()
            stamp = self._map[: self._watched]
        return stamp[8 * W_BOOT_ID :] if self._cells[W_MAGIC] == WORD_MAGIC else b""

    def _used_bytes(self) -> int:
        for at in range(WORD_HEADER_CELLS, len(self._cells), WORD_SLOT_CELLS):
            if not any(self._cells[at : at + WORD_SLOT_CELLS]):
                return 8 * (at + WORD_SLOT_CELLS)
        return WORD_BYTES

    def latch(self, key: int) -> Latch | None:
        """The latch in slot `key`; `Latch(0, 0)` if never set, None if unreadable.

        If there is no such slot but a damaged one that may have been it, that is unreadable too.
        """
        if self._cells[W_MAGIC] != WORD_MAGIC:
            return None
        for _ in range(2):  # a second look tells a write in progress from damage
            at = self._slots.get(key) or self._find(key)
            if at == _ABSENT:
                return Latch()
            if at == _UNSURE:
                continue
            seq, cleared, check = self._cells[at + S_SEQ], self._cells[at + S_CLEARED], self._cells[at + S_CHECK]
            if self._cells[at + S_KEY] == key and check == slot_check(key, seq, cleared):
                return Latch(seq, cleared)
        return None

    def latch_on(self, key: int, at_least: int = 0) -> int:
        """Put the latch in force and return its seq: the next one, or `at_least` if that is higher.
        A latch already in force keeps its seq unless `at_least` is higher."""
        with self._locked():
            at, now = self._slot_for_write(key)
            seq = max(now.seq if now.on else max(now.seq, now.cleared) + 1, at_least)
            self._write(at, key, Latch(seq, now.cleared))
        return seq

    def latch_off(self, key: int, seq: int) -> None:
        """Clear the latch up to `seq`; a kill with a higher seq stays in force."""
        with self._locked():
            at, now = self._slot_for_write(key)
            self._write(at, key, Latch(now.seq, max(now.cleared, seq)))

    def beat(self, mono_ns: int) -> None:
        """Record the monitor's heartbeat (CLOCK_MONOTONIC, ns)."""
        self._cells[W_BEAT_MONO_NS] = mono_ns

    @property
    def last_beat_ns(self) -> int:
        """CLOCK_MONOTONIC nanoseconds of the monitor's last heartbeat; 0 if there was none."""
        return self._cells[W_BEAT_MONO_NS]

    def close(self) -> None:
        """No writing from now on. A word that nobody holds any more closes itself."""
        self._release()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _find(self, key: int) -> int:
        """First cell of the slot of `key`, else `_ABSENT`, or `_UNSURE` if a damaged slot may have been it."""
        missing = _ABSENT
        for at in range(self._unseen.get(key, WORD_HEADER_CELLS), len(self._cells), WORD_SLOT_CELLS):
            stored, seq, cleared, check = self._cells[at : at + WORD_SLOT_CELLS]
            if stored == key:
                self._slots[key] = at
                return at
            if not (stored or seq or cleared or check):  # free, and so are those that follow
                if missing == _ABSENT:
                    self._unseen[key] = at  # slots fill in order: it can only appear from here on
                break
            if check != slot_check(stored, seq, cleared):
                missing = _UNSURE
        return missing

    def _slot_for_write(self, key: int) -> tuple[int, Latch]:
        at = self._find(key)
        if at > 0:
            _, seq, cleared, check = self._cells[at : at + WORD_SLOT_CELLS]
            if check == slot_check(key, seq, cleared):
                return at, Latch(seq, cleared)
            # A damaged slot counts as in force, above all that it may have held: never a silent re-arm.
            top = min(max(seq, cleared), 1 << 62)
            return at, Latch(top + 1, min(cleared, top))
        for free in range(WORD_HEADER_CELLS, len(self._cells), WORD_SLOT_CELLS):
            if not any(self._cells[free : free + WORD_SLOT_CELLS]):
                return free, Latch()
        raise OSError("the control word is full: remove run/control.word while nothing runs")

    def _write(self, at: int, key: int, latch: Latch) -> None:
        cells = self._cells
        cells[at + S_SEQ] = latch.seq
        cells[at + S_CLEARED] = latch.cleared
        cells[at + S_CHECK] = slot_check(key, latch.seq, latch.cleared)
        cells[at + S_KEY] = key
