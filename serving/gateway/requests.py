"""One caller of a batcher: what it waits for and how its answer is put together."""

from __future__ import annotations

import asyncio

import msgspec
import numpy as np

from serving.contract import Cause
from serving.core.arrays import PLAIN, Arrays, Axes, Layout, chunk_rows, join, rows_of, shape_of
from serving.core.batching import BatchQueue, Entry
from serving.errors import RequestError
from serving.gateway.worker_base import WorkerFailure


class BatchResult(msgspec.Struct):
    """What one caller gets.

    Attributes:
        outputs: this caller's rows only, as views of the batch's outputs.
        queue_ns: time from `submit` to the close of its (first) batch.
        infer_ns: time from then to its (last) answer, the hop to the worker included.
        batch_rows: rows of the batch it ran in (the largest one of a split request).
        batch_key: the same for all requests of one batch.
    """

    outputs: dict[str, np.ndarray]
    queue_ns: int
    infer_ns: int
    batch_rows: int
    batch_key: int


class Request:
    """A caller: its future, its entries and, of a split request, the parts that have come back."""

    __slots__ = ("_axes", "_batch_rows", "_first_ns", "_parts", "_submitted_ns", "entries", "future")

    def __init__(self, future: asyncio.Future[BatchResult], submitted_ns: int, axes: Axes = PLAIN.outputs) -> None:
        self.future: asyncio.Future[BatchResult] | None = future
        self.entries: list[Entry] = []
        self._submitted_ns = submitted_ns
        self._axes = axes
        self._parts: dict[int, dict[str, np.ndarray]] | None = None
        self._first_ns = 0
        self._batch_rows = 0

    @property
    def done(self) -> bool:
        """Whether the caller has its answer or is gone."""
        return self.future is None or self.future.done()

    def release(self) -> None:
        """Let go of inputs and answer, once the caller has ended.

        Entries lead back to here, so they would wait for the collector; a deadline that is still watched would keep
        the answer until it passes.
        """
        self.future = None
        self.entries = []
        self._parts = None

    def deliver(
        self, entry: Entry, share: dict[str, np.ndarray], closed_ns: int, infer_ns: int, rows: int, key: int
    ) -> None:
        """Take one entry's own rows of a batch of `rows` rows; the last one answers the caller."""
        future = self.future
        if future is None or future.done():
            return
        if len(self.entries) == 1:
            future.set_result(BatchResult(share, closed_ns - self._submitted_ns, infer_ns, rows, key))
            return
        if self._parts is None:
            self._parts, self._first_ns = {}, closed_ns
        self._parts[entry.seq] = share
        self._batch_rows = max(self._batch_rows, rows)
        self._first_ns = min(self._first_ns, closed_ns)
        if len(self._parts) < len(self.entries):
            return
        parts = [self._parts[mine.seq] for mine in self.entries]
        try:
            outputs = join(parts, self._axes)
        except (KeyError, ValueError) as error:
            self.fail(WorkerFailure(Cause.ERROR, f"the parts of the answer do not fit: {error}", key))
            return
        queue_ns, infer_ns = self._first_ns - self._submitted_ns, closed_ns + infer_ns - self._first_ns
        future.set_result(BatchResult(outputs, queue_ns, infer_ns, self._batch_rows, key))

    def fail(self, error: Exception) -> None:
        """Fail the caller, unless it has its answer or is gone."""
        if self.future is not None and not self.future.done():
            self.future.set_exception(_own(error))


def entries_of(
    request: Request, inputs: Arrays, rows: int, deadline_ns: int, live: bool, layout: Layout, queue: BatchQueue
) -> list[Entry]:
    """What `queue` is to hold of a request: one entry, or several of at most a batch each."""
    shape = shape_of(inputs, rows, layout)
    if shape.signature is None:
        return [Entry(request, inputs, rows, shape.bytes, object(), deadline_ns, live)]
    step = chunk_rows(rows, shape.bytes, queue.max_batch, queue.max_bytes)
    if rows <= step:
        return [Entry(request, inputs, rows, shape.bytes, shape.signature, deadline_ns, live, shape.width)]
    return [
        Entry(
            request,
            rows_of(inputs, at, at + step, layout.inputs),
            min(step, rows - at),
            shape.bytes * min(step, rows - at) // rows,
            shape.signature,
            deadline_ns,
            live,
            shape.width,
        )
        for at in range(0, rows, step)
    ]


def _own(error: Exception) -> Exception:
    """An instance for one caller: a raised exception collects that caller's traceback."""
    if isinstance(error, WorkerFailure):
        return WorkerFailure(error.cause, error.message, error.batch_key)
    if isinstance(error, RequestError):
        return RequestError(error.kind, error.message, error.retry_after_s)
    return error
