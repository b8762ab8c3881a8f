"""Acting on a trip: the control word first, then the control plane, until it says yes.

Once per arming: what was done is remembered with the statistics and committed with them. Should the
monitor die between acting and committing, the next one finds the candidate without traffic, or the
latch in force, and does not raise it again.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import httpx
import msgspec

from monitoring.guard import Trip
from monitoring.verdicts import iso
from serving.clock import Clock
from serving.contract import ControlWord, Latch, Snapshot, slot_key

log = logging.getLogger("canarium.monitor")

#: Seconds between attempts at the control plane: doubled from the first up to the last.
BACKOFF_S = (0.1, 5.0)
TIMEOUT_S = 3.0
#: Actuations remembered; the oldest acknowledged ones go first.
KEPT = 256
#: Statuses by which the control plane says that there is nothing left to do.
SETTLED = (404, 409)
#: The reason of a kill that was found in the word.
WRITTEN_HERE = "the control word of this node holds a kill that the control plane had not seen"
#: From the tripping record's time to the word, seconds.
SECONDS_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Actuation(msgspec.Struct):
    """One rollback or kill: what was decided and how far it got."""

    trip: Trip
    at_ns: int
    word_seq: int = 0  # 0: the word is not written yet
    acknowledged: bool = False
    attempts: int = 0
    overtaken: bool = False  # a human cleared it, or started over, before the control plane heard of it

    @property
    def done(self) -> bool:
        return self.overtaken or (self.acknowledged and self.word_seq > 0)


class Actuator:
    """Carries out trips; `submit` is synchronous up to the word, the rest is a task.

    Args:
        open_word: opens the control word; raises `OSError` (then tried again).
        client: talks to the control plane; its base URL and headers are set.
        snapshot: the routing snapshot in force, if any.
    """

    def __init__(
        self,
        clock: Clock,
        client: httpx.AsyncClient,
        open_word: Callable[[], ControlWord],
        snapshot: Callable[[], Snapshot | None],
        instance: str,
    ) -> None:
        self._clock = clock
        self._client = client
        self._open_word = open_word
        self._word: ControlWord | None = None
        self._snapshot = snapshot
        self._instance = instance
        self._done: dict[str, Actuation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.seconds_buckets = [0] * (len(SECONDS_BOUNDS) + 1)
        self.seconds_sum = 0.0
        self.last_beat_ns = clock.wall_ns()  # of the last heartbeat in the word; at first of the start
        self._unpublished: dict[str, int] = {}  # kills in the word, by model, that were not published at the last look
        self.failures = 0  # attempts that the control plane did not acknowledge

    def submit(self, trip: Trip) -> bool:
        """Act on a trip; False if this was done before in the same arming."""
        key = action_key(trip)
        if key in self._done:
            return False
        actuation = Actuation(trip, self._clock.wall_ns())
        self._done[key] = actuation
        self._forget()
        log.warning("%s of %s/%s by %s: %s", trip.action, trip.model, trip.variant, trip.guard, trip.sentence)
        self._write_word(actuation)
        self._spawn(actuation)
        return True

    def resume(self) -> None:
        """Go on with what a former process left unfinished."""
        for actuation in self._done.values():
            if not actuation.done:
                self._spawn(actuation)

    def beat(self) -> None:
        """Write the heartbeat into the control word. Raises `OSError`."""
        self._opened().beat(self._clock.monotonic_ns())
        self.last_beat_ns = self._clock.wall_ns()

    async def report_kills(self, models: Iterable[str]) -> None:
        """Tell the control plane of kills that the word of this node holds and that were never published.

        Somebody wrote them while it was down, and it looks into the word of its own node only: nobody could re-arm
        them. A kill is told when it is found twice, as one that comes from elsewhere may be in the word a moment
        before it is published.

        Raises:
            OSError: there is no word.
            httpx.HTTPError: the control plane did not take it; the next call tells it again.
        """
        snapshot, word = self._snapshot(), self._opened()
        if snapshot is None:
            return
        found: dict[str, int] = {}
        for model in ("*", *models):
            latch = word.latch(slot_key(model))
            if latch is not None and latch.on and latch.seq > snapshot.kills.get(model, Latch()).seq:
                found[model] = latch.seq
        before, self._unpublished = self._unpublished, found
        for model, seq in found.items():
            if before.get(model) == seq and not self._telling(model):
                path = "/admin/v1/kill-switch" if model == "*" else f"/admin/v1/models/{model}:kill"
                evidence = {"word_seq": seq, "instance": self._instance}
                body = {"reason": WRITTEN_HERE, "actor": "monitor", "kill_seq": seq, "evidence": evidence}
                response = await self._client.post(path, json=body, timeout=TIMEOUT_S)
                if response.status_code not in SETTLED:
                    response.raise_for_status()
                log.warning("kill %d of %s was in the control word only: %d", seq, model, response.status_code)

    def _telling(self, model: str) -> bool:
        """Whether a kill of the model by a guard is on its way to the control plane."""
        acts = (actuation for actuation in self._done.values() if not actuation.done)
        return any(actuation.trip.action == "kill" and actuation.trip.model == model for actuation in acts)

    def kill_latch(self, model: str) -> Latch | None:
        """The model's kill latch in the word; None if it is unreadable, which means killed."""
        return self._word.latch(slot_key(model)) if self._word is not None else Latch()

    @property
    def waiting(self) -> int:
        """Actuations that are not acknowledged yet."""
        return sum(not actuation.done for actuation in self._done.values())

    @property
    def actuations(self) -> list[Actuation]:
        return list(self._done.values())

    async def close(self) -> None:
        """Stop retrying; what is left is in the state."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def state(self) -> dict[str, Any]:
        return {
            "done": {key: msgspec.to_builtins(actuation) for key, actuation in self._done.items()},
            "seconds_buckets": self.seconds_buckets,
            "seconds_sum": self.seconds_sum,
            "failures": self.failures,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self._done = msgspec.convert(state["done"], dict[str, Actuation], strict=False)
        self.seconds_buckets = [int(number) for number in state["seconds_buckets"]]
        self.seconds_sum = float(state["seconds_sum"])
        self.failures = int(state["failures"])

    # ------------------------------------------------------------ the word

    def _opened(self) -> ControlWord:
        if self._word is None:
            self._word = self._open_word()
        return self._word

    def _write_word(self, actuation: Actuation) -> None:
        trip = actuation.trip
        target = "*" if trip.action == "kill" else trip.variant
        try:
            actuation.word_seq = self._opened().latch_on(slot_key(trip.model, target), self._at_least(trip))
        except OSError as error:
            log.error("control word: %s; the control plane is told all the same", error)
            return
        seconds = max(0.0, (self._clock.monotonic_ns() - trip.mono_ns) / 1e9)
        self.seconds_buckets[bisect_left(SECONDS_BOUNDS, seconds)] += 1
        self.seconds_sum += seconds

    def _at_least(self, trip: Trip) -> int:
        """The seq above everything that the control plane has cleared."""
        snapshot = self._snapshot()
        if snapshot is None:
            return 0
        kill = trip.action == "kill"
        published = snapshot.kills.get(trip.model) if kill else snapshot.vetoes.get(f"{trip.model}/{trip.variant}")
        latch = published or Latch()
        return latch.seq if latch.on else max(latch.seq, latch.cleared) + 1

    def _overtaken(self, trip: Trip) -> bool:
        """Whether the arming that tripped is over: what is told late must not strike a newer one."""
        snapshot = self._snapshot()
        if snapshot is None:
            return False
        since, veto, kill, _ = trip.arming
        if trip.action == "kill":
            return snapshot.kills.get(trip.model, Latch()).cleared > kill
        table = snapshot.tables.get(trip.model)
        if table is not None and table.baseline == trip.variant:
            return True  # made the baseline since: there is nothing to go back to
        now = table.since.get(trip.variant, -1) if table is not None else -1
        return now > since or snapshot.vetoes.get(f"{trip.model}/{trip.variant}", Latch()).cleared > veto

    # ------------------------------------------------------------ the control plane

    def _spawn(self, actuation: Actuation) -> None:
        task = asyncio.get_running_loop().create_task(self._deliver(actuation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, actuation: Actuation) -> None:
        pause = BACKOFF_S[0]
        while not actuation.done:
            if self._overtaken(actuation.trip):
                log.info("%s of %s/%s: traffic was given since: dropped", *_what(actuation.trip))
                actuation.overtaken = True
                return
            if actuation.word_seq == 0:
                self._write_word(actuation)
            if not actuation.acknowledged:
                actuation.attempts += 1
                actuation.acknowledged = await self._post(actuation)
                self.failures += not actuation.acknowledged
            if not actuation.done:
                await asyncio.sleep(pause)
                pause = min(pause * 2, BACKOFF_S[1])

    async def _post(self, actuation: Actuation) -> bool:
        trip = actuation.trip
        body: dict[str, Any] = {"reason": trip.sentence, "actor": "monitor", "evidence": self.evidence(actuation)}
        if trip.action == "kill":
            body["kill_seq"] = actuation.word_seq
        else:
            body["variant"] = trip.variant
        path = f"/admin/v1/models/{trip.model}:{trip.action}"
        try:
            response = await self._client.post(path, json=body, timeout=TIMEOUT_S)
        except Exception as error:  # whatever it was, the next attempt must come
            log.error("POST %s: %s: tried again", path, error or type(error).__name__)
            return False
        if response.is_success or response.status_code in SETTLED:
            log.info("POST %s: %d", path, response.status_code)
            return True
        log.error("POST %s: %d %.200s: tried again", path, response.status_code, response.text)
        return False

    def evidence(self, actuation: Actuation) -> dict[str, Any]:
        """What goes into the audit."""
        trip = actuation.trip
        return {
            "guard": trip.guard,
            "model": trip.model,
            "variant": trip.variant,
            "action": trip.action,
            "sentence": trip.sentence,
            "statistic": trip.statistic,
            "arming": list(trip.arming),
            "record_at": iso(trip.wall_ns),
            "at": iso(actuation.at_ns),
            "word_seq": actuation.word_seq,
            "instance": self._instance,
        }

    def _forget(self) -> None:
        for key in [key for key, actuation in self._done.items() if actuation.done][: max(0, len(self._done) - KEPT)]:
            del self._done[key]


def _what(trip: Trip) -> tuple[str, str, str]:
    return (trip.action, trip.model, trip.variant)


def action_key(trip: Trip) -> str:
    """One action of one arming: several guards that trip together act once."""
    target = "*" if trip.action == "kill" else trip.variant
    return f"{trip.action}/{trip.model}/{target}/{trip.variant}/{','.join(map(str, trip.arming))}"
