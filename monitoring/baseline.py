"""What is watched of the baseline by itself: guards that need no other arm. Pure.

It has no arming, so what it is held to starts anew every day of record time; its alarm lasts as long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from monitoring.config import MonitorModel
from monitoring.event import Event
from monitoring.guards.base import Guard, Names
from monitoring.guards.embedding import EmbeddingGuard
from monitoring.guards.ood import OodGuard
from monitoring.verdicts import Verdict, verdict

DAY_NS = 86_400_000_000_000
EXAMPLES = 5
KINDS: tuple[type[Guard[Any]], ...] = (OodGuard, EmbeddingGuard)


class Baseline:
    """The guards `ood` and `embedding` of a baseline, as far as it is known what is usual for its held-out rows."""

    def __init__(self, name: str, model: MonitorModel) -> None:
        self.name = name
        self._dry_run = model.guards.dry_run
        built = ((kind.name, kind.build(model, name)) for kind in KINDS)
        self.guards: dict[str, Guard[Any]] = {name: guard for name, guard in built if guard is not None}
        self._began_ns = 0
        self._last_ns = 0
        self._examples: dict[str, deque[int]] = {name: deque(maxlen=EXAMPLES) for name in self.guards}
        for guard in self.guards.values():
            guard.detector.alpha = model.guards.false_rollback

    def answered(self, event: Event) -> None:
        """A live request of the baseline."""
        self._at(event)
        for name, guard in self.guards.items():
            if guard.answered(event, False):
                self._examples[name].append(event.request_key)

    def audited(self, event: Event) -> None:
        """One row looked at inside the baseline."""
        self._at(event)
        for guard in self.guards.values():
            guard.audited(event)

    def _at(self, event: Event) -> None:
        if not 0 <= event.wall_ns - self._began_ns < DAY_NS:
            for name, guard in self.guards.items():
                guard.detector.rearm()
                self._examples[name].clear()
            self._began_ns = event.wall_ns
        self._last_ns = event.wall_ns

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
            "examples": {name: list(keys) for name, keys in self._examples.items()},
            "detectors": {name: guard.detector.state() for name, guard in self.guards.items()},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave, of guards that are still there.

        Raises `AttributeError`, `KeyError`, `TypeError` or `ValueError` if it is damaged.
        """
        self._began_ns, self._last_ns = int(state["began_ns"]), int(state["last_ns"])
        for name, guard in self.guards.items():
            if name in state["detectors"]:
                self._examples[name].extend(int(key) for key in state["examples"][name])
                guard.detector.load(state["detectors"][name])
