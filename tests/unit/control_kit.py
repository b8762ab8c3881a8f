"""What the tests of the control plane share: a model, a store that can fail, a plane that does not sleep."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from serving.clock import FakeClock
from serving.contract import ControlWord, RouteTable, VariantEntry
from serving.control import kill_notes
from serving.control.audit import AuditEntry, Verification
from serving.control.lease import Leader
from serving.control.monitor_link import MonitorLink
from serving.control.notify import Notifier
from serving.control.plane import Plane
from serving.control.seed import VariantFacts
from serving.control.state import step
from serving.control.store import ONLY, SqliteStore, SqlStore, StoreError
from serving.control.word import WordLink
from serving.core.commands import ApplyModels, AuditDraft, By, ControlState, ModelSpec

NOW = 1_700_000_000_000_000_000
ME = By("ann", "because")


def entry(name: str, version: int, artifact: str | None = None) -> VariantEntry:
    return VariantEntry(name=name, version=version, artifact=artifact or f"moderation/{name}:1")


def spec(**changes: Any) -> ModelSpec:
    """teacher is the baseline; int8 has 5 %, distilled is shadowed at 20 %."""
    given: dict[str, Any] = {
        "baseline": "teacher",
        "teacher": "teacher",
        "variants": {name: entry(name, i) for i, name in enumerate(("teacher", "int8", "distilled"), start=1)},
        "salt": "salt-0",
        "weights": {"int8": 500},
        "shadow": {"distilled": 2000},
        "reference_bp": 500,
    }
    return ModelSpec(**(given | changes))


def seeded(models: Mapping[str, ModelSpec] | None = None) -> ControlState:
    """The state after a first start."""
    return step(ControlState(), ApplyModels(dict(models or {"moderation": spec()}), ME), NOW).state


def table(state: ControlState) -> RouteTable:
    return state.tables["moderation"]


async def until(condition: Callable[[], bool]) -> None:
    """Let everything else run until something is so; the test's own timeout is the bound."""
    while not condition():  # noqa: ASYNC110 - what is waited for happens in another thread
        await asyncio.sleep(0)


def open_store(folder: Path, holder: str = ONLY) -> SqlStore:
    """The state of `folder`. Tests that run over another database put their own function here."""
    return SqliteStore(folder / "canarium.db", holder)


def execute(folder: Path, statement: str) -> None:
    """Change the database of `folder` behind the store's back."""
    store = open_store(folder, "nobody")
    with store._writer.begin() as connection:
        connection.exec_driver_sql(statement)
    store._dispose()


class FlakyStore:
    """A store that fails when told, and can be held up in the middle of a write."""

    def __init__(self, inner: SqlStore) -> None:
        self.inner = inner
        self.holder = inner.holder
        self.failing = False
        self.attempts = 0

    def leader(self) -> Leader:
        return self.inner.leader()

    def acquire(self, expected: Leader | None = None) -> ControlState:
        return self.inner.acquire(expected)

    def renew(self) -> None:
        self.inner.renew()

    def write(self, state: ControlState, drafts: Sequence[AuditDraft]) -> list[AuditEntry]:
        self.attempts += 1
        self.before_write()
        if self.failing:
            raise StoreError("the state database: database or disk is full")
        return self.inner.write(state, drafts)

    def before_write(self) -> None:
        """Overridden by tests."""

    def audit(
        self, model: str | None, limit: int, before: int | None = None, after: int | None = None
    ) -> list[AuditEntry]:
        return self.inner.audit(model, limit, before, after)

    def verify(self) -> Verification:
        return self.inner.verify()

    def close(self) -> None:
        self.inner.close()


class Rig:
    """One start of a control plane over a directory that outlives it."""

    def __init__(
        self,
        folder: Path,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        holder: str = ONLY,
        notifier: Notifier | None = None,
        refusal: Callable[[str, str, str], str] = lambda model, variant, artifact: "",
    ) -> None:
        self.clock = FakeClock()
        self.store = FlakyStore(open_store(folder, holder))
        self.word = ControlWord.open(folder / "control.word")
        self.monitor = MonitorLink("http://monitor", self.clock, transport)
        facts = {
            "moderation": {
                "teacher": VariantFacts(entry("teacher", 1), "root", {"accuracy": 0.98}),
                "int8": VariantFacts(entry("int8", 2), "quantized", {"accuracy": 0.97}),
            }
        }
        self.pauses: list[float] = []
        self.plane = Plane(
            store=self.store,
            word=WordLink(ControlWord.open(folder / "control.word"), kill_notes.beside(folder / "control.word")),
            clock=self.clock,
            monitor=self.monitor,
            facts=facts,
            about={"version": "0", "instance": "test", "urls": {}},
            notifier=notifier,
            refusal=refusal,
            sleep=self._sleep,
        )

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)

    async def start(self, models: Mapping[str, ModelSpec] | None = None) -> tuple[str, ...]:
        return await self.plane.start(dict(models or {"moderation": spec()}))

    async def trail(self) -> list[AuditEntry]:
        """The audit rows, oldest first."""
        return (await self.plane.audit(None, 1000, None))[::-1]
