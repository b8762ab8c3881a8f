"""One variant as a gateway sees it: its artifact, its batcher, its workers, its statistics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from serving import contract
from serving.clock import Clock
from serving.config import QueueConfig, VariantConfig
from serving.config_monitoring import GuardsConfig
from serving.contract import Cause, VariantEntry
from serving.errors import ErrorKind, RequestError
from serving.gateway.auditor import auditor_of
from serving.gateway.batcher import Batcher
from serving.gateway.offload import offloaded
from serving.gateway.recorder import Recorder, Trace
from serving.gateway.workers import HandleWorker, LocalWorker, SocketPool, Worker, WorkerFailure
from serving.registry.manifest import Manifest
from serving.runtimes.audit import Audit
from serving.runtimes.base import open_session
from serving.runtimes.pipeline import Pipeline

log = logging.getLogger(__name__)

#: Rows and bytes of text up to which tokenizing runs on the event loop: a thread hop costs more.
INLINE_ROWS, INLINE_BYTES = 8, 32_768

POLL_S = 0.05
#: How often a variant without a replica on this node looks whether there are other nodes, seconds.
SEEK_S = 2.0

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
        self.first: Fault | None = None  # the candidate's, if this is the baseline's that followed

    def as_error(self, *, shedding: bool = False) -> RequestError:
        """What a client is told if nobody else can answer. `shedding`: after a kill, excess is 503."""
        kind = _KINDS[self.cause]
        if shedding and kind is ErrorKind.OVERLOADED:
            kind = ErrorKind.UNAVAILABLE
        retry = self.retry_after_s or (1 if kind in (ErrorKind.OVERLOADED, ErrorKind.UNAVAILABLE) else None)
        return RequestError(kind, self.message, retry)


#: What a batcher's refusal means; a variant that is closing was taken out of traffic.
_CAUSES = {ErrorKind.DEADLINE: Cause.TIMEOUT, ErrorKind.UNAVAILABLE: Cause.KILLED}

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

    def succeeded(self, trace: Trace, total_ns: int, wall_ms: int) -> None:
        self.success += 1
        self.success_ns += total_ns
        self.queue_ns += trace.queue_ns
        self.input_ns += trace.preprocess_ns
        self.infer_ns += trace.infer_ns
        self.output_ns += trace.postprocess_ns
        self.rows += trace.rows
        self.last_ms = wall_ms

    def failed(self, total_ns: int) -> None:
        self.fail += 1
        self.fail_ns += total_ns

    def batch(self, rows: int, infer_ns: int) -> None:
        count, total = self.batches.get(rows, (0, 0))
        self.batches[rows] = (count + 1, total + infer_ns)


class Answer(NamedTuple):
    """A checked answer: what the session gave, what the client gets, and how long it took (ns)."""

    outputs: dict[str, np.ndarray]
    tensors: dict[str, np.ndarray]
    queue_ns: int
    infer_ns: int
    output_ns: int
    batch_key: int


class VariantPlane:
    """Runs requests on one variant.

    Args:
        entry: the variant as published.
        manifest, folder: its verified artifact.
        config: threads, timeouts and placement from the configuration file.
        socket_dir: where its replicas announce themselves, if it is isolated.
        remote: gives what calls it over the Serve handle, or None while that path is of no use (blocking).
        gateways: gateway processes that share its workers.
        guards: which audits of a colocated variant are wanted (an isolated one is audited by its replicas); None: none.
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
        remote: Callable[[], FrameCall | None] | None,
        gateways: int = 1,
        guards: GuardsConfig | None = None,
        dropped: Callable[[], Exception | None] | None = None,
    ) -> None:
        self.model = model
        self.entry = entry
        self.manifest = manifest
        self.pipeline = Pipeline(manifest, folder)
        self.stats = VariantStats()
        self._recorder = recorder
        self._clock = clock
        self._told = (0, 0)  # what was last published of the batcher's counters
        self._sharers = gateways if entry.placement == "isolated" else 1
        self._users = 0  # requests that it is to answer
        self._drained: asyncio.Event | None = None  # who waits until there is none
        self.batcher = Batcher(
            entry.name,
            max_batch=entry.max_batch,
            max_rows=queue.max_rows,
            max_queue_delay_ms=queue.max_queue_delay_ms,
            max_wait_ms=queue.max_wait_ms,
            clock=clock,
            hang_timeout_s=config.hang_timeout_s,
            on_batch=self._on_batch,
            close_check=dropped,
            layout=manifest.layout,
        )
        self._own: list[Worker] = []
        self._pool: SocketPool | None = None
        self._remote = remote
        self._seeking: asyncio.Task[None] | None = None
        if entry.placement == "colocated":
            session = open_session(manifest, folder, runtime=entry.runtime, threads=config.threads)
            sessions = [session, *(session.share() for _ in range(entry.replicas - 1))]
            auditor = auditor_of(manifest, folder, guards, clock) if guards is not None else None
            self._own += [LocalWorker(f"{entry.name}@gateway-{n}", each, auditor) for n, each in enumerate(sessions)]
        elif remote is not None:
            self._own += self._handles(remote())
        if entry.placement == "isolated" and config.transport == "auto":
            self._pool = SocketPool(socket_dir, clock=clock, on_change=self._on_workers, name=entry.name)

    async def start(self) -> None:
        """Begin to take requests, and to watch for replicas."""
        self._set_workers(self._own)
        if self._pool is not None:
            await self._pool.start()

    @property
    def ready(self) -> bool:
        return self.batcher.workers_available > 0

    @property
    def capacity(self) -> float:
        """Rows a second that it can do for this gateway in full batches; 0 while none has run."""
        return self.batcher.capacity / self._sharers

    @contextmanager
    def used(self) -> Iterator[None]:
        """While a request is prepared for it and waits for its answer; `drain` waits for these."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._drained is not None and not self._users:
                self._drained.set()

    async def run(self, inputs: dict[str, np.ndarray], rows: int, deadline_ns: int, *, live: bool = True) -> Answer:
        """Answer session inputs: batched, run, checked and postprocessed.

        Args:
            inputs: session tensors, first axis `rows`.
            deadline_ns: CLOCK_MONOTONIC time after which nobody wants the answer.
            live: False for shadow and reference work, which is shed first.

        Raises:
            Fault: no valid answer; says whose fault it is.
        """
        name = self.entry.name
        try:
            result = await self.batcher.submit(inputs, rows, deadline_ns, live=live)
        except WorkerFailure as failure:
            message = f"{name}: {failure.message}"
            raise Fault(name, failure.cause, message, batch_key=failure.batch_key) from failure
        except RequestError as error:
            if error.kind in (ErrorKind.BAD_REQUEST, ErrorKind.TOO_LARGE):
                raise  # the client's doing: nobody is to blame
            raise self._refusal(error) from None
        began = self._clock.monotonic_ns()
        try:
            wrong = self.pipeline.check(result.outputs, rows)
            tensors = self.pipeline.postprocess(result.outputs) if wrong is None else {}
        except Exception as error:
            log.exception("%s: cannot interpret what it gave", name)
            message = f"{name}: its output cannot be interpreted ({type(error).__name__})"
            raise Fault(name, Cause.ERROR, message, batch_key=result.batch_key) from error
        if wrong is not None:
            message = f"{name} gave an invalid output: {wrong}"
            raise Fault(name, Cause.INVALID_OUTPUT, message, batch_key=result.batch_key)
        output_ns = self._clock.monotonic_ns() - began
        return Answer(result.outputs, tensors, result.queue_ns, result.infer_ns, output_ns, result.batch_key)

    def refuse_if_late(self, rows: int, deadline_ns: int) -> None:
        """Refuse a request for which there is no time, before its inputs are made. Raises `Fault` OVERLOADED."""
        try:
            self.batcher.refuse_if_late(rows, deadline_ns)
        except RequestError as error:
            raise self._refusal(error) from None

    def _refusal(self, error: RequestError) -> Fault:
        cause = _CAUSES.get(error.kind, Cause.OVERLOADED)
        return Fault(self.entry.name, cause, error.message, retry_after_s=error.retry_after_s)

    async def preprocess(self, inputs: dict[str, np.ndarray], rows: int, deadline_ns: int) -> dict[str, np.ndarray]:
        """Client tensors to session tensors; off the event loop if there is much to tokenize.

        Raises:
            RequestError: they are the client's mistake.
            Fault: TIMEOUT, the deadline passed first; ERROR, it cannot make of them what others may.
        """
        if self.manifest.preprocess.kind == "none":
            return inputs
        few = rows <= INLINE_ROWS and sum(len(text) for data in inputs.values() for text in data.flat) <= INLINE_BYTES
        name, left_s = self.entry.name, (deadline_ns - self._clock.monotonic_ns()) / 1e9
        make = partial(self.pipeline.preprocess, inputs)
        try:
            return make() if few else await offloaded(make, left_s)
        except RequestError:
            raise
        except TimeoutError:
            raise Fault(name, Cause.TIMEOUT, f"the deadline passed before the text for {name} was tokenized") from None
        except Exception as error:
            log.exception("%s: cannot tokenize a text", name)
            message = f"{name}: the text cannot be tokenized ({type(error).__name__})"
            raise Fault(name, Cause.ERROR, message) from error

    async def warm(self, limit_s: float) -> None:
        """Wait until it has a worker, at most `limit_s` seconds."""
        for _ in range(int(limit_s / POLL_S)):
            if self.ready:
                return
            await asyncio.sleep(POLL_S)

    async def drain(self, limit_s: float) -> None:
        """Wait until nobody uses it any more, at most `limit_s` seconds."""
        if self._users:
            self._drained = asyncio.Event()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._drained.wait(), limit_s)

    def drop_queued(self) -> None:
        """Fail what is queued and not yet dispatched: the variant may not answer any more."""
        self.batcher.fail_queued(WorkerFailure(Cause.KILLED, "taken out of traffic"))

    def publish_gauges(self) -> None:
        """Write queue depth, worker count, capacity and what was shed for the monitor."""
        name = self.entry.name
        self._recorder.gauge(self.model, name, contract.C_QUEUE_ROWS, self.batcher.queue_rows)
        self._recorder.gauge(self.model, name, contract.C_WORKERS, self.batcher.workers_available)
        self._recorder.gauge(
            self.model, name, contract.C_CAPACITY, int(self.batcher.capacity_at_least / self._sharers * 1000)
        )
        now = (self.batcher.shed, self.batcher.dropped_cancelled)
        for cell, count, told in zip((contract.C_SHED, contract.C_DROPPED_CANCELLED), now, self._told, strict=True):
            if count > told:
                self._recorder.count(self.model, name, cell, count - told)
        self._told = now

    async def close(self) -> None:
        if self._seeking is not None:
            self._seeking.cancel()
        if self._pool is not None:
            await self._pool.close()
        await self.batcher.close()
        for worker in self._own:
            await worker.close()

    def _on_workers(self, local: Sequence[Worker]) -> None:
        # The Serve handle reaches replicas on other nodes; it would only be a slower way to those on this one.
        self._set_workers(local or self._own)
        if not local and not self._own and (self._seeking is None or self._seeking.done()):
            self._seeking = asyncio.get_running_loop().create_task(self._seek())

    async def _seek(self) -> None:
        """Reach the replicas of other nodes, which may have joined since this was opened."""
        remote, pool = self._remote, self._pool
        while remote is not None and pool is not None and not pool.workers:
            try:
                self._own += self._handles(await asyncio.to_thread(remote))
            except Exception:
                log.exception("%s: looking for other nodes failed", self.entry.name)
            if self._own:
                self._on_workers(pool.workers)
                return
            await asyncio.sleep(SEEK_S)

    def _handles(self, call: FrameCall | None) -> list[Worker]:
        if call is None:
            return []
        return [HandleWorker(f"{self.entry.name}@handle-{n}", call) for n in range(self.entry.replicas)]

    def _set_workers(self, workers: Sequence[Worker]) -> None:
        for worker in workers:
            worker.on_audits = self._on_audits
        self.batcher.set_workers(workers)

    def _on_audits(self, audits: list[Audit]) -> None:
        for audit in audits:
            self._recorder.audit(self.model, self.entry.name, audit)

    def _on_batch(self, rows: int, infer_ns: int) -> None:
        self.stats.batch(rows, infer_ns)
        self._recorder.batch(self.model, self.entry.name, rows)
