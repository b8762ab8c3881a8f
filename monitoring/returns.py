"""Which arm a business KPI belongs to: requests remembered for a day, a sample of them if there are many. Pure.

A KPI comes back hours after its request. Of more requests than fit, those are kept whose key is divisible by a power
of two, and that power grows and falls with their number: which ones are remembered depends on nothing but a hash, so
the sample is as good for either arm. Any order of arrival: a KPI may be read before its request.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

CAPACITY = 20_000
TTL_NS = 24 * 3600 * 1_000_000_000
#: KPIs of one request, and of one that was not read yet.
VALUES_MAX = 16


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """A request that an arm was given by the split."""

    variant: str
    unit: int
    epoch: int


class _Entry(msgspec.Struct, array_like=True):
    at_ns: int
    asked: Asked | None = None
    returned: list[tuple[int, float]] = []  # (hash of the KPI's name, value), what was taken and what waits


class Returned(msgspec.Struct, frozen=True):
    """A KPI's value and the request that it is of."""

    asked: Asked
    kpi: int  # hash of its name
    value: float


class Returns:
    """Joins the KPIs of one model to its requests.

    Args:
        capacity: requests remembered.
        ttl_ns: how long each is remembered, nanoseconds of record time.
    """

    def __init__(self, capacity: int = CAPACITY, ttl_ns: int = TTL_NS) -> None:
        self._capacity = capacity
        self._ttl_ns = ttl_ns
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._thin = 0  # only keys that are divisible by 2 ** thin are remembered
        self.joined = 0
        self.unjoined = 0  # KPIs of requests that were not remembered, or not seen within the time

    def request(self, key: int, asked: Asked, at_ns: int) -> list[Returned]:
        """A request; what came back for it before it was read. The first under a key is the one that counts."""
        if key & ((1 << self._thin) - 1):
            return []
        entry = self._entries.get(key)
        if entry is None:
            self._put(key, _Entry(at_ns, asked))
        elif entry.asked is None:
            entry.asked = asked
            self.joined += len(entry.returned)
            return [Returned(asked, kpi, value) for kpi, value in entry.returned]
        return []

    def kpi(self, key: int, kpi: int, value: float, at_ns: int) -> Returned | None:
        """A KPI; with its request if that is known. The first value of each KPI counts."""
        if key & ((1 << self._thin) - 1):
            self.unjoined += 1
            return None
        entry = self._entries.get(key)
        if entry is None:
            entry = _Entry(at_ns)
            self._put(key, entry)
            if key not in self._entries:  # thinned out at once
                self.unjoined += 1
                return None
        if len(entry.returned) >= VALUES_MAX or any(known == kpi for known, _ in entry.returned):
            return None
        entry.returned = [*entry.returned, (kpi, value)]
        if entry.asked is None:
            return None
        self.joined += 1
        return Returned(entry.asked, kpi, value)

    def __len__(self) -> int:
        return len(self._entries)

    def _put(self, key: int, entry: _Entry) -> None:
        self._entries[key] = entry
        oldest = next(iter(self._entries))
        while self._entries[oldest].at_ns <= entry.at_ns - self._ttl_ns:
            self._forget(oldest)
            oldest = next(iter(self._entries))
        if len(self._entries) > self._capacity:
            self._thin += 1
            for thinned in [known for known in self._entries if known & ((1 << self._thin) - 1)]:
                self._forget(thinned)
        elif self._thin and len(self._entries) < self._capacity // 8:
            self._thin -= 1

    def _forget(self, key: int) -> None:
        gone = self._entries.pop(key)
        if gone.asked is None:
            self.unjoined += len(gone.returned)

    def state(self) -> dict[str, Any]:
        return {
            "entries": list(self._entries.items()),
            "thin": self._thin,
            "joined": self.joined,
            "unjoined": self.unjoined,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Raises `KeyError`, `TypeError` or `ValueError` if it is damaged."""
        self._entries = OrderedDict(_stored(state["entries"]))
        self._thin, self.joined, self.unjoined = (int(state[key]) for key in ("thin", "joined", "unjoined"))


def _stored(entries: list[Any]) -> Iterator[tuple[int, _Entry]]:
    for key, entry in entries:
        yield int(key), msgspec.convert(entry, _Entry)
