"""What every detector has in common: two verdicts, their budgets, and a state that can be stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from monitoring.detectors.betting import Betting, Drift, Mirrored

#: Failed or slow batches whose key is remembered, so that each is one event.
RECENT_BATCHES = 1024


class Detector:
    """One guard's statistic about one candidate.

    `failed` and `passed` latch until `reset`. A detector may have a softer verdict beside `failed`, such as a lower
    limit: `breached`, which latches too and pauses a rollout. Attributes listed in FIELDS make up the state:
    plain values, or objects with `state` and `load`. Those in KEPT are no evidence about the candidate. Those in NULL
    say what it is held to: what was found when that was something else is of no account. `alpha` is not among them:
    it follows the number of live candidates, and the evidence means the same at any.

    Args:
        alpha: the chance of a false alarm this detector may ever take, in (0, 1).
        pass_alpha: the chance of a false pass, in (0, 1).
    """

    name: ClassVar[str] = ""
    FIELDS: ClassVar[tuple[str, ...]] = ("observations", "events", "failed", "failed_at", "passed", "_against", "_for")
    KEPT: ClassVar[tuple[str, ...]] = ()
    NULL: ClassVar[tuple[str, ...]] = ("pass_alpha",)

    def __init__(self, alpha: float = 0.002, pass_alpha: float = 0.05) -> None:
        self.alpha = alpha
        self.pass_alpha = pass_alpha
        self._against: Betting | Drift = Betting()
        self._for = Mirrored()
        self.reset()

    def reset(self) -> None:
        """Forget everything observed, as if new."""
        self.observations = 0
        self.events = 0
        self.failed = False
        self.failed_at = 0.0  # log evidence at the observation that made it fail; it may fall again afterwards
        self.passed = False
        self.breached = False
        self._against.reset()
        self._for.reset()

    def rearm(self) -> None:
        """Forget what was observed of the candidate, and no more."""
        known = self._stored(self.KEPT)
        self.reset()
        self._restore(known, self.KEPT)

    @property
    def log_evidence(self) -> float:
        """log of the evidence against the null "this candidate is fine"."""
        return self._against.log_evidence

    @property
    def log_breach_evidence(self) -> float:
        """log of the evidence that `breached` rests on; of a detector without that verdict, `log_evidence`."""
        return self.log_evidence

    @property
    def log_threshold(self) -> float:
        """log evidence at which the detector fails: log(1 / alpha)."""
        return -math.log(self.alpha)

    @property
    def log_pass_evidence(self) -> float:
        """log of the evidence against "this candidate is over the limit"."""
        return self._for.log_evidence

    @property
    def no_data(self) -> bool:
        """Nothing was observed that a verdict could rest on."""
        return self.observations == 0

    def numbers(self) -> dict[str, Any]:
        """What belongs into the evidence beside the common numbers."""
        return {}

    def settle(self) -> None:
        """Work what was only counted so far into the evidence; before verdicts are read."""

    def _judge(self) -> bool:
        """Latch the verdicts; True at the observation that makes it fail."""
        if self.log_pass_evidence >= -math.log(self.pass_alpha):
            self.passed = True
        if self.failed or self.log_evidence < self.log_threshold:
            return False
        self.failed, self.failed_at = True, self.log_evidence
        return True

    def state(self) -> dict[str, Any]:
        """All that the detector knows, in plain values."""
        return {"null": self._null(), **self._stored(self.FIELDS)}

    def load(self, state: Mapping[str, Any]) -> bool:
        """Continue from a stored state; False if that was held to something else, so that this one starts anew.

        Raises `KeyError` or `ValueError` if it is none of this detector's.
        """
        if state["null"] == self._null():
            self._restore(state, self.FIELDS)
            return True
        self._restore(state, self.KEPT)
        self.rearm()
        return False

    def _null(self) -> dict[str, Any]:
        """What it is held to, as it is after a round through JSON."""
        null: dict[str, Any] = msgspec.json.decode(
            msgspec.json.encode({name: getattr(self, name) for name in self.NULL})
        )
        return null

    def _stored(self, fields: tuple[str, ...]) -> dict[str, Any]:
        values = {field: getattr(self, field) for field in fields}
        return {field: value.state() if hasattr(value, "state") else value for field, value in values.items()}

    def _restore(self, state: Mapping[str, Any], fields: tuple[str, ...]) -> None:
        for field in fields:
            value = getattr(self, field)
            if hasattr(value, "load"):
                value.load(state[field])
            else:
                setattr(self, field, type(value)(state[field]))


class BatchRace:
    """Whose event is it? Shares of two arms when a batch that failed together is one event.

    Assumption: sticky units fall to the arms by a hash, so that of the baseline's and the
    candidate's requests the configured share w is the candidate's. Counted by batches, an arm that
    packs more requests into a batch has fewer events from the same trouble, so the share of *units*
    to expect is w/c over w/c + (1-w)/b, with c and b the mean batch sizes so far. The larger of
    that and w is used: an A/A comparison then never leans against the candidate.

    >>> race = BatchRace()
    >>> for batch in range(100):
    ...     race.count(True, batch)
    ...     for _ in range(4):
    ...         race.count(False, 1000 + batch)
    >>> race.share(0.2)
    0.5
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._requests = [0, 0]  # baseline, candidate
        self._batches = [0, 0]
        self._last = [0, 0]
        self._recent: dict[int, None] = {}

    def count(self, from_candidate: bool, batch_key: int) -> None:
        """One live request of an arm; `batch_key` 0 means that it was in no batch."""
        arm = 1 if from_candidate else 0
        self._requests[arm] += 1
        if batch_key == 0 or batch_key != self._last[arm]:
            self._batches[arm] += 1
            self._last[arm] = batch_key

    def share(self, weight: float) -> float:
        """The largest share of event units that is no fault of the candidate's; at least `weight` (in [0, 1])."""
        return max(weight, self._by_batches(weight))

    def least(self, weight: float) -> float:
        """The smallest share of event units to expect; at most `weight`. What a pass is held to."""
        return min(weight, self._by_batches(weight))

    def _by_batches(self, weight: float) -> float:
        baseline, candidate = (
            requests / batches if batches else 1.0
            for requests, batches in zip(self._requests, self._batches, strict=True)
        )
        mine, theirs = weight / candidate, (1.0 - weight) / baseline
        return mine / (mine + theirs) if mine + theirs > 0 else weight

    def first(self, batch_key: int) -> bool:
        """Whether this is the first event of its batch."""
        if batch_key == 0:
            return True
        if batch_key in self._recent:
            return False
        self._recent[batch_key] = None
        if len(self._recent) > RECENT_BATCHES:
            del self._recent[next(iter(self._recent))]
        return True

    def state(self) -> list[list[int]]:
        return [list(self._requests), list(self._batches), list(self._last), list(self._recent)]

    def load(self, state: list[list[int]]) -> None:
        self._requests, self._batches, self._last, recent = (list(map(int, part)) for part in state)
        self._recent = dict.fromkeys(recent)
