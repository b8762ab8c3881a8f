"""The control plane: one immutable state in force, persisted and published; every change goes through here.

Most commands persist, then act. Kill and rollback act first: the snapshot is published and the
control word written before any disk is touched, and the state is saved with retry behind them.
All methods belong to one event loop; the database is called from threads of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec

from serving.clock import Clock
from serving.control.audit import AuditEntry, Verification, iso
from serving.control.conflicts import (
    above,
    claimed,
    refuse_if_just_rolled_back,
    refuse_if_rearmed,
    refuse_if_vetoed_since,
    unless_paused,
)
from serving.control.events import EventHub
from serving.control.gateways import Gateways
from serving.control.lease import BEAT_S, take_lead
from serving.control.monitor_link import Heartbeat, MonitorLink
from serving.control.notify import Notifier
from serving.control.rollout_views import facts_of, rollout_view
from serving.control.seed import Facts
from serving.control.state import step
from serving.control.store import StaleLease, Store, StoreError
from serving.control.tables import table_of
from serving.control.views import kill_switch_view, model_view
from serving.control.word import Look, WordLink
from serving.core.commands import (
    ApplyModels,
    AuditDraft,
    By,
    Command,
    ControlState,
    Kill,
    ModelSpec,
    Outcome,
    Rollback,
)
from serving.core.rollout import Rollout
from serving.core.rollout_decide import Facts as RolloutFacts
from serving.errors import CanariumError, ErrorKind, RequestError

log = logging.getLogger("canarium.control")
T = TypeVar("T")

#: Each lease numbers its snapshots from here on, so that no rev ever names two values.
REVS_PER_LEASE = 1_000_000
WORD_POLL_S = 0.5
RETRY_MIN_S, RETRY_MAX_S = 0.1, 5.0
#: Audit rows that wait for a database which does not answer; beyond it the oldest are lost and counted.
PENDING_MAX = 10_000
WAIT_MAX_S = 60.0


class Plane:
    """Executes commands, publishes snapshots, keeps the trail.

    Args:
        store: where the state survives.
        word: the control word of this node.
        clock: wall time for the trail, monotonic time for ages.
        monitor: what is known of the monitor.
        facts: the variants' manifests, for the views.
        about: what the status says of this deployment (`version`, `instance`, `urls`).
        notifier: told of every change of a rollout, for its webhooks.
        refusal: why an artifact may not be served as a variant of a model (model, variant, reference); empty if it
            may. It reads files.
        sleep: how to wait, in seconds; tests bring their own.
    """

    def __init__(
        self,
        *,
        store: Store,
        word: WordLink,
        clock: Clock,
        monitor: MonitorLink,
        facts: Facts,
        about: Mapping[str, Any],
        notifier: Notifier | None = None,
        refusal: Callable[[str, str, str], str] = lambda model, variant, artifact: "",
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.monitor = monitor
        self.events = EventHub()
        self.gateways = Gateways(clock)
        self.audit_lost = 0
        self.refused: Mapping[str, str] = {}  # why no attempt of a rollout may begin by itself, by its id
        self._store, self._word, self._clock, self._sleep = store, word, clock, sleep
        self._facts, self._about, self._notifier = facts, about, notifier
        self._refusal = refusal
        self._started_at = iso(clock.wall_ns())
        self._state = ControlState()
        self._encoded = b""
        self._changed = asyncio.Event()
        self._mutations = asyncio.Lock()
        self._saving = asyncio.Lock()
        self._pending: deque[AuditDraft] = deque()
        self._unsaved = asyncio.Event()
        self._fault: str | None = None
        self._fenced = False
        self._in_flight: Command | None = None  # being saved, not in force yet
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="control-store")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="control-audit")
        self._tasks: list[asyncio.Task[None]] = []

    # ------------------------------------------------------------ life

    async def start(self, models: Mapping[str, ModelSpec]) -> tuple[str, ...]:
        """Take over: stored state, then the configuration, then the control word; then publish.

        Returns:
            Lines that say where the configuration and the store differ.

        Raises:
            StoreError: the database cannot be written.
        """
        state = await take_lead(self._store, self._on_writer, self._clock, self._sleep)
        state = msgspec.structs.replace(state, rev=max(state.rev, state.lease * REVS_PER_LEASE))
        by = By("canarium up", "the configuration at start")
        applied = step(state, ApplyModels(dict(models), by), self._clock.wall_ns())
        look = self._word.look(applied.state, judge=True, starting=True)
        if look.doubtful:
            await self._sleep(0.05)
            look = self._word.look(applied.state, judge=True, starting=True)
        imported = step(applied.state, look.found, self._clock.wall_ns())
        self._state = msgspec.structs.replace(imported.state, rev=imported.state.rev + 1)
        await self._save((*applied.audit, *imported.audit))
        self._publish()
        self._word.taken(look)
        await self._word.write([*applied.effects, *imported.effects])
        await self.poll_word()
        self.monitor.listen()  # the wait for the lead was no silence of the monitor's
        return applied.notes

    def run_background(self) -> None:
        """Start the watchers of the word and of the lease, and the writer that retries."""
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(work(), name=f"control-{work.__name__}")
            for work in (self._watch_word, self._watch_lease, self._keep_saving)
        ]

    async def close(self) -> None:
        """Save what is still unsaved, if the database answers, and let go of everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._unsaved.is_set():
            await self.save_pending()
        self.events.close()
        self._changed.set()
        await self.monitor.close()
        await self._in(self._writer, self._store.close)
        self._writer.shutdown(wait=False)
        self._reader.shutdown(wait=False)
        self._word.close()

    # ------------------------------------------------------------ reading

    @property
    def state(self) -> ControlState:
        """What is in force now."""
        return self._state

    @property
    def snapshot(self) -> bytes:
        """The snapshot in force, as JSON."""
        return self._encoded

    async def wait(self, rev: int | None, timeout_s: float) -> bytes:
        """The snapshot, as JSON: at once if its rev is not `rev`, else when it changes or time is up."""
        if rev == self._state.rev and timeout_s > 0:
            changed = self._changed
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), min(timeout_s, WAIT_MAX_S))
        return self._encoded

    def view(self, model: str) -> dict[str, Any]:
        """One model as the API shows it. Raises `RequestError` NOT_FOUND."""
        table_of(self._state, model)
        view = model_view(self._state, model, self._facts, self.monitor.headroom(model))
        latest = [rollout for rollout in self._state.latest_rollouts() if rollout.model == model]
        return {**view, "rollouts": [self.rollout_view(rollout) for rollout in latest]}

    def facts(self, rollout: Rollout) -> RolloutFacts:
        """What is known now of a rollout's candidate."""
        return facts_of(self._state, rollout, self.monitor, self.gateways)

    def rollout_view(self, rollout: Rollout) -> dict[str, Any]:
        """One rollout as the API shows it."""
        facts = self.facts(rollout)
        if rollout.id in self.refused:
            facts = msgspec.structs.replace(facts, hindered=self.refused[rollout.id])
        return rollout_view(self._state, rollout, facts, self._clock.wall_ns())

    def status(self) -> dict[str, Any]:
        """The whole deployment as the API shows it."""
        return {
            **self._about,
            "started_at": self._started_at,
            "rev": self._state.rev,
            "lease": self._state.lease,
            "monitor": self.monitor.view(),
            "gateways": self.gateways.view(),
            "control": {
                "database": "ok" if self._fault is None else f"error: {self._fault}",
                "audit_rows_pending": len(self._pending),
                "audit_rows_lost": self.audit_lost,
                "watchers": self.events.watchers,
                "watchers_dropped": self.events.dropped,
                "notifications": self._notifier.view() if self._notifier is not None else None,
            },
            "kill_switch": kill_switch_view(self._state),
            "models": [self.view(model) for model in self._state.tables],
        }

    async def audit(
        self, model: str | None, limit: int, before: int | None = None, after: int | None = None
    ) -> list[AuditEntry]:
        """A page of the trail, newest first, or oldest first beyond `after`. Raises `RequestError` UNAVAILABLE."""
        return await self._read(lambda: self._store.audit(model, limit, before, after))

    async def verify(self) -> Verification:
        """Check the whole trail. Raises `RequestError` UNAVAILABLE."""
        return await self._read(self._store.verify)

    def heartbeat(self, beat: Heartbeat) -> None:
        """Take a heartbeat of the monitor and pass its verdicts on to the watchers."""
        self.monitor.beat(beat)
        if self.events.watchers:
            for model in beat.verdicts:
                self.events.publish("verdicts", msgspec.json.encode(self.monitor.verdicts(model)))

    # ------------------------------------------------------------ changing

    async def require_admission(self, model: str, variant: str) -> None:
        """Raises `RequestError` CONFLICT if a variant's artifact may not be served; unknown ones are passed over."""
        table = self._state.tables.get(model)
        if table is None or variant not in table.variants:
            return
        try:
            why = await asyncio.to_thread(self._refusal, model, variant, table.variants[variant].artifact)
        except CanariumError as error:
            why = str(error)
        if why:
            raise RequestError(ErrorKind.CONFLICT, why)

    def dry_run(self, command: Command) -> Outcome:
        """What a command would come to now; nothing is changed. Raises `RequestError` as `execute` does."""
        return step(self._state, command, self._clock.wall_ns())

    async def execute(self, command: Command) -> Outcome:
        """Carry out one command, wholly or not at all, even if the caller goes away.

        Raises:
            RequestError: refused (see `step`), or UNAVAILABLE because it could not be persisted.
        """
        if isinstance(command, Kill | Rollback):
            return await asyncio.shield(asyncio.ensure_future(self._act_then_persist(command)))
        return await asyncio.shield(asyncio.ensure_future(self._persist_then_act(command)))

    async def _act_then_persist(self, command: Kill | Rollback) -> Outcome:
        # Up to the publication nothing is awaited: no lock, thread or disk can delay it.
        refuse_if_rearmed(self._state, command)
        look = self._word.look(self._state)
        command, rest = claimed(self._state, command, look)
        self._take_word(rest)
        command = above(self._state, command, self._in_flight)
        outcome = step(self._state, command, self._clock.wall_ns())
        self._adopt(outcome)
        self._queue(outcome.audit)
        await self._word.write(outcome.effects)
        self._take_word(self._word.look(self._state))  # the monitor may have been a seq ahead
        return outcome

    async def _persist_then_act(self, command: Command) -> Outcome:
        async with self._mutations:
            if self._fenced:
                raise RequestError(ErrorKind.UNAVAILABLE, f"nothing was changed: {self._fault}")
            imported = self._take_word(self._word.look(self._state))
            refuse_if_just_rolled_back(command, imported)
            base = self._state
            command = unless_paused(base, command, self.monitor)
            outcome = step(base, command, self._clock.wall_ns())
            if outcome.state is base:
                return outcome
            self._in_flight = command
            try:
                await self._save(outcome.audit, outcome.state)
            except StoreError as error:
                self._unsaved.set()
                raise RequestError(ErrorKind.UNAVAILABLE, f"nothing was changed: {error}", 2) from error
            finally:
                self._in_flight = None
            if self._state is not base:
                outcome = self._again(command, outcome, base)
            self._adopt(outcome)
            await self._word.write(outcome.effects)
            return outcome

    def _again(self, command: Command, saved: Outcome, base: ControlState) -> Outcome:
        """The command upon what a kill or rollback made of the state while it was being saved."""
        self._unsaved.set()
        try:
            refuse_if_vetoed_since(command, base, self._state)
            return step(self._state, command, self._clock.wall_ns())
        except RequestError as error:
            self._queue(
                [
                    msgspec.structs.replace(
                        draft,
                        at_ns=self._clock.wall_ns(),
                        action=f"{draft.action}-undone",
                        reason=error.message,
                        before=draft.after,
                        after=draft.before,
                    )
                    for draft in saved.audit
                ]
            )
            raise

    async def poll_word(self) -> None:
        """Take over what others wrote into the control word, and write what it lacks."""
        look = self._word.look(self._state, judge=True)
        imported = self._take_word(look)
        self._word.taken(look)
        writes = [*imported.effects, *self._word.behind(self._state, look)]
        await self._word.write(writes)

    def _take_word(self, look: Look) -> Outcome:
        outcome = step(self._state, look.found, self._clock.wall_ns())
        self._adopt(outcome)
        if outcome.audit:
            log.warning("taken over from the control word: %s", [(row.action, row.model) for row in outcome.audit])
            self._queue(outcome.audit)
        return outcome

    # ------------------------------------------------------------ publishing and saving

    def _adopt(self, outcome: Outcome) -> None:
        if outcome.state is not self._state:
            self._state = outcome.state
            self._publish()

    def _publish(self) -> None:
        self._encoded = msgspec.json.encode(self._state.snapshot())
        waiting, self._changed = self._changed, asyncio.Event()
        waiting.set()
        self.events.publish("snapshot", self._encoded)

    def _queue(self, drafts: tuple[AuditDraft, ...] | list[AuditDraft]) -> None:
        """Rows (and a state) to be saved behind the act."""
        self._pending.extend(drafts)
        while len(self._pending) > PENDING_MAX:
            self._pending.popleft()
            self.audit_lost += 1
        if drafts:
            self._unsaved.set()

    async def save_pending(self) -> bool:
        """One attempt to save what acts left behind; False if it has to be tried again."""
        self._unsaved.clear()
        try:
            await self._save()
        except StaleLease:
            return True  # this plane's view no longer counts: what it did is in the control word
        except StoreError as error:
            log.error("not saved yet, trying again: %s", error)
            self._unsaved.set()
            return False
        return True

    async def _save(self, drafts: tuple[AuditDraft, ...] = (), state: ControlState | None = None) -> None:
        """Write `state` (None: what is in force by then) with the rows that wait and `drafts`."""
        async with self._saving:
            saved = state or self._state
            earlier, lost = list(self._pending), self.audit_lost
            try:
                entries = await self._in(self._writer, lambda: self._store.write(saved, [*earlier, *drafts]))
            except StaleLease as error:
                self._fence(error)
                raise
            except StoreError as error:
                self._fault = str(error)
                raise
            except Exception as error:  # the writer must go on trying, whatever it was
                log.exception("the state could not be written")
                self._fault = f"{type(error).__name__}: {error}"
                raise StoreError(f"the state could not be written: {self._fault}") from error
            self._fault = None
            for _ in range(len(earlier) - (self.audit_lost - lost)):
                self._pending.popleft()
        for entry in entries:
            self.events.publish("audit", msgspec.json.encode(entry))
            if self._notifier is not None and entry.action.startswith("rollout-"):
                rollout = saved.rollouts.get(str(entry.after.get("rollout")))
                self._notifier.tell(rollout.policy.notify if rollout is not None else (), entry)

    def _fence(self, error: StaleLease) -> None:
        if not self._fenced:
            log.error("this control plane stops acting: %s", error)
        self._fenced, self._fault = True, str(error)

    async def _read(self, call: Callable[[], T]) -> T:
        try:
            return await self._in(self._reader, call)
        except StoreError as error:
            raise RequestError(ErrorKind.UNAVAILABLE, str(error), 2) from error

    async def _on_writer(self, call: Callable[[], T]) -> T:
        return await self._in(self._writer, call)

    async def _in(self, thread: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(thread, call)

    # ------------------------------------------------------------ background

    async def _watch_word(self) -> None:
        while not self._fenced:
            await self._sleep(WORD_POLL_S)
            try:
                await self.poll_word()
            except Exception:  # whatever it was, the next look must come
                log.exception("a look at the control word failed")

    async def _watch_lease(self) -> None:
        while not self._fenced:
            await self._sleep(BEAT_S)
            await self.renew()

    async def renew(self) -> None:
        """One beat of the lease, by which it is also seen that the database answers again."""
        try:
            await self._on_writer(self._store.renew)
        except StaleLease as error:
            self._fence(error)
        except StoreError as error:
            self._fault = str(error)
        else:
            if not self._fenced and not self._unsaved.is_set():  # what is unsaved says so until it is saved
                self._fault = None

    async def _keep_saving(self) -> None:
        pause = RETRY_MIN_S
        while not self._fenced:
            await self._unsaved.wait()
            if await self.save_pending():
                pause = RETRY_MIN_S
                continue
            await self._sleep(pause)
            pause = min(pause * 2, RETRY_MAX_S)
