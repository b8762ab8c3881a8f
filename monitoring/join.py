"""Requests, teacher's answers and labels that belong together, joined by request key. Pure.

Any order of arrival: a label may come before or after the pair it completes. Memory is bounded
twice, by entries and by age (of the records, not of this process); what leaves unjoined is counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import msgspec

CAPACITY = 20_000
TTL_NS = 24 * 3600 * 1_000_000_000


class Pair(msgspec.Struct, frozen=True, array_like=True):
    """A candidate's class beside the teacher's for one request."""

    variant: str
    cls: int
    ref_cls: int


class LabelledPair(msgspec.Struct, frozen=True):
    """A pair whose true class is known."""

    variant: str
    teacher_right: bool
    candidate_right: bool


class _Entry(msgspec.Struct, array_like=True):
    at_ns: int
    answered: str = ""  # the variant that answered; "" while only a label or a pair is known
    label: int = -1
    pairs: list[Pair] = []


class JoinCounts(msgspec.Struct):
    """`joined`: labels by the variant that answered. The rest: labels that found no request in time
    (`unknown`), second labels for one request (`duplicate`), entries pushed out early (`evicted`)."""

    joined: dict[str, int] = {}
    unknown: int = 0
    duplicate: int = 0
    evicted: int = 0


class Joiner:
    """Joins for one model.

    Args:
        capacity: requests remembered.
        ttl_ns: how long each is remembered, nanoseconds of record time.
    """

    def __init__(self, capacity: int = CAPACITY, ttl_ns: int = TTL_NS) -> None:
        self._capacity = capacity
        self._ttl_ns = ttl_ns
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self.counts = JoinCounts()

    def request(self, key: int, variant: str, at_ns: int) -> None:
        """`variant` answered a request. The first answer under a key is the one that counts."""
        entry = self._entries.get(key)
        if entry is None:
            self._put(key, _Entry(at_ns, variant))
        elif not entry.answered:
            entry.answered = variant
            if entry.label >= 0:
                self._count(variant)

    def pair(self, key: int, variant: str, cls: int, ref_cls: int, at_ns: int) -> LabelledPair | None:
        """A candidate's and the teacher's class; the labelled pair if the label is there already."""
        entry = self._entries.get(key)
        if entry is None:
            entry = _Entry(at_ns)
            self._put(key, entry)
        if any(known.variant == variant for known in entry.pairs):
            return None
        pair = Pair(variant, cls, ref_cls)
        entry.pairs = [*entry.pairs, pair]
        return _labelled(pair, entry.label) if entry.label >= 0 else None

    def label(self, key: int, label: int, at_ns: int) -> list[LabelledPair]:
        """The true class of a request; the pairs that it completes. Only the first label counts."""
        if label < 0:
            return []
        entry = self._entries.get(key)
        if entry is None:
            entry = _Entry(at_ns)
            self._put(key, entry)
        if entry.label >= 0:
            self.counts.duplicate += 1
            return []
        entry.label = label
        if entry.answered:
            self._count(entry.answered)
        return [_labelled(pair, label) for pair in entry.pairs]

    def __len__(self) -> int:
        return len(self._entries)

    def state(self) -> dict[str, Any]:
        return {"entries": list(self._entries.items()), "counts": self.counts}

    def load(self, state: Mapping[str, Any]) -> None:
        self.counts = msgspec.convert(state["counts"], JoinCounts)
        self._entries = OrderedDict((int(key), msgspec.convert(entry, _Entry)) for key, entry in state["entries"])

    def _count(self, variant: str) -> None:
        self.counts.joined[variant] = self.counts.joined.get(variant, 0) + 1

    def _put(self, key: int, entry: _Entry) -> None:
        self._entries[key] = entry
        while self._entries:
            oldest = next(iter(self._entries.values()))
            full = len(self._entries) > self._capacity
            if not full and oldest.at_ns > entry.at_ns - self._ttl_ns:
                return
            _, gone = self._entries.popitem(last=False)
            self.counts.evicted += full
            if gone.label >= 0 and not gone.answered:
                self.counts.unknown += 1


def _labelled(pair: Pair, label: int) -> LabelledPair:
    return LabelledPair(pair.variant, pair.ref_cls == label, pair.cls == label)
