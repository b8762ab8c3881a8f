"""How long a newcomer would wait, from the measured pace of a variant and the work ahead of it.

A bounded first-in-first-out queue in front of a slow model makes everybody who is admitted wait for the
whole queue, so that under overload even accepted requests miss their objective. Whoever would wait too
long is therefore refused when it comes, while a retry elsewhere is still worth something. The estimate is
Little's law: work ahead (rows) times measured time a row.
"""

from __future__ import annotations

#: Weight of the newest batch in the pace: some ten batches make it follow a change.
WEIGHT = 0.2
#: A batch counts as at most so many times as slow as the pace: one that stalled says little of the next, and lasting
#: slowness still shows within ten batches (1.2 to the tenth is 6).
MOST = 2.0
#: Full batches before a pace is known; the quickest of them is its first value. One alone may be the one that a
#: start-up or a busy host stalled, and would have light traffic refused after it.
LEAST = 3


class Pace:
    """The time that a row takes while there is a backlog, and the batches under way.

    Attributes:
        row_ns: nanoseconds a row of a full batch, over all that it takes a worker; 0 until `LEAST` were measured.
        bound_ns: what a row costs at most, by whatever batches there were; 0 before the first.
    """

    __slots__ = ("_first", "_running", "bound_ns", "row_ns")

    def __init__(self) -> None:
        self.row_ns = 0.0
        self.bound_ns = 0.0
        self._first: list[float] = []  # ns a row of the first full batches
        self._running: dict[int, tuple[int, int]] = {}  # batch key: rows, start

    @property
    def running_rows(self) -> int:
        """Rows of all batches under way."""
        return sum(rows for rows, _ in self._running.values())

    def started(self, key: int, rows: int, now_ns: int) -> None:
        """A worker has begun a batch."""
        self._running[key] = (rows, now_ns)

    def ended(self, key: int) -> None:
        """It is over, whatever came of it."""
        self._running.pop(key, None)

    def measured(self, rows: int, took_ns: int, *, full: bool) -> None:
        """Learn from a batch that succeeded.

        A batch that was not full shows what a row costs at most (a batch has a fixed cost that more rows
        would share), so that it may lower the pace and never raises it.
        """
        row_ns = took_ns / rows
        if not self.bound_ns:
            self.bound_ns = row_ns
        self.bound_ns += WEIGHT * (min(row_ns, MOST * self.bound_ns) - self.bound_ns)
        if full and not self.row_ns:
            self._first.append(row_ns)
            if len(self._first) == LEAST:
                self.row_ns = min(self._first)
        elif full or row_ns < self.row_ns:
            self.row_ns += WEIGHT * (min(row_ns, MOST * self.row_ns) - self.row_ns)

    def capacity(self, workers: int) -> float:
        """Rows a second that so many workers can do in full batches; 0 while the pace is unknown."""
        return workers * 1e9 / self.row_ns if self.row_ns else 0.0

    def capacity_at_least(self, workers: int) -> float:
        """The same, or while the pace is unknown what batches show at least; 0 while there was no batch at all."""
        return self.capacity(workers) or (workers * 1e9 / self.bound_ns if self.bound_ns else 0.0)

    def wait_ns(self, rows_ahead: int, workers: int, now_ns: int) -> int:
        """Expected time until the batch of a newcomer starts, ns; 0 while the pace is unknown.

        Args:
            rows_ahead: rows that are queued and go first.
            workers: how many share them.
        """
        if not self.row_ns:
            return 0
        ahead = rows_ahead * self.row_ns
        for rows, since_ns in self._running.values():
            ahead += max(0.0, rows * self.row_ns - (now_ns - since_ns))
        return int(ahead / max(1, workers))
