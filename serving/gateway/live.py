"""What a gateway obeys right now: the published snapshot, the control word, the dead-man's switch."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from serving.clock import Clock
from serving.config import Config
from serving.contract import ControlWord, Latch, RouteTable, Snapshot, slot_key

_NOTHING = frozenset[str]()


class View(NamedTuple):
    """Routing of one model at one instant. `killed`: only the baseline answers; `monitor_lost`: only for that."""

    table: RouteTable
    killed: bool
    vetoed: frozenset[str]
    monitor_lost: bool = False

    def allows(self, variant: str) -> bool:
        """Whether `variant` may answer routed traffic now (the re-check after a batch)."""
        if variant == self.table.baseline:
            return True
        return not self.killed and variant not in self.vetoed and variant in self.table.candidates


class LiveRouting:
    """Merges three sources, each of which alone can put a model on its baseline.

    A latch is in force while the higher of both seqs exceeds the higher of both cleared
    values; an unreadable slot of the control word means baseline.
    """

    def __init__(self, config: Config, word: ControlWord, clock: Clock) -> None:
        self._word = word
        self._clock = clock
        self._started_ns = clock.monotonic_ns()
        self._loss = {name: (m.guards.monitor_loss, m.guards.monitor_loss_s) for name, m in config.models.items()}
        self._lost = _NOTHING
        self._keys: dict[tuple[str, str], int] = {}
        self.snapshot: Snapshot | None = None
        # Views made of `_seen` and what the word said when its stamp was `_stamp`.
        self._views: dict[str, View | None] = {}
        self._seen: Snapshot | None = None
        self._stamp = b""

    def accept(self, snapshot: Snapshot) -> bool:
        """Take over a published snapshot unless it is older than the one in force (lease, then rev)."""
        if not self.newer(snapshot):
            return False
        self.snapshot = snapshot
        return True

    def newer(self, snapshot: Snapshot) -> bool:
        """Whether `snapshot` comes after the one in force."""
        now = self.snapshot
        return now is None or (snapshot.lease, snapshot.rev) > (now.lease, now.rev)

    def adopt(self, table: RouteTable) -> None:
        """Put the table of one model in force: it is of the snapshot in force, and could not be obeyed before."""
        now = self.snapshot
        if now is not None and now.tables.get(table.model) is not table:
            self.snapshot = msgspec.structs.replace(now, tables={**now.tables, table.model: table})

    def accept_latches(self, snapshot: Snapshot) -> None:
        """Obey the kills and vetoes of a newer snapshot at once, whatever else taking it over may need."""
        now = self.snapshot
        if now is not None and self.newer(snapshot):
            self.snapshot = msgspec.structs.replace(now, kills=snapshot.kills, vetoes=snapshot.vetoes)

    def view(self, model: str) -> View | None:
        """The routing of `model`, or None while nothing was published for it. Looks at the control word each time."""
        stamp = self._word.stamp()
        if stamp != self._stamp or self._seen is not self.snapshot:
            self._views.clear()
            self._stamp, self._seen = stamp, self.snapshot
        if model not in self._views:
            self._views[model] = self._view(model)
        return self._views[model]

    def _view(self, model: str) -> View | None:
        snapshot = self.snapshot
        if snapshot is None or (table := snapshot.tables.get(model)) is None:
            return None
        lost = model in self._lost
        killed = self._on(model, "*", snapshot.kills.get(model)) or self._on("*", "*", snapshot.kills.get("*"))
        vetoed = _NOTHING
        if table.candidates or table.shadow:
            vetoed = frozenset(
                name
                for name in (*table.candidates, *table.shadow)
                if self._on(model, name, snapshot.vetoes.get(f"{model}/{name}"))
            )
        return View(table, killed or lost, vetoed, lost and not killed)

    def tick(self) -> None:
        """Apply the dead-man's switch: a monitor silent for too long puts its models on the baseline."""
        now, beat = self._clock.monotonic_ns(), self._word.last_beat_ns
        # A beat from the future is of an earlier boot: the word outlives the machine's monotonic clock.
        silent_s = (now - max(self._started_ns, beat if beat <= now else 0)) / 1e9
        lost = frozenset(
            model for model, (mode, limit_s) in self._loss.items() if mode == "baseline" and silent_s > limit_s
        )
        if lost != self._lost:
            self._lost = lost
            self._views.clear()

    @property
    def monitor_lost(self) -> frozenset[str]:
        """Models held on their baseline because the monitor is silent."""
        return self._lost

    def _on(self, model: str, variant: str, published: Latch | None) -> bool:
        key = self._keys.get((model, variant))
        if key is None:
            key = self._keys[model, variant] = slot_key(model, variant)
        local = self._word.latch(key)
        if local is None:
            return True
        if published is None:
            return local.on
        return max(local.seq, published.seq) > max(local.cleared, published.cleared)
