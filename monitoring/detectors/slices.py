"""Is one declared slice of the traffic worse served than the rest can hide?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from monitoring.detectors.base import BatchRace, Detector
from monitoring.detectors.betting import Averaged

#: What is watched in each slice, in the order of the hypotheses.
AGREEMENT, ERRORS = 0, 1
WORDS = ("agreement", "errors")


class Slices(Detector):
    """Agreement and errors in each declared slice, corrected for how many slices there are.

    Assumption: a request's slices are known before it is routed and do not depend on the variant; within a slice units
    fall to the arms by a hash as they do in all, and pairs are sampled whatever the answers are.
    Observation, for each slice that a request is in: of a pair, X = flipped rows / rows, in [0, 1]; at each error event
    (a batch counts once) X = 1{it came from the candidate}.
    Formula: for each slice one e-process of E[X | past] <= limit and one of E[X | past] <= w r / (w r + 1 - w), w the
    candidate's share and r the tolerated ratio. e-BH over these 2 K hypotheses: the k largest e-values are rejected for
    the largest k whose k-th is at least 2 K / (k alpha). `log_evidence` is max_k log(e_(k) k / 2 K), so that it is held
    to log(1 / alpha) as any other. At most a share alpha of the slices that are named is named wrongly, on average; and
    if none is worse, the chance that any ever is named is at most alpha, because that needs the mean of all e-values
    to reach 1 / alpha. It never passes.
    Source: Wang & Ramdas, "False discovery rate control with e-values" (JRSS B 2022); betting.py for the e-processes.

    Args:
        names: the slices, in the order of their bits.
        limit: tolerated share of flips in a slice, in (0, 1).
        ratio: tolerated ratio r of the error odds, >= 1.

    >>> guard = Slices(["short", "de"], limit=0.15)
    >>> next(n for n in range(1, 100) if guard.pair(0b10 if n % 2 else 0b01, flips=n % 2))
    11
    >>> guard.named
    ['de: agreement']
    """

    name: ClassVar[str] = "slices"
    FIELDS: ClassVar[tuple[str, ...]] = (*Detector.FIELDS, "evidence", "race", "seen", "named")
    NULL: ClassVar[tuple[str, ...]] = (*Detector.NULL, "names", "limit", "ratio")

    def __init__(self, names: Sequence[str], limit: float = 0.15, ratio: float = 1.25, **budgets: float) -> None:
        self.names = list(names)
        self.limit = limit
        self.ratio = ratio
        self.evidence = Averaged(2 * len(self.names))
        self.race = BatchRace()
        super().__init__(**budgets)

    def reset(self) -> None:
        super().reset()
        self.evidence.reset()
        self.race.reset()
        self.seen = [[0, 0, 0, 0] for _ in self.names]  # rows, flips, error events, of the candidate
        self.named: list[str] = []  # what failed, with the words of `monitoring.guards.slices`

    @property
    def log_evidence(self) -> float:
        """log of what e-BH compares with 1 / alpha."""
        logs = self._sorted()
        return float(np.max(logs + np.log(np.arange(1, len(logs) + 1)))) - math.log(len(logs)) if len(logs) else 0.0

    def pair(self, slices: int, flips: int, rows: int = 1) -> bool:
        """One pair in these slices (bits); True when it makes the detector fail."""
        if rows <= 0 or not slices:
            return False
        flips = min(max(flips, 0), rows)
        self.observations += 1
        self.events += flips > 0
        for at in self._of(slices):
            self.seen[at][0] += rows
            self.seen[at][1] += flips
            self.evidence.update(2 * at + AGREEMENT, flips / rows, self.limit)
        return self._judge()

    def request(self, slices: int, from_candidate: bool, error: bool, share: float, batch_key: int = 0) -> bool:
        """One live request of either arm in these slices; True when it makes the detector fail.

        Args:
            share: the candidate's configured share of the two arms' traffic, in [0, 1].
        """
        expected = self.race.share(share) if error else 0.0  # as known before this request
        self.race.count(from_candidate, batch_key)
        if not error or not slices or share >= 1.0 or not self.race.first(batch_key):
            return False
        odds = expected * self.ratio
        limit = odds / (odds + 1.0 - expected)
        self.observations += 1
        self.events += from_candidate
        for at in self._of(slices):
            self.seen[at][2] += 1
            self.seen[at][3] += from_candidate
            self.evidence.update(2 * at + ERRORS, float(from_candidate), limit)
        return self._judge()

    def rejected(self) -> list[tuple[int, int]]:
        """(slice, AGREEMENT or ERRORS) of every hypothesis that e-BH rejects now."""
        logs = self._sorted()
        needed = math.log(len(logs)) - np.log(np.arange(1, len(logs) + 1)) + self.log_threshold if len(logs) else logs
        over = np.flatnonzero(logs >= needed)
        if not len(over):
            return []
        least = float(logs[over[-1]])
        return [divmod(at, 2) for at in range(2 * len(self.names)) if self.evidence.log_evidence_of(at) >= least]

    def _judge(self) -> bool:
        if not self.failed and self.evidence.most < self.log_threshold:
            return False  # what e-BH compares is not over the largest product, and nothing here passes
        failed = super()._judge()
        if failed:
            self.settle()
        return failed

    def settle(self) -> None:
        """Once it has failed, note what else e-BH rejects since."""
        if self.failed:
            found = (f"{self.names[at]}: {WORDS[what]}" for at, what in self.rejected())
            self.named += [one for one in found if one not in self.named]

    def _sorted(self) -> Any:
        return np.sort(self.evidence.log_evidence_of_each())[::-1]

    def _of(self, slices: int) -> Iterator[int]:
        return (at for at in range(len(self.names)) if slices >> at & 1)

    def numbers(self) -> dict[str, Any]:
        return {
            "limit": self.limit,
            "named": ", ".join(self.named),
            "slices": {
                name: {
                    "rows": rows,
                    "flips": flips,
                    "error_events": events,
                    "of_candidate": own,
                    "log_agreement_evidence": round(self.evidence.log_evidence_of(2 * at + AGREEMENT), 4),
                    "log_errors_evidence": round(self.evidence.log_evidence_of(2 * at + ERRORS), 4),
                }
                for at, (name, (rows, flips, events, own)) in enumerate(zip(self.names, self.seen, strict=True))
            },
        }
