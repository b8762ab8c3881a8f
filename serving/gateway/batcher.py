"""The work-conserving batcher of one variant: callers in, batches out, each caller's own rows back.

One future a request, one persistent task a worker, nothing else. A free worker takes what is
queued at once; which requests share a batch is decided by `serving.core.batching`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from serving.clock import Clock
from serving.contract import Cause
from serving.core.admission import Pace
from serving.core.arrays import PLAIN, Arrays, Layout, merge, split
from serving.core.batching import BatchQueue, Entry
from serving.errors import ErrorKind, RequestError, bad_request
from serving.gateway.deadlines import Deadlines
from serving.gateway.requests import BatchResult, Request, entries_of
from serving.gateway.slots import HangWatch, Slot
from serving.gateway.threads import short_message
from serving.gateway.worker_base import RunNow, Worker, WorkerFailure

__all__ = ["BatchResult", "Batcher"]

log = logging.getLogger(__name__)

_KEY_MASK = (1 << 64) - 1
_MAX_RETRY_AFTER_S = 30


class Batcher:
    """Queues requests for one variant and runs them on its workers.

    Everything is called from one event loop.

    Args:
        name: the variant, for messages.
        max_batch: most rows of a batch; a larger request is split and put together again.
        max_rows: most rows queued. A live request evicts queued shadow work before it is refused.
        max_queue_delay_ms: how long a free worker may wait for a fuller batch; 0 = not at all.
        max_wait_ms: a live request that is expected to wait longer than this, or than its deadline
            allows, is refused when it comes; None = only its deadline counts.
        clock: monotonic time of deadlines and measurements.
        hang_timeout_s: a worker that takes longer over a batch is overdue: its callers fail with
            TIMEOUT and it gets no more until it answers.
        on_batch: called with rows and nanoseconds of every batch that succeeded.
        layout: where the model's tensors have their rows, and which may be filled up with zeros.
        max_bytes: most input bytes of a batch.
        close_check: asked as each batch closes; an error it returns fails what is queued (the
            kill-switch: queued work of a killed candidate goes to the baseline).
    """

    def __init__(
        self,
        name: str,
        *,
        max_batch: int,
        max_rows: int,
        max_queue_delay_ms: float,
        clock: Clock,
        hang_timeout_s: float,
        max_wait_ms: float | None = None,
        on_batch: Callable[[int, int], None] | None = None,
        layout: Layout = PLAIN,
        max_bytes: int = 64 << 20,
        close_check: Callable[[], Exception | None] | None = None,
    ) -> None:
        self.name = name
        self.dropped_cancelled = 0  # queued requests whose caller went away
        self.shed = 0  # live requests refused because they would not fit or would wait too long
        self.shadow_shed = 0  # shadow requests refused or evicted
        self.expired = 0  # requests whose deadline passed while they were queued
        self._queue = BatchQueue(
            max_batch=max_batch,
            max_rows=max_rows,
            max_bytes=max_bytes,
            max_queue_delay_ns=int(max_queue_delay_ms * 1e6),
        )
        self._clock = clock
        self._hangs = HangWatch(clock, int(hang_timeout_s * 1e9))
        self._deadlines = Deadlines(clock, self._deadline_passed)
        self._available = 0
        self._on_batch = on_batch
        self._layout = layout
        self._close_check = close_check
        self._slots: dict[int, Slot] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: deque[Slot] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._due = False
        self._key = secrets.randbits(64)
        self._pace = Pace()
        self._work = Pace()  # by the workers' own time, without their batches of other gateways
        self._max_wait_ns = math.inf if max_wait_ms is None else max_wait_ms * 1e6
        self._outage_key = 0
        self._closed = False

    # ------------------------------------------------------------ state

    @property
    def queue_rows(self) -> int:
        """Rows queued and not yet dispatched."""
        return self._queue.rows

    @property
    def workers_available(self) -> int:
        """Workers that are connected and not hung, busy or not."""
        return self._available

    @property
    def capacity(self) -> float:
        """Rows a second that the workers can do in full batches, whoever's; 0 while that is unknown."""
        return self._work.capacity(self._available)

    @property
    def capacity_at_least(self) -> float:
        """The same, or while it is unknown what batches show at least; 0 while there was no batch at all."""
        return self._work.capacity_at_least(self._available)

    def set_workers(self, workers: Sequence[Worker]) -> None:
        """Replace the workers. One that is left out finishes its batch; closing it is its owner's business."""
        if self._closed:
            return
        wanted = {id(worker): worker for worker in workers}
        for key in [key for key in self._slots if key not in wanted]:
            slot = self._slots.pop(key)
            slot.retired = True
            slot.worker.on_change = None
            slot.wake()
        loop = asyncio.get_running_loop()
        for key, worker in wanted.items():
            if key not in self._slots:
                slot = self._slots[key] = Slot(worker)
                worker.on_change = self._workers_changed
                task = slot.task = loop.create_task(self._feed(slot), name=f"batcher-{self.name}-{worker.name}")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        self._workers_changed()

    # ------------------------------------------------------------ callers

    async def submit(self, inputs: Arrays, rows: int, deadline_ns: int, *, live: bool = True) -> BatchResult:
        """Run one request and return its own rows.

        Args:
            inputs: arrays with `rows` rows each; a request with one that has not runs in a batch of its own.
            deadline_ns: on the clock's monotonic scale; after it the caller is told, whatever its batch does.
            live: False for shadow and reference work, which is shed first.

        Raises:
            RequestError: OVERLOADED (queue full or too slow), DEADLINE, TOO_LARGE (more rows than the queue holds)
                or UNAVAILABLE (closed).
            WorkerFailure: its batch failed, or no worker is there.
        """
        if self._closed:
            raise self._closed_error()
        if not self._available:
            raise self._no_worker()
        now = self._clock.monotonic_ns()
        if self._idle and not self._queue.rows and 0 < rows <= self._queue.max_batch:
            run_now = self._idle[0].worker.run_now
            if run_now is not None:
                return self._run_at_once(run_now, inputs, rows, deadline_ns, now)
        future: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
        request = Request(future, now, self._layout.outputs)
        try:
            request.entries = entries_of(request, inputs, rows, deadline_ns, live, self._layout, self._queue)
            self._admit(request, rows, deadline_ns, live, now)
            self._deadlines.add(deadline_ns, request)
            delay = self._queue.max_queue_delay_ns
            if self._idle and (not delay or self._timer is None or not self._queue.wait_ns(now)):
                self._wake()
            return await future
        except asyncio.CancelledError:
            if self._withdraw(request):
                self.dropped_cancelled += 1
            raise
        finally:
            request.release()

    def _run_at_once(self, run_now: RunNow, inputs: Arrays, rows: int, deadline_ns: int, now: int) -> BatchResult:
        """Run one request while the loop waits, which takes less than the queue, a future and a wake-up would."""
        if deadline_ns <= now:
            self.expired += 1
            raise RequestError(ErrorKind.DEADLINE, f"the deadline passed in {self.name}'s queue")
        if self._close_check is not None and (error := self._close_check()) is not None:
            raise error
        key = self._next_key()
        try:
            outputs = run_now(inputs)
        except WorkerFailure as failure:
            failure.batch_key = key
            raise
        infer_ns = self._clock.monotonic_ns() - now
        self._measured(rows, infer_ns, infer_ns, full=False)
        if self._on_batch is not None:
            self._on_batch(rows, infer_ns)
        return BatchResult(outputs, 0, infer_ns, rows, key)

    def refuse_if_too_large(self, rows: int) -> None:
        """Refuse a request of more rows than the queue ever holds, as `submit` does. Raises `RequestError` TOO_LARGE.

        Its inputs, which a caller who asks first need not make, may take a hundred times the memory of its body.
        """
        if rows > self._queue.max_rows:
            raise RequestError(
                ErrorKind.TOO_LARGE,
                f"a request of {rows} rows is more than the queue of {self.name} holds ({self._queue.max_rows} rows): "
                "send fewer rows a request or raise routing.queue.max_rows",
            )

    def refuse_if_late(self, rows: int, deadline_ns: int) -> None:
        """Refuse a live request of `rows` rows that would wait longer than it may behind other live work.

        `submit` does so itself; a caller who asks before it makes the inputs saves that work. Raises
        `RequestError` OVERLOADED.
        """
        now = self._clock.monotonic_ns()
        wait_ns = self._pace.wait_ns(self._queue.live_rows, self._available, now)
        if not wait_ns:
            return
        allowed_ns = min(self._max_wait_ns, deadline_ns - now - rows * self._pace.row_ns)
        if wait_ns > allowed_ns:
            self.shed += 1
            raise self._overloaded(
                f"{self.name} is expected to begin in {wait_ns / 1e6:.0f} ms, "
                f"the request can wait {max(0.0, allowed_ns) / 1e6:.0f} ms"
            )

    def fail_queued(self, error: Exception) -> int:
        """Fail everything queued and not yet dispatched; a kill re-routes it to the baseline.

        Returns the number of requests.
        """
        owners = {id(entry.owner): entry.owner for entry in self._queue.clear()}
        for request in owners.values():
            self._fail(request, error)
        return len(owners)

    async def close(self) -> None:
        """Fail what is queued or running with UNAVAILABLE and end the tasks. Workers are left open."""
        self._closed = True
        self.fail_queued(self._closed_error())
        for slot in self._slots.values():
            slot.worker.on_change = None
        self._slots.clear()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._disarm()
        self._deadlines.close()
        self._hangs.close()
        # These lead back to the variant that owns us: without them it is freed at once, with its session's memory.
        self._on_batch = self._close_check = None

    # ------------------------------------------------------------ admission

    def _admit(self, request: Request, rows: int, deadline_ns: int, live: bool, now: int) -> None:
        if rows < 1:
            raise bad_request(f"a request to {self.name} has {rows} rows: send at least one")
        self.refuse_if_too_large(rows)
        if live:
            self.refuse_if_late(rows, deadline_ns)
        offer = self._queue.offer(request.entries, now)
        self._expire(offer.expired)
        for entry in offer.evicted:
            if not entry.owner.done:
                self.shadow_shed += 1
                self._fail(entry.owner, self._overloaded())
        if not offer.admitted:
            if live:
                self.shed += 1
            else:
                self.shadow_shed += 1
            raise self._overloaded()

    def _withdraw(self, request: Request) -> bool:
        """Take a request's queued entries out; whether there were any."""
        removed = False
        for entry in request.entries:
            removed |= self._queue.remove(entry)
        return removed

    def _fail(self, request: Request, error: Exception) -> None:
        self._withdraw(request)
        request.fail(error)

    def _expire(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if not entry.owner.done:
                self.expired += 1
                self._fail(entry.owner, RequestError(ErrorKind.DEADLINE, f"the deadline passed in {self.name}'s queue"))

    def _deadline_passed(self, request: Request) -> None:
        if self._withdraw(request):
            self.expired += 1
            request.fail(RequestError(ErrorKind.DEADLINE, f"the deadline passed in {self.name}'s queue"))
        else:
            request.fail(RequestError(ErrorKind.DEADLINE, f"{self.name} did not answer within the deadline"))

    # ------------------------------------------------------------ workers

    async def _feed(self, slot: Slot) -> None:
        worker = slot.worker
        try:
            while not slot.retired:
                if not worker.available:
                    self._wake()  # in case the waking was meant for a worker that can run
                    await self._park(slot)
                    continue
                batch, share = self._next_batch()
                if not batch:
                    self._idle.append(slot)
                    await self._park(slot)
                    continue
                if self._idle and self._queue.rows:
                    self._wake()
                try:
                    await self._run(slot, batch, share)
                except asyncio.CancelledError:  # also those who wait to be run again, each alone
                    for entry in batch:
                        self._fail(entry.owner, self._closed_error())
                    raise
                except Exception as error:
                    log.exception("%s: a batch failed unexpectedly", self.name)
                    for entry in batch:
                        self._fail(entry.owner, WorkerFailure(Cause.ERROR, short_message(error), self._next_key()))
        finally:
            # Its traceback leads back to the slot and so to the session, which would wait for the collector.
            slot.task = None
        self._wake()

    async def _park(self, slot: Slot) -> None:
        slot.waiter = asyncio.get_running_loop().create_future()
        try:
            await slot.waiter
        finally:
            slot.waiter = None
            if slot in self._idle:
                self._idle.remove(slot)

    def _wake(self) -> None:
        if self._idle and self._queue.rows:
            slot = min(self._idle, key=_rank) if len(self._idle) > 1 else self._idle[0]
            self._idle.remove(slot)
            slot.wake()

    def _next_batch(self) -> tuple[Sequence[Entry], int]:
        """Close a batch now, or arrange to be woken when one should be; with it, a worker's share of what waits."""
        now = self._clock.monotonic_ns()
        if self._close_check is not None and self._queue.rows and (error := self._close_check()) is not None:
            self.fail_queued(error)
            return (), 0
        wait = self._queue.wait_ns(now)
        if wait is None:
            self._disarm()
            return (), 0
        if wait and not self._due:
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(wait / 1e9, self._timer_fired)
            return (), 0
        self._disarm()
        waiting = self._queue.live_rows or self._queue.rows
        share = -(-(waiting + self._pace.running_rows) // max(1, self._available))
        batch, expired = self._queue.take(now, share)
        if expired:
            self._expire(expired)
        return batch, share

    def _timer_fired(self) -> None:
        self._timer = None
        self._due = True
        self._wake()

    def _disarm(self) -> None:
        self._due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _workers_changed(self) -> None:
        self._available = sum(slot.worker.available for slot in self._slots.values())
        if self._available:
            self._outage_key = 0
        else:
            self.fail_queued(self._no_worker())
        for slot in self._slots.values():
            if slot.worker.available and slot not in self._idle:
                slot.wake()

    async def _run(self, slot: Slot, batch: Sequence[Entry], share: int) -> None:
        failure = await self._attempt(slot, batch, share)
        if failure is None:
            return
        if failure.cause is not Cause.ERROR or len(batch) == 1:
            for entry in batch:
                self._fail(entry.owner, failure)
            return
        # One of them may be poison: each again on its own, so that only that one fails. This ends with the last
        # deadline of the batch, since who is past its own is not run again.
        for entry in batch:
            if entry.owner.done:
                continue
            if not entry.live and self._queue.live_rows:
                self.shadow_shed += 1
                self._fail(entry.owner, self._overloaded(f"{self.name} has live work to do first"))
            elif entry.deadline_ns <= self._clock.monotonic_ns():
                self._expire((entry,))
            elif self._close_check is not None and (error := self._close_check()) is not None:
                self._fail(entry.owner, error)
            elif (again := await self._attempt(slot, (entry,), 0)) is not None:
                self._fail(entry.owner, again)

    async def _attempt(self, slot: Slot, batch: Sequence[Entry], share: int) -> WorkerFailure | None:
        """Run a batch and answer its callers. `share`: rows that were this worker's part; 0: these are run again."""
        worker, key = slot.worker, self._next_key()
        closed_ns = self._clock.monotonic_ns()
        self._hangs.began(slot, closed_ns)
        rows = [entry.rows for entry in batch]
        total = sum(rows)
        left = self._queue.live_rows if batch[0].live else self._queue.rows
        # One that ended with its share, the rest being for workers that are free, says nothing of a backlog.
        full = share > 0 and (total >= self._queue.max_batch or (left > 0 and total < share))
        self._pace.started(key, total, closed_ns)
        try:
            inputs = merge([entry.inputs for entry in batch], self._layout.inputs)
            outputs = await worker.run(inputs)
        except WorkerFailure as failure:
            failure.batch_key = key
            return failure
        except asyncio.CancelledError:
            if slot.overdue and slot.task is not None and not slot.task.uncancel():
                return WorkerFailure(
                    Cause.TIMEOUT, f"{worker.name} has not answered a batch for {self._hangs.limit_ns / 1e9:g} s", key
                )
            raise
        except Exception as error:
            log.exception("%s: the worker %s raised", self.name, worker.name)
            return WorkerFailure(Cause.ERROR, short_message(error), key)
        finally:
            self._hangs.ended(slot)
            self._pace.ended(key)
        parts = split(outputs, rows, self._layout.outputs)
        if parts is None:
            return WorkerFailure(Cause.ERROR, f"{worker.name} returned outputs without one row for each input row", key)
        infer_ns = self._clock.monotonic_ns() - closed_ns
        self._measured(total, infer_ns, worker.ran_ns or infer_ns, full=full)
        for entry, part in zip(batch, parts, strict=True):
            entry.owner.deliver(entry, part, closed_ns, infer_ns, total, key)
        if self._on_batch is not None:
            self._on_batch(total, infer_ns)
        return None

    def _measured(self, rows: int, infer_ns: int, ran_ns: int, *, full: bool) -> None:
        """Learn from a batch that succeeded: how long it took here, and how long its worker ran it."""
        self._pace.measured(rows, infer_ns, full=full)
        self._work.measured(rows, ran_ns, full=full)

    # ------------------------------------------------------------ errors

    def _next_key(self) -> int:
        self._key = (self._key + 1) & _KEY_MASK or 1
        return self._key

    def _no_worker(self) -> WorkerFailure:
        # One key for all that one outage costs: a worker that dies is one event, however many ask for it meanwhile.
        key = self._outage_key = self._outage_key or self._next_key()
        if any(slot.worker.hung for slot in self._slots.values()):
            message = f"{self.name} is quarantined: its workers are overdue with a batch"
            return WorkerFailure(Cause.TIMEOUT, message, key)
        return WorkerFailure(Cause.DIED, f"{self.name} has no worker: none is connected", key)

    def _overloaded(self, message: str = "") -> RequestError:
        wait_s = self._pace.wait_ns(self._queue.rows, self._available, self._clock.monotonic_ns()) / 1e9
        return RequestError(
            ErrorKind.OVERLOADED,
            message or f"the queue of {self.name} is full ({self._queue.rows} of {self._queue.max_rows} rows)",
            retry_after_s=min(_MAX_RETRY_AFTER_S, max(1, math.ceil(wait_s))),
        )

    def _closed_error(self) -> RequestError:
        return RequestError(ErrorKind.UNAVAILABLE, f"{self.name} is shutting down", retry_after_s=1)


def _rank(slot: Slot) -> int:
    return slot.worker.rank
