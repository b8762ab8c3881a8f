"""What is watched of the baseline by itself: guards that need no other arm, and that go on for ever. Pure.

Each is an e-detector with one false alarm in `QUIET_DAYS` at the traffic that there is; an alarm lasts a day. What its
sentence counts begins anew every day, but not while there is an alarm.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from monitoring.config import MonitorModel
from monitoring.detectors.ood import Ood
from monitoring.event import Event
from monitoring.guards.base import Guard, Names
from monitoring.guards.embedding import EmbeddingGuard
from monitoring.guards.ood import OodGuard
from monitoring.verdicts import Verdict, verdict

DAY_NS = 86_400_000_000_000
EXAMPLES = 5
QUIET_DAYS = 90
#: Observations until a false alarm at the least, before the traffic is known.
LEAST = 10_000
#: Records are not quite in the order of their times: files are read one after the other, and clocks are set.
BACK_NS = 60_000_000_000
#: After so many records the rate is looked at anew.
LOOK = 1024
KINDS: tuple[type[Guard[Any]], ...] = (OodGuard, EmbeddingGuard)


class Baseline:
    """The guards `ood` and `embedding` of a baseline, as far as it is known what is usual for its held-out rows."""

    def __init__(self, name: str, model: MonitorModel) -> None:
        self.name = name
        self._dry_run = model.guards.dry_run
        built = ((kind.name, kind.build(model, name)) for kind in KINDS)
        self.guards: dict[str, Guard[Any]] = {name: guard for name, guard in built if guard is not None}
        self._began_ns = 0  # of the day that is counted
        self._last_ns = 0
        self._records = 0
        self._failed_ns = dict.fromkeys(self.guards, 0)
        self._daily = dict.fromkeys(self.guards, 0)  # observations of the last full day
        self._apart = dict.fromkeys(self.guards, 0)  # of a detector's observations, those that are not of this day
        self._examples: dict[str, deque[int]] = {name: deque(maxlen=EXAMPLES) for name in self.guards}
        for guard in self.guards.values():
            guard.detector.watch()
            guard.detector.alpha = 1 / LEAST

    def answered(self, event: Event) -> None:
        """A live request of the baseline."""
        self._at(event)
        for name, guard in self.guards.items():
            before = guard.detector.failed
            if guard.answered(event, False):
                self._examples[name].append(event.request_key)
            self._note(name, before)

    def audited(self, event: Event) -> None:
        """One row looked at inside the baseline."""
        self._at(event)
        for name, guard in self.guards.items():
            before = guard.detector.failed
            guard.audited(event)
            self._note(name, before)

    def _at(self, event: Event) -> None:
        if not -BACK_NS <= event.wall_ns - self._began_ns < DAY_NS:
            self._new_day(event.wall_ns)
        for name, guard in self.guards.items():
            if guard.detector.failed and event.wall_ns - self._failed_ns[name] >= DAY_NS:
                self._quiet(name)
        self._last_ns = event.wall_ns
        self._records += 1
        if self._records % LOOK == 0:
            self._look()

    def _new_day(self, now_ns: int) -> None:
        for name, guard in self.guards.items():
            detector = guard.detector
            detector.settle()
            self._daily[name] = self._today(name) if self._began_ns else 0
            if not detector.failed:
                detector.observations = detector.events = 0
                self._examples[name].clear()
            self._apart[name] = detector.observations
        self._began_ns = now_ns
        self._look()

    def _quiet(self, name: str) -> None:
        """End an alarm."""
        today = self._today(name)
        self.guards[name].detector.rearm()
        self._apart[name] = -today
        self._examples[name].clear()

    def _today(self, name: str) -> int:
        detector: Ood = self.guards[name].detector
        return detector.observations - self._apart[name]

    def _look(self) -> None:
        """Hold each detector to its false alarms at the present rate."""
        share = max(self._last_ns - self._began_ns, 1) / DAY_NS
        for name, guard in self.guards.items():
            if guard.detector.failed:
                continue  # what it crossed is told for as long as it lasts
            a_day = max(self._daily[name], self._today(name) / max(share, 1 / 24))
            guard.detector.alpha = 1 / max(LEAST, QUIET_DAYS * len(self.guards) * a_day)

    def _note(self, name: str, failed_before: bool) -> None:
        if self.guards[name].detector.failed and not failed_before:
            self._failed_ns[name] = self._last_ns

    def verdicts(self, degraded: str) -> list[Verdict]:
        found, names = [], Names(self.name, self.name, 1.0)
        for name, guard in self.guards.items():
            if guard.detector.no_data:
                continue
            guard.detector.settle()
            dry_run, examples = name in self._dry_run, list(self._examples[name])
            found.append(verdict(guard, names, self._last_ns, degraded=degraded, dry_run=dry_run, examples=examples))
        return found

    def state(self) -> dict[str, Any]:
        return {
            "began_ns": self._began_ns,
            "last_ns": self._last_ns,
            "failed_ns": dict(self._failed_ns),
            "daily": dict(self._daily),
            "apart": dict(self._apart),
            "alphas": {name: guard.detector.alpha for name, guard in self.guards.items()},
            "examples": {name: list(keys) for name, keys in self._examples.items()},
            "detectors": {name: guard.detector.state() for name, guard in self.guards.items()},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave, of guards that are still there.

        Raises `AttributeError`, `KeyError`, `TypeError` or `ValueError` if it is damaged.
        """
        self._began_ns, self._last_ns = int(state["began_ns"]), int(state["last_ns"])
        for name, guard in self.guards.items():
            if name in state["detectors"] and guard.detector.load(state["detectors"][name]):
                self._failed_ns[name], self._daily[name] = int(state["failed_ns"][name]), int(state["daily"][name])
                self._apart[name] = int(state["apart"][name])
                guard.detector.alpha = float(state["alphas"][name])
                self._examples[name].extend(int(key) for key in state["examples"][name])
        self._look()
