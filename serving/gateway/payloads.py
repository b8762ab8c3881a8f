"""Features of sampled live requests, written beside the request path for drift reports.

The event loop hands a row over and goes on; a thread takes the features and appends them, a JSON line a row, to

    ROOT/MODEL/START-GATEWAY.jsonl     START: milliseconds since the epoch, 13 digits

A file is written for `SEGMENT_S` or `SEGMENT_BYTES` at most, and for a `PARTS`th of what may be kept: whole files are
removed, so that one as large or as old as the limits would go while it is written. The queue is bounded in rows and
bytes; what finds it full is dropped and counted, and so is what cannot be written. Who removes old files is the
monitor; a writer only keeps its own within the limit, should nobody else do so.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from serving.clock import Clock
from serving.config_monitoring import PayloadsConfig
from serving.contract import BUCKETS, C_PAYLOADS, C_PAYLOADS_DROPPED, VariantEntry
from serving.core.routing import bucket_of
from serving.errors import RequestError
from serving.gateway.recorder import Recorder
from serving.runtimes import features
from serving.runtimes.answers import Summary
from serving.runtimes.pipeline import Pipeline

log = logging.getLogger(__name__)

QUEUE_ROWS, QUEUE_BYTES = 1024, 16 << 20
SEGMENT_S, SEGMENT_BYTES = 3600.0, 4 << 20
#: A gateway's share of what is kept of a model is at least so many files.
PARTS = 4
#: So many rows are written at once at most: a drain of all that may be queued can be more than a file is to hold.
WRITE_ROWS = 64
#: How often the thread looks into the queue, seconds: it is never woken by the request path.
WAKE_S = 0.2
#: After so many rows, some 0.2 ms, it lets go of the interpreter for so long.
YIELD_ROWS, YIELD_S = 8, 0.0005
#: After a failure to write a model's rows it tries none for so long: each try on a full disk would leave a file.
REST_S = 5.0


class _Sampled(NamedTuple):
    at_ms: int
    model: str
    variant: str
    version: int  # of the artifact that answered
    pipeline: Pipeline
    text: str | None
    arrays: dict[str, np.ndarray]
    summary: Summary
    size: int


class _Limits(NamedTuple):
    """What one gateway keeps of a model at most, and when it ends a file."""

    keep_bytes: int
    segment_bytes: int
    segment_ms: float

    @classmethod
    def of(cls, settings: PayloadsConfig, gateways: int) -> _Limits:
        keep_bytes, keep_s = settings.keep_mib << 20, settings.keep_hours * 3600
        segment_bytes = min(SEGMENT_BYTES, keep_bytes // (PARTS * gateways))
        return cls(keep_bytes, segment_bytes, min(SEGMENT_S, keep_s / PARTS) * 1000)


class _Segment:
    """The file that a model's rows go to."""

    def __init__(self, path: Path, began_ms: int) -> None:
        self.path = path
        self.began_ms = began_ms
        self.size = 0
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(descriptor, "wb", buffering=0)

    def ended(self, now_ms: int, limits: _Limits) -> bool:
        return self.size >= limits.segment_bytes or now_ms - self.began_ms >= limits.segment_ms

    def removed(self) -> bool:
        """Whether somebody has removed the file, so that nobody would find what is written to it."""
        return os.fstat(self._file.fileno()).st_nlink == 0

    def append(self, data: bytes) -> None:
        """Raises `OSError`, and then a part of the data may be in the file."""
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self.size += len(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


class PayloadLog:
    """Samples for one gateway process. All but the writing is for its event loop, and never waits.

    Args:
        root: the folder of all models.
        gateway: names this process's files.
        models: what is sampled of which model.
        gateways: how many write to the same folders, with this one.
    """

    def __init__(
        self,
        root: Path,
        gateway: str,
        models: Mapping[str, PayloadsConfig],
        recorder: Recorder,
        clock: Clock,
        gateways: int = 1,
    ) -> None:
        self._root = root
        self._gateway = gateway
        self._recorder = recorder
        self._clock = clock
        self._shares = {name: round(model.percent * BUCKETS / 100) for name, model in models.items() if model.percent}
        self._limits = {name: _Limits.of(models[name], gateways) for name in self._shares}
        self._queue: deque[_Sampled] = deque()  # appended by the loop, taken from the left by the thread
        self._queued = self._taken = 0  # bytes handed over, and taken out; each has one writer
        self._unwritten: Counter[tuple[str, str]] = Counter()  # grown by the thread
        self._told: Counter[tuple[str, str]] = Counter()
        self._segments: dict[str, _Segment] = {}
        self._finished: dict[str, deque[tuple[Path, int]]] = {name: deque() for name in self._shares}
        self._resting: dict[str, int] = {}  # models whose rows could not be written, and until when (monotonic ns)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._write_all, name="payloads", daemon=True)
        if self._shares:
            self._thread.start()

    def wants(self, model: str, request_id: str) -> bool:
        """Whether a request is one of the sample, by a hash of its id."""
        share = self._shares.get(model, 0)
        return share > 0 and bucket_of("", request_id, "payload") < share

    def offer(
        self,
        model: str,
        entry: VariantEntry,
        pipeline: Pipeline,
        inputs: Mapping[str, np.ndarray],
        session_inputs: Mapping[str, np.ndarray],
        summary: Summary,
    ) -> None:
        """Hand over row 0 of an answered request; dropped and counted if the queue is full."""
        pending = self._queued - self._taken
        if len(self._queue) >= QUEUE_ROWS or pending > QUEUE_BYTES:
            self._recorder.count(model, entry.name, C_PAYLOADS_DROPPED)
            return
        try:
            text, arrays = pipeline.first_row(inputs, session_inputs)
        except (RequestError, IndexError, KeyError):  # an empty request; what is no text has been refused before
            return
        size = len(text or "") + sum(array.nbytes for array in arrays.values())
        now_ms = self._clock.wall_ns() // 1_000_000
        self._queued += size
        row = _Sampled(now_ms, model, entry.name, entry.version, pipeline, text, arrays, summary, size)
        self._queue.append(row)
        self._recorder.count(model, entry.name, C_PAYLOADS)

    def publish(self) -> None:
        """Count what the thread could not write; called on the gateway's tick."""
        if self._unwritten == self._told:
            return
        for (model, variant), number in list(self._unwritten.items()):
            self._recorder.count(model, variant, C_PAYLOADS_DROPPED, number - self._told[model, variant])
            self._told[model, variant] = number

    def close(self, wait_s: float = 1.0) -> None:
        """Write what is queued and end the thread."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(wait_s)

    # ------------------------------------------------------------ the thread

    def _write_all(self) -> None:
        ending = False
        while not ending:
            ending = self._ending.wait(WAKE_S)
            try:
                self._drain()
            except Exception:
                log.exception("payloads: cannot go on with these rows")
        for segment in self._segments.values():
            segment.close()

    def _drain(self) -> None:
        """Write what is queued now; what comes meanwhile is for the next time, or there might be no end to it."""
        lines: dict[tuple[str, str], list[bytes]] = {}
        for number in range(len(self._queue)):
            if not number % YIELD_ROWS:
                self._ending.wait(YIELD_S)  # the event loop goes first
            row = self._queue.popleft()
            self._taken += row.size
            try:
                lines.setdefault((row.model, row.variant), []).append(msgspec.json.encode(_features(row)) + b"\n")
            except Exception:
                self._unwritten[row.model, row.variant] += 1
                log.exception("payloads: a row of %s has no features", row.model)
        for (model, variant), rows in lines.items():
            for at in range(0, len(rows), WRITE_ROWS):
                self._write(model, variant, rows[at : at + WRITE_ROWS])

    def _write(self, model: str, variant: str, rows: list[bytes]) -> None:
        """Append rows to the model's file; those that cannot be written are counted."""
        if self._clock.monotonic_ns() < self._resting.get(model, 0):
            self._unwritten[model, variant] += len(rows)
            return
        try:
            self._segment(model).append(b"".join(rows))
            self._resting.pop(model, None)
        except OSError as error:
            self._unwritten[model, variant] += len(rows)
            if model not in self._resting:
                log.warning("payloads of %s: %s", model, error)
            self._resting[model] = self._clock.monotonic_ns() + int(REST_S * 1e9)
            self._give_up(model)

    def _segment(self, model: str) -> _Segment:
        """The file to write to now. Raises `OSError`."""
        now_ms = self._clock.wall_ns() // 1_000_000
        segment = self._segments.get(model)
        if segment is None:
            return self._begin(model, now_ms)
        if segment.removed():
            segment.close()
        elif segment.ended(now_ms, self._limits[model]):
            self._finish(model, segment)
        else:
            return segment
        del self._segments[model]
        return self._begin(model, max(now_ms, segment.began_ms + 1))  # two of one millisecond would have one name

    def _begin(self, model: str, at_ms: int) -> _Segment:
        folder = self._root / model
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        segment = self._segments[model] = _Segment(folder / f"{at_ms:013d}-{self._gateway}.jsonl", at_ms)
        return segment

    def _give_up(self, model: str) -> None:
        """Keep a file that could not be written to only if there are rows in it."""
        broken = self._segments.pop(model, None)
        if broken is None:
            return
        if broken.size:
            self._finish(model, broken)
            return
        broken.close()
        with contextlib.suppress(OSError):
            broken.path.unlink()

    def _finish(self, model: str, segment: _Segment) -> None:
        segment.close()
        own = self._finished[model]
        own.append((segment.path, segment.size))
        while own and sum(size for _, size in own) > self._limits[model].keep_bytes:
            with contextlib.suppress(OSError):
                own.popleft()[0].unlink()


def _features(row: _Sampled) -> dict[str, Any]:
    pipeline = row.pipeline
    found = features.of_row(row.text, row.arrays, pipeline.inputs, pipeline.unknown_id)
    answer = features.of_answer(row.summary, pipeline.labels)
    # A name may stand for one artifact after another, and a reference speaks of one only.
    kept = {"at_ms": row.at_ms, "variant": row.variant, "artifact_version": row.version}
    return {**found, **answer, **kept}
