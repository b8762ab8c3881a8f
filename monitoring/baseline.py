"""What is watched of the baseline by itself: guards that need no other arm. Pure.

It has no arming, so what it is held to starts anew every day of record time; its alarm lasts as long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from monitoring.config import MonitorModel
from monitoring.event import Event
from monitoring.guards.base import Names
from monitoring.guards.ood import OodGuard
from monitoring.verdicts import Verdict, verdict

DAY_NS = 86_400_000_000_000
EXAMPLES = 5


class Baseline:
    """The `ood` guard of a baseline; without energies of held-out rows there is none."""

    def __init__(self, name: str, model: MonitorModel) -> None:
        self.name = name
        self._dry_run = OodGuard.name in model.guards.dry_run
        self.guard = OodGuard.build(model, name)
        self._began_ns = 0
        self._last_ns = 0
        self._examples: deque[int] = deque(maxlen=EXAMPLES)
        if self.guard is not None:
            self.guard.detector.alpha = model.guards.false_rollback

    def answered(self, event: Event) -> None:
        """A live request of the baseline."""
        if self.guard is None:
            return
        if not 0 <= event.wall_ns - self._began_ns < DAY_NS:
            self.guard.detector.rearm()
            self._examples.clear()
            self._began_ns = event.wall_ns
        self._last_ns = event.wall_ns
        if self.guard.answered(event, False):
            self._examples.append(event.request_key)

    def verdicts(self, degraded: str) -> list[Verdict]:
        if self.guard is None or self.guard.detector.no_data:
            return []
        self.guard.detector.settle()
        names = Names(self.name, self.name, 1.0)
        return [
            verdict(
                self.guard,
                names,
                self._last_ns,
                degraded=degraded,
                dry_run=self._dry_run,
                examples=list(self._examples),
            )
        ]

    def state(self) -> dict[str, Any] | None:
        if self.guard is None:
            return None
        return {
            "began_ns": self._began_ns,
            "last_ns": self._last_ns,
            "examples": list(self._examples),
            "detector": self.guard.detector.state(),
        }

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Raises `KeyError`, `TypeError` or `ValueError` if it is damaged."""
        if self.guard is None or state is None:
            return
        self._began_ns, self._last_ns = int(state["began_ns"]), int(state["last_ns"])
        self._examples.extend(int(key) for key in state["examples"])
        self.guard.detector.load(state["detector"])
