"""One variant as a gateway sees it: its artifact, its batcher, its workers, its statistics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from serving import contract
from serving.clock import Clock
from serving.config import QueueConfig, VariantConfig
from serving.contract import Cause, VariantEntry
from serving.errors import ErrorKind, RequestError
from serving.gateway.batcher import Batcher, BatchResult
from serving.gateway.recorder import Recorder
from serving.gateway.workers import HandleWorker, LocalWorker, SocketPool, Worker, WorkerFailure
from serving.registry.manifest import Manifest
from serving.runtimes.base import open_session
from serving.runtimes.pipeline import Pipeline

#: Calls a variant over its Serve handle with one frame; used between nodes.
FrameCall = Callable[[bytes], Awaitable[bytes]]


class Fault(Exception):
    """`variant` did not give a valid answer in time."""

    def __init__(
        self, variant: str, cause: Cause, message: str, *, batch_key: int = 0, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.variant = variant
        self.cause = cause
        self.message = message
        self.batch_key = batch_key
        self.retry_after_s = retry_after_s

    def as_error(self, *, shedding: bool = False) -> RequestError:
        """What a client is told if nobody else can answer. `shedding`: after a kill, excess is 503."""
        kind = _KINDS[self.cause]
        if shedding and kind is ErrorKind.OVERLOADED:
            kind = ErrorKind.UNAVAILABLE
        retry = self.retry_after_s or (1 if kind in (ErrorKind.OVERLOADED, ErrorKind.UNAVAILABLE) else None)
        return RequestError(kind, self.message, retry)


_KINDS: dict[Cause, ErrorKind] = {
    Cause.NONE: ErrorKind.INTERNAL,
    Cause.ERROR: ErrorKind.INTERNAL,
    Cause.TIMEOUT: ErrorKind.DEADLINE,
    Cause.INVALID_OUTPUT: ErrorKind.INTERNAL,
    Cause.DIED: ErrorKind.UNAVAILABLE,
    Cause.OVERLOADED: ErrorKind.OVERLOADED,
    Cause.KILLED: ErrorKind.UNAVAILABLE,
}


@dataclass
class VariantStats:
    """Counters of this gateway since it started, for the statistics extension. Times in ns."""

    success: int = 0
    success_ns: int = 0
    fail: int = 0
    fail_ns: int = 0
    queue_ns: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    rows: int = 0
    last_ms: int = 0
    batches: dict[int, tuple[int, int]] = field(default_factory=dict)

    def batch(self, rows: int, infer_ns: int) -> None:
        count, total = self.batches.get(rows, (0, 0))
        self.batches[rows] = (count + 1, total + infer_ns)


class VariantPlane:
    """Runs requests on one variant.

    Args:
        entry: the variant as published.
        manifest, folder: its verified artifact.
        config: threads, timeouts and placement from the configuration file.
        socket_dir: where its replicas announce themselves, if it is isolated.
        remote: calls it over the Serve handle, if that path is in use.
        dropped: asked when a batch closes; an exception it returns fails the batch (the kill-switch).
    """

    def __init__(
        self,
        model: str,
        entry: VariantEntry,
        manifest: Manifest,
        folder: Path,
        *,
        config: VariantConfig,
        queue: QueueConfig,
        recorder: Recorder,
        clock: Clock,
        socket_dir: Path,
        remote: FrameCall | None,
        dropped: Callable[[], Exception | None] | None = None,
    ) -> None:
        self.model = model
        self.entry = entry
        self.manifest = manifest
        self.pipeline = Pipeline(manifest, folder)
        self.stats = VariantStats()
        self._recorder = recorder
        self._clock = clock
        self.batcher = Batcher(
            entry.name,
            max_batch=entry.max_batch,
            max_rows=queue.max_rows,
            max_queue_delay_ms=queue.max_queue_delay_ms,
            clock=clock,
            hang_timeout_s=config.hang_timeout_s,
            on_batch=self._on_batch,
            close_check=dropped,
            pad_inputs=frozenset(spec.name for spec in manifest.session.inputs)
            if manifest.preprocess.kind == "text"
            else frozenset(),
        )
        self._own: list[Worker] = []
        self._pool: SocketPool | None = None
        if entry.placement == "colocated":
            session = open_session(manifest, folder, runtime=entry.runtime, threads=config.threads)
            self._own.append(LocalWorker(f"{entry.name}@gateway", session))
        elif remote is not None:
            self._own.append(HandleWorker(f"{entry.name}@handle", remote))
        if entry.placement == "isolated" and config.transport == "auto":
            self._pool = SocketPool(socket_dir, clock=clock, on_change=self._on_workers, name=entry.name)

    async def start(self) -> None:
        """Begin to take requests, and to watch for replicas."""
        self.batcher.set_workers(self._own)
        if self._pool is not None:
            await self._pool.start()

    @property
    def ready(self) -> bool:
        return self.batcher.workers_available > 0

    async def run(
        self, inputs: dict[str, np.ndarray], rows: int, deadline_ns: int, *, live: bool = True
    ) -> BatchResult:
        """Answer session inputs, checked.

        Args:
            inputs: session tensors, first axis `rows`.
            deadline_ns: CLOCK_MONOTONIC time after which nobody wants the answer.
            live: False for shadow and reference work, which is shed first.

        Raises:
            Fault: no valid answer; says whose fault it is.
        """
        name = self.entry.name
        left_s = (deadline_ns - self._clock.monotonic_ns()) / 1e9
        try:
            async with asyncio.timeout(left_s):
                result = await self.batcher.submit(inputs, rows, deadline_ns, live=live)
        except TimeoutError:
            raise Fault(name, Cause.TIMEOUT, f"{name} did not answer within the deadline") from None
        except WorkerFailure as failure:
            message = f"{name}: {failure.message}"
            raise Fault(name, failure.cause, message, batch_key=failure.batch_key) from failure
        except RequestError as error:
            if error.kind in (ErrorKind.BAD_REQUEST, ErrorKind.TOO_LARGE):
                raise  # the client's doing: nobody is to blame
            cause = Cause.TIMEOUT if error.kind is ErrorKind.DEADLINE else Cause.OVERLOADED
            raise Fault(name, cause, error.message, retry_after_s=error.retry_after_s) from None
        wrong = self.pipeline.check(result.outputs, rows)
        if wrong is not None:
            message = f"{name} gave an invalid output: {wrong}"
            raise Fault(name, Cause.INVALID_OUTPUT, message, batch_key=result.batch_key)
        return result

    def drop_queued(self) -> None:
        """Fail what is queued and not yet dispatched: the variant may not answer any more."""
        self.batcher.fail_queued(WorkerFailure(Cause.KILLED, "taken out of traffic"))

    def publish_gauges(self) -> None:
        """Write queue depth and worker count for the monitor."""
        name = self.entry.name
        self._recorder.gauge(self.model, name, contract.C_QUEUE_ROWS, self.batcher.queue_rows)
        self._recorder.gauge(self.model, name, contract.C_WORKERS, self.batcher.workers_available)
        self._recorder.gauge(self.model, name, contract.C_SHED, self.batcher.shed)
        self._recorder.gauge(self.model, name, contract.C_DROPPED_CANCELLED, self.batcher.dropped_cancelled)

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()
        await self.batcher.close()
        for worker in self._own:
            await worker.close()

    def _on_workers(self, local: Sequence[Worker]) -> None:
        # The Serve handle reaches replicas on other nodes; it would only be a slower way to those on this one.
        self.batcher.set_workers(local or self._own)

    def _on_batch(self, rows: int, infer_ns: int) -> None:
        self.stats.batch(rows, infer_ns)
        self._recorder.batch(self.model, self.entry.name, rows)
