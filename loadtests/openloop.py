"""Load generators that tell the truth about latency.

`OpenLoop` sends at scheduled moments whether or not earlier answers have come, and measures
every latency from the *scheduled* moment: a server that stalls is charged for the requests
that real users would have sent meanwhile (no coordinated omission). What could not be sent
because too much was in flight is counted, never silently left out. `ClosedLoop` keeps N
connections busy and measures the most that the server can do.

    python -m loadtests.openloop http://127.0.0.1:8000 --model moderation --rate 100 --seconds 30 \
        --data deployments/quickstart/data
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass

from loadtests.percentiles import Histogram
from loadtests.transport import HttpTransport, Request, Response, Transport, TransportError
from serving.clock import Clock, SystemClock

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request. Times are CLOCK_MONOTONIC nanoseconds; `finished_wall_ns` is Unix time."""

    request: Request
    scheduled_ns: int
    started_ns: int
    finished_ns: int
    finished_wall_ns: int
    response: Response | None
    error: str | None = None

    @property
    def latency_us(self) -> float:
        """Microseconds from the scheduled moment to the whole answer."""
        return (self.finished_ns - self.scheduled_ns) / 1000

    @property
    def ok(self) -> bool:
        return self.response is not None and 200 <= self.response.status < 300

    @property
    def code(self) -> str:
        """The HTTP status, or the cause of there being none."""
        return str(self.response.status) if self.response is not None else str(self.error)

    @property
    def variant(self) -> str:
        return self.header("x-canarium-variant")

    @property
    def reason(self) -> str:
        return self.header("x-canarium-reason")

    def header(self, name: str) -> str:
        return self.response.headers.get(name, "") if self.response is not None else ""


class Recorder:
    """Latencies in total and by (variant, reason), and everything that went wrong. Memory is bounded
    by the number of distinct variants, reasons and codes, not by the number of requests."""

    def __init__(self) -> None:
        self.all = Histogram()
        self.by_answer: dict[tuple[str, str], Histogram] = {}
        self.codes: Counter[str] = Counter()
        self.unsent = 0
        self.first_ns: int | None = None
        self.last_ns: int | None = None

    def add(self, outcome: Outcome) -> None:
        self.first_ns = outcome.scheduled_ns if self.first_ns is None else self.first_ns
        self.last_ns = outcome.finished_ns
        self.codes[outcome.code] += 1
        self.all.add(outcome.latency_us)
        if outcome.ok:
            key = (outcome.variant or "?", outcome.reason or "?")
            self.by_answer.setdefault(key, Histogram()).add(outcome.latency_us)

    @property
    def failures(self) -> int:
        """Requests without a 2xx answer, those that were never sent not among them."""
        return sum(count for code, count in self.codes.items() if not (len(code) == 3 and code.startswith("2")))

    @property
    def seconds(self) -> float:
        if self.first_ns is None or self.last_ns is None:
            return 0.0
        return (self.last_ns - self.first_ns) / 1e9

    @property
    def rate(self) -> float:
        """Answers a second, from the first scheduled moment to the last answer."""
        return self.all.count / self.seconds if self.seconds > 0 else 0.0


class _Loop:
    """What both generators share: sending one request and recording its outcome."""

    def __init__(
        self,
        target: str | Transport,
        requests: Iterable[Request],
        *,
        on_response: Callable[[Outcome], None] | None,
        timeout_s: float,
        clock: Clock | None,
    ) -> None:
        self._transport = HttpTransport(target, timeout_s=timeout_s) if isinstance(target, str) else target
        self._owned = isinstance(target, str)
        self._requests: Iterator[Request] = iter(requests)
        self._on_response = on_response
        self._clock = clock or SystemClock()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self.recorder = Recorder()

    def start(self) -> None:
        """Begin to send, in the running event loop."""
        if self._task is not None:
            raise RuntimeError("this generator was started before; make another one")
        self._task = asyncio.create_task(self._run())

    async def wait(self) -> None:
        """Until the requests or the time are used up and every answer has come. Raises what the callback raised."""
        if self._task is not None:
            await self._task

    async def stop(self) -> Recorder:
        """Send no more, wait for the answers under way, and return what was recorded."""
        self._stopping = True
        try:
            await self.wait()
        finally:
            if self._owned:
                await self._transport.close()
        return self.recorder

    async def _run(self) -> None:
        raise NotImplementedError

    async def _send(self, request: Request, scheduled_ns: int) -> None:
        started = self._clock.monotonic_ns()
        response, error = None, None
        try:
            response = await self._transport.send(request)
        except TransportError as failure:
            error = str(failure)
        outcome = Outcome(
            request, scheduled_ns, started, self._clock.monotonic_ns(), self._clock.wall_ns(), response, error
        )
        self.recorder.add(outcome)
        if self._on_response is not None:
            self._on_response(outcome)


class OpenLoop(_Loop):
    """Arrivals at a fixed rate, independent of the answers.

    Args:
        target: `http://host:port`, or a transport.
        requests: what to send, in order; sending ends when it does.
        rate: arrivals a second, over 0.
        poisson: exponential gaps (independent users) instead of constant ones.
        seconds: how long to send; None until `stop` or the end of `requests`.
        max_inflight: more unanswered requests than this are not sent but counted in `recorder.unsent`.
        timeout_s: limit on each answer, seconds, when `target` is an address.
        on_response: called with every `Outcome` in the event loop; must not block.
        seed: of the exponential gaps.
    """

    def __init__(
        self,
        target: str | Transport,
        requests: Iterable[Request],
        rate: float,
        *,
        poisson: bool = True,
        seconds: float | None = None,
        max_inflight: int = 512,
        timeout_s: float = 10.0,
        on_response: Callable[[Outcome], None] | None = None,
        seed: int = 0,
        clock: Clock | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        if rate <= 0:
            raise ValueError(f"rate: {rate:g} must be over 0 requests a second")
        super().__init__(target, requests, on_response=on_response, timeout_s=timeout_s, clock=clock)
        self.rate = rate
        self._poisson, self._seconds, self._max_inflight = poisson, seconds, max_inflight
        self._random, self._sleep = random.Random(seed), sleep
        self._inflight: set[asyncio.Task[None]] = set()
        self._broken: BaseException | None = None

    @property
    def inflight(self) -> int:
        return len(self._inflight)

    async def _run(self) -> None:
        start = self._clock.monotonic_ns()
        end = None if self._seconds is None else start + int(self._seconds * 1e9)
        due = start
        for request in self._requests:
            due += int(self._gap() * 1e9)
            if end is not None and due >= end:
                break
            await self._until(due)
            if self._stopping or self._broken is not None:
                break
            if len(self._inflight) >= self._max_inflight:
                self.recorder.unsent += 1
                continue
            task = asyncio.create_task(self._send(request, due))
            self._inflight.add(task)
            task.add_done_callback(self._done)
        while self._inflight:  # bounded by the transport's time limit
            await asyncio.wait(set(self._inflight))
        if self._broken is not None:
            raise self._broken

    async def _until(self, due: int) -> None:
        """Sleep to a moment, in steps of at most 0.2 s so that `stop` is noticed."""
        while not self._stopping and (left := due - self._clock.monotonic_ns()) > 0:
            await self._sleep(min(left / 1e9, 0.2))

    def _gap(self) -> float:
        return self._random.expovariate(self.rate) if self._poisson else 1 / self.rate

    def _done(self, task: asyncio.Task[None]) -> None:
        self._inflight.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._broken = task.exception()


class ClosedLoop(_Loop):
    """`connections` users who each send as soon as their last answer came: throughput, not user latency.

    Args: as for `OpenLoop`.
    """

    def __init__(
        self,
        target: str | Transport,
        requests: Iterable[Request],
        connections: int,
        *,
        seconds: float | None = None,
        timeout_s: float = 10.0,
        on_response: Callable[[Outcome], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        if connections < 1:
            raise ValueError(f"connections: {connections} must be at least 1")
        super().__init__(target, requests, on_response=on_response, timeout_s=timeout_s, clock=clock)
        self._connections, self._seconds = connections, seconds

    async def _run(self) -> None:
        start = self._clock.monotonic_ns()
        end = None if self._seconds is None else start + int(self._seconds * 1e9)
        async with asyncio.TaskGroup() as group:
            for _ in range(self._connections):
                group.create_task(self._user(end))

    async def _user(self, end: int | None) -> None:
        for request in self._requests:
            now = self._clock.monotonic_ns()
            if self._stopping or (end is not None and now >= end):
                return
            await self._send(request, now)


if __name__ == "__main__":
    from loadtests.command import main

    main()
