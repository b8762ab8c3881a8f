"""Requests, teacher's answers and labels that belong together, joined by request key. Pure.

Any order of arrival: a label may come before or after the pair it completes. Memory is bounded
twice, by entries and by age (of the records, not of this process); what leaves unjoined is counted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import msgspec

CAPACITY = 20_000
TTL_NS = 24 * 3600 * 1_000_000_000


#: Upper ends of the classes by which the delay of labels is told, seconds.
DELAYS_S = (60, 600, 3600, 21_600, 86_400)


class Pair(msgspec.Struct, frozen=True, array_like=True):
    """A candidate's class beside the teacher's for one request."""

    variant: str
    cls: int
    ref_cls: int
    prob: float = 0.0  # the candidate's probability of its class
    shadow: bool = False  # nobody was given that answer


class LabelledPair(msgspec.Struct, frozen=True):
    """A pair whose true class is known."""

    variant: str
    teacher_right: bool
    candidate_right: bool
    prob: float = 0.0
    shadow: bool = False


class Answer(msgspec.Struct, frozen=True):
    """An answer that was given and whose true class is known."""

    variant: str
    cls: int  # that was named, >= 0
    label: int
    prob: float  # of the class that was named


class Truth(msgspec.Struct, frozen=True):
    """What a label completes."""

    pairs: list[LabelledPair] = []
    answer: Answer | None = None


class _Entry(msgspec.Struct, array_like=True):
    at_ns: int
    answered: str = ""  # the variant that answered; "" while only a label or a pair is known
    label: int = -1
    pairs: list[Pair] = []
    cls: int = -1  # of the answer; -1: it is none that counts
    prob: float = 0.0


class JoinCounts(msgspec.Struct):
    """What became of labels.

    Args:
        joined: labels by the variant that answered.
        answers: answers by the variant that gave them, labelled or not.
        delays: labels by variant and by how long after the answer they came: see `DELAYS_S`, and one for later.
        unknown: labels that found no request in time.
        duplicate: second labels for one request.
        evicted: entries pushed out early.
    """

    joined: dict[str, int] = {}
    answers: dict[str, int] = {}
    delays: dict[str, list[int]] = {}
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

    def request(self, key: int, variant: str, at_ns: int, cls: int = -1, prob: float = 0.0) -> Answer | None:
        """`variant` answered a request; the labelled answer if the label is there already.

        The first answer under a key is the one that counts.

        Args:
            cls: the class it named; -1 if the answer is to be in no statistic of the variant.
        """
        entry = self._entries.get(key)
        if entry is None:
            self._put(key, _Entry(at_ns, variant, cls=cls, prob=prob))
        elif entry.answered:
            return None
        else:
            entry.answered, entry.cls, entry.prob = variant, cls, prob
            if entry.label >= 0:
                self._count(variant, 0)  # the label was there first
        self.counts.answers[variant] = self.counts.answers.get(variant, 0) + 1
        return _answer(entry) if entry is not None else None

    def pair(
        self, key: int, variant: str, cls: int, ref_cls: int, at_ns: int, prob: float = 0.0, shadow: bool = False
    ) -> LabelledPair | None:
        """A candidate's and the teacher's class; the labelled pair if the label is there already."""
        entry = self._entries.get(key)
        if entry is None:
            entry = _Entry(at_ns)
            self._put(key, entry)
        if any(known.variant == variant for known in entry.pairs):
            return None
        pair = Pair(variant, cls, ref_cls, prob, shadow)
        entry.pairs = [*entry.pairs, pair]
        return _labelled(pair, entry.label) if entry.label >= 0 else None

    def label(self, key: int, label: int, at_ns: int) -> Truth:
        """The true class of a request; what that completes. Only the first label counts."""
        if label < 0:
            return Truth()
        entry = self._entries.get(key)
        if entry is None:
            entry = _Entry(at_ns)
            self._put(key, entry)
        if entry.label >= 0:
            self.counts.duplicate += 1
            return Truth()
        entry.label = label
        if entry.answered:
            self._count(entry.answered, at_ns - entry.at_ns)
        return Truth([_labelled(pair, label) for pair in entry.pairs], _answer(entry))

    def __len__(self) -> int:
        return len(self._entries)

    def state(self) -> dict[str, Any]:
        return {"entries": list(self._entries.items()), "counts": self.counts}

    def load(self, state: Mapping[str, Any]) -> None:
        self.counts = msgspec.convert(state["counts"], JoinCounts)
        self._entries = OrderedDict((int(key), msgspec.convert(entry, _Entry)) for key, entry in state["entries"])

    def _count(self, variant: str, delay_ns: int) -> None:
        self.counts.joined[variant] = self.counts.joined.get(variant, 0) + 1
        delays = self.counts.delays.setdefault(variant, [0] * (len(DELAYS_S) + 1))
        delays[bisect_left(DELAYS_S, delay_ns / 1e9)] += 1

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
    return LabelledPair(pair.variant, pair.ref_cls == label, pair.cls == label, pair.prob, pair.shadow)


def _answer(entry: _Entry) -> Answer | None:
    if not entry.answered or entry.cls < 0 or entry.label < 0:
        return None
    return Answer(entry.answered, entry.cls, entry.label, entry.prob)
