"""Which queued requests run together: a pure policy over rows, bytes, signatures and deadlines.

The queue is work-conserving: whoever has a free worker calls `take` and gets what may run
now. It knows two lanes. Live work always goes first; shadow work (copies whose answers are
never returned) runs only while no live work is queued, is never mixed into a live batch and
is evicted to make room for live work. All queues are bounded in rows, not in requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from serving.core.arrays import Arrays

#: Elements of a padded batch for each element asked for: on a CPU a run costs what is computed, zeros included, and
#: little besides, so that more padding than this costs more than one more batch.
MAX_PADDING = 1.125
#: `take` looks at no more than this many entries a batch row, so that its cost is bounded.
SCAN_FACTOR = 4


@dataclass(slots=True, eq=False)
class Entry:
    """One schedulable piece of work: a request, or a chunk of one that is over `max_batch`.

    Attributes:
        owner: whatever the caller needs to find its request again.
        inputs: the arrays; axis 0 has `rows` rows unless the entry is not batchable.
        signature: only entries of equal signature share a batch.
        cells: elements of the paddable inputs, and `width` their length on axis 1 (0: none).
    """

    owner: Any
    inputs: Arrays
    rows: int
    bytes: int
    signature: Hashable
    deadline_ns: int
    live: bool = True
    width: int = 0
    seq: int = field(default=0, init=False)
    due_ns: int = field(default=0, init=False)
    queued: bool = field(default=False, init=False)


class Offer(NamedTuple):
    """What became of an offer: admitted or not, and which queued entries left because of it."""

    admitted: bool
    expired: Sequence[Entry] = ()
    evicted: Sequence[Entry] = ()


class Take(NamedTuple):
    """A batch to run (maybe empty) and the entries whose deadline passed before it closed."""

    entries: Sequence[Entry] = ()
    expired: Sequence[Entry] = ()


class _Lane:
    """Entries in order of arrival, and the same entries by signature."""

    __slots__ = ("groups", "order", "rows")

    def __init__(self) -> None:
        self.order: OrderedDict[int, Entry] = OrderedDict()
        self.groups: dict[Hashable, OrderedDict[int, Entry]] = {}
        self.rows = 0

    def add(self, entry: Entry) -> None:
        self.order[entry.seq] = entry
        group = self.groups.get(entry.signature)
        if group is None:
            group = self.groups[entry.signature] = OrderedDict()
        group[entry.seq] = entry
        self.rows += entry.rows
        entry.queued = True

    def remove(self, entry: Entry) -> None:
        del self.order[entry.seq]
        group = self.groups[entry.signature]
        del group[entry.seq]
        if not group:
            del self.groups[entry.signature]
        self.rows -= entry.rows
        entry.queued = False

    def head(self) -> Entry:
        return next(iter(self.order.values()))

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self.order.values()))


class BatchQueue:
    """The bounded two-lane queue of one variant.

    Args:
        max_batch: most rows of a batch.
        max_rows: most rows queued, both lanes together.
        max_bytes: most input bytes of a batch; a single entry may be larger.
        max_queue_delay_ns: how long a free worker may wait for a fuller batch; 0 = not at all.
        max_padding: most elements of a padded batch for each element asked for.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        max_rows: int,
        max_bytes: int = 64 << 20,
        max_queue_delay_ns: int = 0,
        max_padding: float = MAX_PADDING,
    ) -> None:
        if max_batch < 1 or max_rows < 1 or max_bytes < 1 or max_queue_delay_ns < 0 or max_padding < 1:
            raise ValueError("max_batch, max_rows and max_bytes are at least 1, the delay 0, max_padding 1")
        self.max_batch = max_batch
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        self.max_queue_delay_ns = max_queue_delay_ns
        self.max_padding = max_padding
        self._live = _Lane()
        self._shadow = _Lane()
        self._seq = 0
        self._earliest_ns = 0  # no queued deadline is earlier: spares most searches for expired work

    @property
    def rows(self) -> int:
        """Rows queued, both lanes."""
        return self._live.rows + self._shadow.rows

    @property
    def live_rows(self) -> int:
        """Rows queued in the live lane."""
        return self._live.rows

    def offer(self, entries: Sequence[Entry], now_ns: int) -> Offer:
        """Queue all entries of one request, or none.

        A full queue first loses its expired entries, then, to live work, its oldest shadow work.
        """
        rows = sum(entry.rows for entry in entries)
        expired: list[Entry] = []
        evicted: list[Entry] = []
        if self.rows + rows > self.max_rows:
            expired = self._expire(now_ns)
            live = entries[0].live
            room = self.max_rows - (self._live.rows if live else self.rows)
            if rows > room:
                return Offer(False, expired)
            while self.rows + rows > self.max_rows:
                victim = self._shadow.head()
                self._shadow.remove(victim)
                evicted.append(victim)
        if not self.rows:
            self._earliest_ns = entries[0].deadline_ns
        for entry in entries:
            self._seq += 1
            entry.seq = self._seq
            # Never spend more than half of the time a request has on waiting for company.
            entry.due_ns = now_ns + min(self.max_queue_delay_ns, (entry.deadline_ns - now_ns) // 2)
            self._earliest_ns = min(self._earliest_ns, entry.deadline_ns)
            (self._live if entry.live else self._shadow).add(entry)
        return Offer(True, expired, evicted)

    def remove(self, entry: Entry) -> bool:
        """Take one entry out (its caller went away). False if it is no longer queued."""
        if not entry.queued:
            return False
        (self._live if entry.live else self._shadow).remove(entry)
        return True

    def wait_ns(self, now_ns: int) -> int | None:
        """How long a free worker should still wait; 0 = take now, None = nothing is queued."""
        lane = self._live if self._live.rows else self._shadow
        if not lane.order:
            return None
        if not self.max_queue_delay_ns or lane.rows >= self.max_batch:
            return 0
        return max(0, lane.head().due_ns - now_ns)

    def take(self, now_ns: int, share: int = 0) -> Take:
        """Close a batch: the oldest entry, and whatever of its signature still fits beside it.

        Args:
            share: rows at which the batch is large enough, the rest being left to other workers; 0 = no such bound.
        """
        expired: list[Entry] = []
        for lane in (self._live, self._shadow):
            while lane.order:
                head = lane.head()
                if head.deadline_ns > now_ns:
                    return Take(self._collect(lane, head, now_ns, share, expired), expired)
                lane.remove(head)
                expired.append(head)
        return Take((), expired)

    def clear(self) -> list[Entry]:
        """Empty the queue and return what was in it, oldest first."""
        entries = sorted((*self._live, *self._shadow), key=lambda entry: entry.seq)
        for entry in entries:
            self.remove(entry)
        return entries

    def _collect(self, lane: _Lane, head: Entry, now_ns: int, share: int, expired: list[Entry]) -> list[Entry]:
        batch, late = [head], []
        most = min(self.max_batch, share or self.max_batch)
        rows, size, width, asked = head.rows, head.bytes, head.width, head.rows * head.width
        scan = SCAN_FACTOR * self.max_batch
        for entry in lane.groups[head.signature].values():
            if rows >= most or scan <= 0:
                break
            scan -= 1
            if entry is head:
                continue
            if entry.deadline_ns <= now_ns:
                late.append(entry)
                continue
            if rows + entry.rows > most or size + entry.bytes > self.max_bytes:
                continue
            widest, cells = max(width, entry.width), asked + entry.rows * entry.width
            if widest * (rows + entry.rows) > self.max_padding * cells:
                continue
            batch.append(entry)
            rows, size, width, asked = rows + entry.rows, size + entry.bytes, widest, cells
        for entry in batch:
            lane.remove(entry)
        for entry in late:
            lane.remove(entry)
        expired.extend(late)
        return batch

    def _expire(self, now_ns: int) -> list[Entry]:
        if now_ns < self._earliest_ns:
            return []
        expired, earliest = [], now_ns + (1 << 62)
        for lane in (self._live, self._shadow):
            for entry in lane:
                if entry.deadline_ns <= now_ns:
                    lane.remove(entry)
                    expired.append(entry)
                else:
                    earliest = min(earliest, entry.deadline_ns)
        self._earliest_ns = earliest
        return expired
