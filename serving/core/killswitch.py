"""Arithmetic of latches: a kill (or veto) is a counter, in force while `seq > cleared`.

Two copies of a latch (the store's and the control word's) are joined by taking the larger
of each counter, so the order in which they meet never matters.
"""

from __future__ import annotations

import msgspec

from serving.contract import Latch

OFF = Latch()


class KillNote(msgspec.Struct, frozen=True):
    """Who set a kill in the control word, and why. `slot`: the model, or "*"."""

    slot: str
    seq: int
    actor: str
    reason: str


def engage(latch: Latch, at_least: int = 0) -> Latch:
    """Put a latch in force. One already in force keeps its seq unless `at_least` is higher."""
    seq = latch.seq if latch.on else max(latch.seq, latch.cleared) + 1
    return Latch(max(seq, at_least), latch.cleared)


def release(latch: Latch) -> Latch:
    """Clear a latch up to the seq that is in force now; a higher one stays in force."""
    return Latch(latch.seq, max(latch.cleared, latch.seq))


def merge(one: Latch, other: Latch) -> Latch:
    """The latch that two copies amount to."""
    return Latch(max(one.seq, other.seq), max(one.cleared, other.cleared))
