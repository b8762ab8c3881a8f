"""Requests, teacher's answers and labels that belong together, joined by request key. Pure.

Any order of arrival: a label may come before or after the pair it completes. Memory is bounded twice, by entries and by
age (of the records, not of this process); what leaves unjoined is counted. The newest half of the entries is of every
request; of older ones those are kept whose key is divisible by a power of two, which grows and falls with their number.
So prompt labels all count, however many requests there are, and of late ones a sample, chosen by nothing but a hash.
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
    epoch: int = 0  # by whose weights the request was routed


class LabelledPair(msgspec.Struct, frozen=True):
    """A pair whose true class is known."""

    variant: str
    teacher_right: bool
    candidate_right: bool
    prob: float = 0.0
    shadow: bool = False
    epoch: int = 0


class Answer(msgspec.Struct, frozen=True):
    """An answer that was given and whose true class is known."""

    variant: str
    cls: int  # that was named, >= 0
    label: int
    prob: float  # of the class that was named
    epoch: int = 0  # by whose weights the request was routed


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
    epoch: int = 0


class JoinCounts(msgspec.Struct):
    """What became of labels.

    Args:
        joined: labels by the variant that answered.
        answers: answers by the variant that gave them, labelled or not.
        delays: labels by variant and by how long after the answer they came: see `DELAYS_S`, and one for later.
        unknown: labels that found no request in time.
        duplicate: second labels for one request.
        evicted: entries pushed out before their time.
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
        self._recent: OrderedDict[int, _Entry] = OrderedDict()
        self._sample: OrderedDict[int, _Entry] = OrderedDict()
        self._thin = 0  # only keys that are divisible by 2 ** thin are in the sample
        self.counts = JoinCounts()

    def request(
        self, key: int, variant: str, at_ns: int, cls: int = -1, prob: float = 0.0, epoch: int = 0
    ) -> Answer | None:
        """`variant` answered a request; the labelled answer if the label is there already.

        The first answer under a key is the one that counts.

        Args:
            cls: the class it named; -1 if the answer is to be in no statistic of the variant.
            epoch: by whose weights it was routed.
        """
        entry = self._find(key)
        if entry is None:
            self._put(key, _Entry(at_ns, variant, cls=cls, prob=prob, epoch=epoch))
        elif entry.answered:
            return None
        else:
            entry.answered, entry.cls, entry.prob, entry.epoch = variant, cls, prob, epoch
            if entry.label >= 0:
                self._count(variant, 0)  # the label was there first
        self.counts.answers[variant] = self.counts.answers.get(variant, 0) + 1
        return _answer(entry) if entry is not None else None

    def pair(
        self,
        key: int,
        variant: str,
        cls: int,
        ref_cls: int,
        at_ns: int,
        prob: float = 0.0,
        shadow: bool = False,
        epoch: int = 0,
    ) -> LabelledPair | None:
        """A candidate's and the teacher's class; the labelled pair if the label is there already."""
        entry = self._find(key)
        if entry is None:
            entry = _Entry(at_ns)
            self._put(key, entry)
        if any(known.variant == variant for known in entry.pairs):
            return None
        pair = Pair(variant, cls, ref_cls, prob, shadow, epoch)
        entry.pairs = [*entry.pairs, pair]
        return _labelled(pair, entry.label) if entry.label >= 0 else None

    def label(self, key: int, label: int, at_ns: int) -> Truth:
        """The true class of a request; what that completes. Only the first label counts."""
        if label < 0:
            return Truth()
        entry = self._find(key)
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
        return len(self._recent) + len(self._sample)

    def state(self) -> dict[str, Any]:
        return {
            "recent": list(self._recent.items()),
            "sample": list(self._sample.items()),
            "thin": self._thin,
            "counts": self.counts,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.counts = msgspec.convert(state["counts"], JoinCounts)
        self._thin = int(state["thin"])
        self._recent, self._sample = (
            OrderedDict((int(key), msgspec.convert(entry, _Entry)) for key, entry in state[part])
            for part in ("recent", "sample")
        )

    def _find(self, key: int) -> _Entry | None:
        return self._recent.get(key) or self._sample.get(key)

    def _count(self, variant: str, delay_ns: int) -> None:
        self.counts.joined[variant] = self.counts.joined.get(variant, 0) + 1
        delays = self.counts.delays.setdefault(variant, [0] * (len(DELAYS_S) + 1))
        delays[bisect_left(DELAYS_S, delay_ns / 1e9)] += 1

    def _put(self, key: int, entry: _Entry) -> None:
        self._recent[key] = entry
        too_old_ns = entry.at_ns - self._ttl_ns
        for part in (self._sample, self._recent):
            while part and next(iter(part.values())).at_ns <= too_old_ns:
                self._forget(part.popitem(last=False)[1])
        if len(self._recent) > self._capacity // 2:
            older, its = self._recent.popitem(last=False)
            if self._sampled(older):
                self._sample[older] = its
            else:
                self._forget(its, early=True)
        if len(self._sample) > self._capacity // 2:
            self._thin += 1
            for thinned in [known for known in self._sample if not self._sampled(known)]:
                self._forget(self._sample.pop(thinned), early=True)
        elif self._thin and len(self._sample) < self._capacity // 16:
            self._thin -= 1

    def _sampled(self, key: int) -> bool:
        return not key & ((1 << self._thin) - 1)

    def _forget(self, gone: _Entry, early: bool = False) -> None:
        self.counts.evicted += early
        if gone.label >= 0 and not gone.answered:
            self.counts.unknown += 1


def _labelled(pair: Pair, label: int) -> LabelledPair:
    return LabelledPair(pair.variant, pair.ref_cls == label, pair.cls == label, pair.prob, pair.shadow, pair.epoch)


def _answer(entry: _Entry) -> Answer | None:
    if not entry.answered or entry.cls < 0 or entry.label < 0:
        return None
    return Answer(entry.answered, entry.cls, entry.label, entry.prob, entry.epoch)
