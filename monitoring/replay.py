"""The guards over recorded events: what they would have said, second by second of the recorded time. Pure.

Records do not hold weights. Those of an epoch are taken from its requests: a variant's share is that of the live
requests routed to it. All records are one arming: evidence is gathered from the first on and never starts anew.
Objectives (SLOs) are not judged, because they are counted from aggregates, which a recording does not have.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from monitoring.config import MonitorModel
from monitoring.evidence import Evidence, Records, events
from monitoring.recording import Recording
from monitoring.verdicts import Verdict
from serving.contract import BUCKETS, Flag, Kind, RouteTable, Snapshot, VariantEntry

TICK_NS = 1_000_000_000
#: More recorded time than this, nanoseconds, is a clock that went wrong.
LONGEST_NS = 400 * 86_400 * 1_000_000_000


class Look(msgspec.Struct, frozen=True):
    """What was known of the candidate at one moment.

    Args:
        wall_ns: the moment, nanoseconds since the epoch.
        verdicts: one a guard.
        live, pairs, suspect: see `ModelGuards.counts`.
    """

    wall_ns: int
    verdicts: list[Verdict]
    live: int
    pairs: int
    suspect: float


class Tripped(msgspec.Struct, frozen=True):
    """The record at which a guard failed. `action`: pause, rollback or kill; the counts include the record."""

    guard: str
    action: str
    wall_ns: int
    live: int
    pairs: int
    suspect: float
    sentence: str
    statistic: dict[str, Any]


class Replay:
    """One run over a recording.

    Args:
        config: the model as a monitor would know it; `baseline` and `teacher` must be in the recording.
        variant: the candidate that is looked at.

    Raises:
        ValueError: the recording spans over 400 days.
    """

    def __init__(self, recording: Recording, name: str, config: MonitorModel, variant: str) -> None:
        wall = recording.records["wall_ns"]
        self.begin_ns, self.end_ns = int(wall.min()), int(wall.max())
        if self.end_ns - self.begin_ns > LONGEST_NS:
            days = (self.end_ns - self.begin_ns) // (86_400 * 1_000_000_000)
            raise ValueError(
                f"the records span {days} days, over {LONGEST_NS // (86_400 * 1_000_000_000)}: narrow them"
            )
        self.trips: list[Tripped] = []
        self._name, self._variant, self._now_ns = name, variant, self.begin_ns
        self._recording = recording
        self._evidence = Evidence(name, config)
        self._tables = tables(recording, name, config.baseline, config.teacher)
        self._noted: dict[str, int] = {}  # by guard: 1 once it has paused, 2 once it has failed

    def looks(self) -> Iterator[Look]:
        """Feed all records; a look at each second of the recorded time, and one at its end."""
        guards, waiting = self._evidence.guards, dict(self._tables)
        next_ns = self.begin_ns
        look = self.now()
        fed = False
        for _, event in events(self._recording.records, self._recording.variants):
            self._now_ns = max(self._now_ns, event.wall_ns)
            while next_ns <= self._now_ns:
                look = self._look(next_ns) if fed else msgspec.structs.replace(look, wall_ns=next_ns)
                fed = False
                yield look
                next_ns += TICK_NS
            if event.epoch in waiting and event.kind in _ROUTED:
                # With those before it: one gateway may still answer by an epoch that another has never seen.
                for epoch in [epoch for epoch in waiting if epoch <= event.epoch]:
                    guards.configure(Snapshot(epoch, 0, {self._name: waiting.pop(epoch)}))
            self._evidence.take(event)
            self._watch()
            fed = True
        yield self.now()

    def now(self) -> Look:
        """What is known by the records fed so far, at the time of the latest."""
        return self._look(self._now_ns)

    def _watch(self) -> None:
        """Note what the latest record has made fail."""
        for guard, judge in self._evidence.guards.candidates[self._variant].guards.items():
            detector = judge.detector
            level = 2 if detector.failed else int(detector.breached)
            if level <= self._noted.get(guard, 0):
                continue
            self._noted[guard] = level
            look = self.now()
            said = next(verdict for verdict in look.verdicts if verdict.guard == guard)
            self.trips.append(
                Tripped(
                    guard, said.action, look.wall_ns, look.live, look.pairs, look.suspect, said.sentence, said.statistic
                )
            )

    def _look(self, now_ns: int) -> Look:
        guards = self._evidence.guards
        counts = guards.counts()[self._variant]
        live, pairs, suspect = int(counts["live"]), int(counts["pairs"]), float(counts["suspect"])
        return Look(now_ns, guards.judged(self._variant), live, pairs, suspect)


_ROUTED = (Kind.REQUEST, Kind.REFERENCE, Kind.SHADOW)
_SPLIT = Flag.LIVE | Flag.KILLED | Flag.UNOPENED  # of a live request, LIVE alone: it was routed by the weights


def tables(recording: Recording, model: str, baseline: str, teacher: str) -> dict[int, RouteTable]:
    """The routing of each epoch, as far as its records tell; epochs ascend."""
    records, variants = recording.records, recording.variants
    entries = {name: VariantEntry(name, at, f"{model}/{name}") for at, name in enumerate(variants, 1)}
    found: dict[int, RouteTable] = {}
    since: dict[str, int] = {}
    routed = records[np.isin(records["kind"], _ROUTED)]
    for epoch in np.unique(routed["epoch"]).tolist():
        of_epoch = routed[routed["epoch"] == epoch]
        live = of_epoch[(of_epoch["kind"] == Kind.REQUEST) & (of_epoch["flags"] & _SPLIT == Flag.LIVE)]
        whole = live[live["extra"] == 0]  # of gateways with every candidate open
        candidates: dict[str, tuple[tuple[int, int], ...]] = {}
        low = 0
        for variant, share in _shares((whole if len(whole) else live)["series"], variants).items():
            if variant != baseline and low < BUCKETS:
                high = min(BUCKETS, low + share)
                candidates[variant] = ((low, high),)
                since.setdefault(variant, epoch)
                low = high
        copies = of_epoch[of_epoch["kind"] == Kind.SHADOW]
        scored = of_epoch[of_epoch["kind"] == Kind.REFERENCE]
        found[epoch] = RouteTable(
            model, epoch, "", baseline, teacher, entries, candidates,
            {variant: since[variant] for variant in candidates},
            {variants[at]: _sampled(copies[copies["series"] == at]) for at in np.unique(copies["series"]).tolist()},
            _sampled(scored),
        )  # fmt: skip
    return found


def _shares(series: Any, variants: list[str]) -> dict[str, int]:
    """Basis points of the requests that each variant got; at least one for who got any."""
    ids, counts = np.unique(series, return_counts=True)
    whole = max(1, int(counts.sum()))
    return {
        variants[at]: max(1, round(count * BUCKETS / whole))
        for at, count in zip(ids.tolist(), counts.tolist(), strict=True)
    }


def _sampled(pairs: Records) -> int:
    """Basis points of the requests that were made into pairs; all of them if nothing says so."""
    return min(BUCKETS, max(1, round(float(np.median(pairs["inclusion"])) * BUCKETS))) if len(pairs) else BUCKETS
