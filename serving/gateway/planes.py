"""The variants that a gateway has open, following the published tables."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable

import msgspec

from serving.contract import RouteTable, Snapshot, VariantEntry
from serving.errors import ErrorKind, RequestError
from serving.gateway.live import LiveRouting
from serving.gateway.variants import VariantPlane
from serving.packing import pack_unopened
from serving.protocol.types import shown

log = logging.getLogger(__name__)

PlaneFactory = Callable[[str, VariantEntry], VariantPlane]

#: Pause before a variant that could not be opened is tried again, seconds.
RETRY_S = 1.0
#: How long a replaced variant may finish its work, and its successor may take to find a worker, seconds.
DRAIN_S, WARM_S = 10.0, 15.0


class Planes:
    """Opens, replaces and closes variants without a request noticing.

    Args:
        models: names of the configured models.
        routing: what is in force.
        factory: opens one variant (blocking; called in a thread).
    """

    def __init__(self, models: list[str], routing: LiveRouting, factory: PlaneFactory) -> None:
        self._routing = routing
        self._factory = factory
        self._open: dict[str, dict[str, VariantPlane]] = {name: {} for name in models}
        self._closing: set[asyncio.Task[None]] = set()
        self._following: asyncio.Task[None] | None = None
        self._bringing: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._wanted: Snapshot | None = None  # as it was published

    # ------------------------------------------------------------ following the tables

    async def apply(self, snapshot: Snapshot) -> None:
        """Take over a snapshot: obey its kills, open new baselines, swap the tables, then follow with the rest.

        A model whose new baseline cannot be opened keeps the table that it has, if any, until it can.
        """
        if not self._routing.newer(snapshot):
            return
        self._routing.accept_latches(snapshot)
        for model, table in snapshot.tables.items():
            if self.get(model, table.baseline) is None:
                try:
                    await self._bring(model, table.variants[table.baseline])
                except Exception:
                    log.exception("cannot open %s, the baseline of %s: its table stays", table.baseline, model)
        held = {model for model, table in snapshot.tables.items() if self.get(model, table.baseline) is None}
        now = self._routing.snapshot
        tables = {name: table for name, table in snapshot.tables.items() if name not in held}
        tables |= {name: table for name, table in (now.tables if now else {}).items() if name in held}
        if not self._routing.accept(msgspec.structs.replace(snapshot, tables=tables)):
            return
        self._wanted = snapshot
        if self._following is None or self._following.done():
            self._following = asyncio.get_running_loop().create_task(self._follow())

    async def settled(self) -> None:
        """Wait until every variant of the tables in force is open."""
        if self._following is not None:
            await self._following

    async def closed(self) -> None:
        """Wait until the variants that were let go of have finished their work and are closed."""
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _follow(self) -> None:
        """Open what the tables name and let go of what they do not; a variant that cannot be opened is tried again."""
        while True:
            wanted, failed = self._wanted, False
            for model, table in (wanted.tables if wanted else {}).items():
                for name in sorted(table.variants, key=lambda name: name != table.baseline):
                    try:
                        await self._bring(model, table.variants[name])
                    except Exception:
                        failed = True
                        log.exception("cannot open %s of %s, trying again", name, model)
                    if self.get(model, table.baseline) is None:
                        break  # this table cannot be in force, so that the variants of the earlier one stay
                if wanted is not self._wanted:
                    break
                planes = self._open.setdefault(model, {})
                if table.baseline in planes:
                    self._routing.adopt(table)
                    for name in [name for name in planes if name not in table.variants]:
                        self._let_go(planes.pop(name))
            if wanted is not self._wanted:
                continue
            if not failed:
                return
            await asyncio.sleep(RETRY_S)

    async def _bring(self, model: str, entry: VariantEntry) -> None:
        planes = self._open.setdefault(model, {})
        async with self._bringing[model, entry.name]:  # a snapshot may come while an earlier one opens its variants
            known = planes.get(entry.name)
            if known is not None and known.entry == entry:
                return
            plane = await asyncio.to_thread(self._factory, model, entry)
            await plane.start()
            if known is not None:
                await plane.warm(WARM_S)
                self._let_go(known)
            planes[entry.name] = plane

    def _let_go(self, plane: VariantPlane) -> None:
        async def leave() -> None:
            await plane.drain(DRAIN_S)
            await plane.close()

        task = asyncio.get_running_loop().create_task(leave())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
        for task in self._closing:
            task.cancel()
        planes = [plane for variants in self._open.values() for plane in variants.values()]
        await asyncio.gather(*(plane.close() for plane in planes), *self._closing, return_exceptions=True)

    # ------------------------------------------------------------ looking up

    def get(self, model: str, name: str) -> VariantPlane | None:
        """An open variant by name."""
        return self._open.get(model, {}).get(name)

    def of(self, model: str) -> list[VariantPlane]:
        """Open variants of a model, in the order in which they were opened."""
        return list(self._open.get(model, {}).values())

    def unopened(self, table: RouteTable) -> int:
        """The table's candidates with traffic that are not open, as `packing.pack_unopened` has them."""
        planes = self._open.get(table.model, {})
        missing = [name for name in table.candidates if name not in planes]
        return pack_unopened(missing) if missing else 0

    def all(self) -> dict[str, list[VariantPlane]]:
        """Open variants of each model, baseline first."""
        listed: dict[str, list[VariantPlane]] = {}
        for model, planes in self._open.items():
            view = self._routing.view(model)
            baseline = view.table.baseline if view else ""
            listed[model] = sorted(planes.values(), key=lambda p: (p.entry.name != baseline, p.entry.version))
        return listed

    def opening(self) -> list[tuple[str, VariantEntry]]:
        """Variants of the published tables that are not open yet."""
        return [
            (model, entry)
            for model, table in (self._wanted.tables if self._wanted else {}).items()
            for name, entry in table.variants.items()
            if self.get(model, name) is None
        ]

    def models(self) -> list[str]:
        return list(self._open)


def by_version(table: RouteTable, version: str) -> str:
    """The variant that a version number pins. Raises `RequestError` naming those there are."""
    for name, entry in table.variants.items():
        if str(entry.version) == version:
            return name
    known = ", ".join(f"{entry.version} ({name})" for name, entry in table.variants.items())
    raise RequestError(
        ErrorKind.NOT_FOUND, f"unknown version {shown(version)} of model {table.model}, expected one of {known}"
    )
