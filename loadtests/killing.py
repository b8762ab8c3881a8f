"""Kills under load and in bad situations, and when a client last got an answer of the killed candidate.

The load runs in a process of its own, so that neither waits for the other; both read the same monotonic clock. A
kill is *tripped* at the moment before it is asked for. From then until long after the deadline of every request under
way the answers are watched, and the last one whose `x-canarium-variant` is the candidate is what counts.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from types import TracebackType
from typing import Any

import uvloop

from loadtests.openloop import OpenLoop, Outcome
from loadtests.transport import Request
from serving.client import AdminClient, ClientError, Unreachable
from serving.contract import ControlWord, slot_key
from serving.paths import Paths
from serving.processes import alive, members

#: What `canarium kill` allows the control plane before it takes the control word, seconds.
PATIENCE_S = 2.0
#: Longest wait for a process, the control plane or the candidate to be back, seconds.
BACK_S = 60.0
#: Answers of the candidate after a re-arm before the next kill.
SETTLED = 10


class KillError(Exception):
    """The measurement cannot go on; the message says what was waited for in vain."""


@dataclass(frozen=True, slots=True)
class Target:
    """A running instance, and whom to kill in it."""

    http_url: str
    control_url: str
    state_dir: Path
    model: str
    candidate: str

    def pids(self, title: str) -> list[int]:
        """The instance's processes that have `title` in their command line."""
        found = []
        for pid in members(Paths.of(self.state_dir).instance):
            with contextlib.suppress(OSError):
                if title in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                    found.append(pid)
        return found

    def admin(self, timeout_s: float = 10.0) -> AdminClient:
        return AdminClient(self.control_url, actor="loadtests", timeout_s=timeout_s)


@dataclass(frozen=True, slots=True)
class Situation:
    """What is wrong while the kill is asked for.

    Attributes:
        title: in the command line of the process that is struck; none if empty.
        strike: SIGKILL, after which Ray starts it again; or SIGSTOP, until the answers were watched.
        word: the kill goes by the control word; else by the admin API.
        asks_first: it asks the control plane before that, as `canarium kill` does.
    """

    name: str
    title: str = ""
    strike: signal.Signals | None = None
    word: bool = False
    asks_first: bool = False


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill, in nanoseconds of the monotonic clock.

    Attributes:
        tripped_ns: the moment before it was asked for.
        returned_ns: when whoever asked was told that it is in force.
        last_ns: the candidate's last answer, before or after.
        newest_ns: when the newest request was sent that the candidate answered, before or after.
    """

    tripped_ns: int
    returned_ns: int
    last_ns: int
    newest_ns: int

    @property
    def last_ms(self) -> float:
        """From the trip to the candidate's last answer; 0 if there was none after the trip."""
        return max(0, self.last_ns - self.tripped_ns) / 1e6

    @property
    def call_ms(self) -> float:
        """Until whoever asked for the kill was told that it is in force."""
        return (self.returned_ns - self.tripped_ns) / 1e6


class Load:
    """An open loop in a process of its own that keeps count of who answers. Use it as a context manager.

    Args:
        requests: sent in rotation.
        rate: Poisson arrivals a second.
        candidate: the variant whose answers are looked for.
        timeout_s: limit on each answer.
    """

    LAST_NS, NEWEST_NS, CANDIDATE, ANSWERED, REFUSED, LATE, FAILED, STOP = range(8)

    def __init__(
        self, url: str, requests: Sequence[Request], rate: float, candidate: str, *, timeout_s: float = 5.0
    ) -> None:
        self._cells = RawArray("Q", 8)
        self._timeout_s = timeout_s
        # Not forked: the caller may have threads.
        self._process = multiprocessing.get_context("spawn").Process(
            target=_send, args=(url, list(requests), rate, candidate, timeout_s, self._cells), daemon=True
        )

    def __enter__(self) -> Load:
        self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cells[self.STOP] = 1
        self._process.join(self._timeout_s + 30)
        if self._process.is_alive():
            self._process.kill()

    @property
    def last_ns(self) -> int:
        """When the candidate's last answer was complete; 0 before the first."""
        return int(self._cells[self.LAST_NS])

    @property
    def newest_ns(self) -> int:
        """When the newest request was sent that the candidate has answered; 0 before the first.

        One that is sent once a kill is in force must get no answer of the candidate, however late any answer comes.
        """
        return int(self._cells[self.NEWEST_NS])

    @property
    def candidate(self) -> int:
        """Answers of the candidate so far."""
        return int(self._cells[self.CANDIDATE])

    def counts(self) -> dict[str, int]:
        """`answered` (2xx), `refused` (429 and 503), `late` (504) and `failed` (everything else) so far."""
        names = {"answered": self.ANSWERED, "refused": self.REFUSED, "late": self.LATE, "failed": self.FAILED}
        return {name: int(self._cells[cell]) for name, cell in names.items()}

    def require(self) -> None:
        """Raises `KillError` if the process has ended."""
        if not self._process.is_alive():
            raise KillError("the load generator has ended; see above")


def kill_once(target: Target, load: Load, situation: Situation, watch_s: float) -> Kill:
    """Strike, kill, watch, re-arm, and wait until the candidate answers again."""
    with _struck(target, situation):
        tripped = time.monotonic_ns()
        _kill(target, situation)
        returned = time.monotonic_ns()
        time.sleep(watch_s)
    seq = _until(lambda: _killed(target), "the control plane to know of the kill")
    # Nothing of the candidate may come between here and the re-arm.
    last, newest, before = load.last_ns, load.newest_ns, load.candidate
    _until(lambda: _rearmed(target, seq), "the re-arm")
    _until(lambda: load.candidate >= before + SETTLED, f"{target.candidate} to answer again", load)
    return Kill(tripped, returned, last, newest)


def settle(target: Target, load: Load) -> None:
    """Wait until the candidate answers. Raises `KillError` if it does not."""
    before = load.candidate
    _until(lambda: load.candidate >= before + SETTLED, f"{target.candidate} to answer", load)


def _kill(target: Target, situation: Situation) -> None:
    if not situation.word or situation.asks_first:
        # Who has no other way than the control plane waits for it longer.
        with target.admin(PATIENCE_S) if situation.word else target.admin() as client:
            try:
                client.kill(target.model, reason=f"measured: {situation.name}")
                return
            except Unreachable:
                if not situation.word:
                    raise
    word = ControlWord.open(Paths.of(target.state_dir).word_path)
    try:
        word.latch_on(slot_key(target.model))
    finally:
        word.close()


def _killed(target: Target) -> int:
    with contextlib.suppress(ClientError), target.admin() as client:
        view = client.model(target.model)
        return int(view["kill_seq"]) if view["killed"] else 0
    return 0


def _rearmed(target: Target, seq: int) -> bool:
    with contextlib.suppress(Unreachable), target.admin() as client:
        client.rearm(target.model, seq, reason="measured")
        return True
    return False


@contextlib.contextmanager
def _struck(target: Target, situation: Situation) -> Iterator[None]:
    """The situation's process killed or stopped; a stopped one goes on at the end."""
    if situation.strike is None:
        yield
        return
    pid = _until(lambda: _only(target.pids(situation.title)), f"one process {situation.title}")
    os.kill(pid, situation.strike)
    if situation.strike == signal.SIGKILL:
        _until(lambda: not alive(pid), f"process {pid} to end", every_s=0.001)
        yield
        return
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _only(pids: list[int]) -> int:
    return pids[0] if len(pids) == 1 else 0


def _until(what: Callable[[], Any], name: str, load: Load | None = None, every_s: float = 0.02) -> Any:
    """Poll until `what` is true and return it. Raises `KillError` after `BACK_S`."""
    deadline = time.monotonic() + BACK_S
    while not (value := what()):
        if load is not None:
            load.require()
        if time.monotonic() > deadline:
            raise KillError(f"waited {BACK_S:g} s for {name}")
        time.sleep(every_s)
    return value


def _send(url: str, requests: list[Request], rate: float, candidate: str, timeout_s: float, cells: Any) -> None:
    def seen(outcome: Outcome) -> None:
        if outcome.ok:
            cells[Load.ANSWERED] += 1
            if outcome.variant == candidate:
                cells[Load.CANDIDATE] += 1
                cells[Load.LAST_NS] = outcome.finished_ns
                cells[Load.NEWEST_NS] = max(cells[Load.NEWEST_NS], outcome.started_ns)
        elif outcome.code in ("429", "503"):
            cells[Load.REFUSED] += 1
        elif outcome.code == "504":
            cells[Load.LATE] += 1
        else:
            cells[Load.FAILED] += 1

    async def main() -> None:
        forever = itertools.takewhile(lambda _: not cells[Load.STOP], itertools.cycle(requests))
        loop = OpenLoop(url, forever, rate, on_response=seen, timeout_s=timeout_s)
        loop.start()
        await loop.wait()
        await loop.stop()

    uvloop.run(main())
