"""All guards of one candidate, and the arming that their evidence belongs to. Pure.

Evidence belongs to an *arming* of a candidate: the epoch at which it got traffic, and the re-arms
of its veto and of its model's kill-switch since. A new arming starts from nothing, except that what
was gathered in shadow carries forward; so does another artifact, without exception. A guard trips
once per arming.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from monitoring.config import MonitorModel
from monitoring.depth import Depth
from monitoring.detectors.base import Detector
from monitoring.event import Event
from monitoring.guards.base import Guard
from monitoring.guards.table import guards_of
from monitoring.returns import Returned
from serving.contract import SHADOW_GUARDS

EXAMPLES = 5

#: (since, cleared veto, cleared kill of the model, cleared global kill); since is -1 without traffic.
Arming = tuple[int, int, int, int]
UNARMED: Arming = (-1, 0, 0, 0)
#: What an arming has cleared. An attempt to roll a candidate out is one, however often it gets traffic in it.
Attempt = tuple[int, int, int]

#: What a guard does by itself; a pause or an alert is for others to see in its verdict.
TRIPS = ("rollback", "kill")

D = TypeVar("D", bound=Detector)


class Candidate:
    """All guards of one candidate, over one arming."""

    def __init__(self, name: str, model: MonitorModel) -> None:
        self.name = name
        self.arming: Arming = UNARMED
        self.artifact = ""  # that the evidence is about; "" before the first table
        self.first_epoch = 0  # what was routed by earlier weights belongs to an earlier arming
        self.shadow_epoch = 0  # the same for copies: the shadow that an arming began in belongs to it
        self.weight = 0.0  # share of all traffic, in [0, 1]
        self.shadow = 0.0
        self.last_ns = 0
        self.last_mono_ns = 0
        self.suspect = 0.0  # live answers that differ from the teacher's, estimated from the scored ones
        self.tripped: list[str] = []
        self.guards = guards_of(model, name)
        self.depth = Depth()
        self.examples: dict[str, deque[int]] = {guard: deque(maxlen=EXAMPLES) for guard in self.guards}
        self._idle = self._hooked("idle")
        self._quiet = self._hooked("quiet")
        self._divided = self._hooked("divided")
        self._diverted = self._hooked("diverted")
        self._killed = self._hooked("killed")
        self._returned = self._hooked("returned")
        self._answered = self._hooked("answered")
        self._raced = self._hooked("raced")
        self._paired = self._hooked("paired")
        self._labelled = self._hooked("labelled")
        self._resolved = self._hooked("resolved")
        self._audited = self._hooked("audited")

    def _hooked(self, hook: str) -> list[tuple[deque[int], Callable[..., bool]]]:
        """The guards that look at one kind of event: where each keeps its examples, and what it is told by."""
        return [
            (self.examples[name], getattr(guard, hook))
            for name, guard in self.guards.items()
            if getattr(type(guard), hook) is not getattr(Guard, hook)
        ]

    def detector(self, kind: type[D]) -> D:
        """Its detector of that kind. Raises `KeyError` if it has none."""
        found = self.guards[kind.name].detector
        assert isinstance(found, kind)
        return found

    def alpha(self, budget: float) -> float:
        """What each guard may take of the candidate's chance of a false alarm.

        It is shared among those that act; the others, which pause a ramp or only tell, may be wrong as often as one.
        """
        return budget / max(1, sum(guard.action in TRIPS for guard in self.guards.values()))

    def allot(self, budget: float) -> None:
        """Share the candidate's chance of a false alarm out among its guards."""
        for guard in self.guards.values():
            guard.detector.alpha = self.alpha(budget)

    def idle(self, event: Event) -> None:
        """See `Guard.idle`; likewise those that follow."""
        for _, told in self._idle:
            told(event)

    def quiet(self, event: Event) -> None:
        for _, told in self._quiet:
            told(event)

    def divided(self, event: Event, from_candidate: bool | None, share: float) -> None:
        for _, told in self._divided:
            told(event, from_candidate, share)

    def diverted(self) -> None:
        for _, told in self._diverted:
            told()

    def killed(self) -> None:
        for _, told in self._killed:
            told()

    def returned(self, event: Event, found: Returned, from_candidate: bool) -> None:
        for _, told in self._returned:
            told(event, found, from_candidate)

    def answered(self, event: Event, invalid: bool) -> None:
        for examples, told in self._answered:
            if told(event, invalid):
                examples.append(event.request_key)

    def raced(self, event: Event, error: bool, from_candidate: bool, share: float) -> None:
        for examples, told in self._raced:
            if told(event, error, from_candidate, share):
                examples.append(event.request_key)

    def paired(self, event: Event) -> None:
        for examples, told in self._paired:
            if told(event):
                examples.append(event.request_key)

    def labelled(self, event: Event, teacher_right: bool, candidate_right: bool) -> None:
        for examples, told in self._labelled:
            if told(event, teacher_right, candidate_right):
                examples.append(event.request_key)

    def resolved(self, event: Event, prob: float, right: bool) -> None:
        for examples, told in self._resolved:
            if told(event, prob, right):
                examples.append(event.request_key)

    def audited(self, event: Event) -> None:
        for _, told in self._audited:
            told(event)

    @property
    def attempt(self) -> Attempt:
        return self.arming[1:]

    @property
    def live(self) -> bool:
        """Takes traffic or copies of it."""
        return self.weight > 0 or self.shadow > 0

    def arm(self, arming: Arming, epoch: int, artifact: str) -> None:
        """Start anew if the arming or the artifact differs; from shadow to traffic, keep what the pairs have shown.

        Args:
            epoch: of the table in force.
            artifact: what answers under the candidate's name by that table.
        """
        since, *cleared = arming
        known = self.artifact != ""
        same = self.artifact in ("", artifact) and tuple(cleared) == self.arming[1:]
        self.artifact = artifact
        if same and (since < 0 or arming == self.arming):
            return  # without traffic the arming that it had goes on, until something is cleared
        from_shadow = self.arming[0] < 0 and same
        for name, guard in self.guards.items():
            if not (from_shadow and name in SHADOW_GUARDS):
                guard.detector.rearm()
                self.examples[name].clear()
        self.tripped = []
        self.suspect = 0.0
        if not from_shadow:
            self.depth.reset()
        self.arming = arming
        self.first_epoch = since if since >= 0 else epoch
        if not (from_shadow and known):
            self.shadow_epoch = self.first_epoch

    def state(self) -> dict[str, Any]:
        return {
            "arming": list(self.arming),
            "artifact": self.artifact,
            "first_epoch": self.first_epoch,
            "shadow_epoch": self.shadow_epoch,
            "weight": self.weight,
            "shadow": self.shadow,
            "last_ns": self.last_ns,
            "last_mono_ns": self.last_mono_ns,
            "tripped": self.tripped,
            "suspect": self.suspect,
            "depth": self.depth.state(),
            "examples": {guard: list(keys) for guard, keys in self.examples.items()},
            "detectors": {name: guard.detector.state() for name, guard in self.guards.items()},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        since, veto, kill, all_kill = (int(part) for part in state["arming"])
        self.arming = since, veto, kill, all_kill
        self.first_epoch, self.shadow_epoch = int(state["first_epoch"]), int(state["shadow_epoch"])
        self.artifact = str(state["artifact"])
        self.weight, self.shadow = float(state["weight"]), float(state["shadow"])
        self.last_ns, self.last_mono_ns = int(state["last_ns"]), int(state["last_mono_ns"])
        self.suspect = float(state["suspect"])
        self.depth.load(state["depth"])
        goes_on = set()
        for name, guard in self.guards.items():
            # The monitor which stored this may have had no such guard, or held it to something else.
            if name in state["detectors"] and guard.detector.load(state["detectors"][name]):
                self.examples[name].extend(int(key) for key in state["examples"].get(name, ()))
                goes_on.add(name)
        self.tripped = [guard for guard in state["tripped"] if guard in goes_on]
