"""A guard: a detector, the events it is told of, and the sentence that says what it has found. Pure.

The statistic itself is in `monitoring.detectors`; what a rollout needs to know of a guard (what its failure does,
whether it can pass, whether copies are enough for it) is in `serving.contract.GUARD_ROLES`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Generic, Self, TypeVar

import msgspec

from monitoring.config import MonitorModel
from monitoring.detectors.base import Detector
from monitoring.event import Event
from monitoring.returns import Returned
from serving.contract import GUARD_ROLES

D = TypeVar("D", bound=Detector)


class Names(msgspec.Struct, frozen=True):
    """Whom a sentence is about. `share`: the candidate's share of the two arms' traffic, in [0, 1]."""

    variant: str
    teacher: str
    share: float


class Guard(ABC, Generic[D]):
    """One guard of one candidate.

    A guard overrides the hooks of the events that it looks at; each returns whether the event is an example of what
    it guards against. Events come in order of arrival, those of the candidate's present arming only.
    """

    name: ClassVar[str] = ""

    def __init__(self, detector: D) -> None:
        self.detector = detector

    @classmethod
    @abstractmethod
    def build(cls, model: MonitorModel, variant: str) -> Self | None:
        """The guard of a candidate as the settings want it; None if there is nothing that it could judge."""

    @property
    def action(self) -> str:
        """What its failure does: alert | pause | rollback | kill."""
        return GUARD_ROLES[self.name].action

    # ------------------------------------------------------------ what it looks at

    def idle(self, event: Event) -> bool:
        """A live request of the baseline while the candidate has no traffic."""
        return False

    def quiet(self, event: Event) -> bool:
        """A live request of the baseline while no candidate at all has traffic, nor had in the minute before."""
        return False

    def divided(self, event: Event, from_candidate: bool | None, share: float) -> bool:
        """A request that the split gave to some arm while the candidate has traffic, whatever became of it.

        Args:
            from_candidate: whose it is; None for a third arm's.
            share: see `raced`.
        """
        return False

    def diverted(self) -> bool:
        """A guard of the candidate has tripped: its users are sent elsewhere, no split until the next arming."""
        return False

    def killed(self) -> bool:
        """A kill or a silent monitor has sent a request to the baseline; it may be read late, after the re-arm."""
        return False

    def returned(self, event: Event, found: Returned, from_candidate: bool) -> bool:
        """A business KPI of a request of either arm, asked while the candidate had traffic; `event` completed it."""
        return False

    def answered(self, event: Event, invalid: bool) -> bool:
        """A live request routed to the candidate."""
        return False

    def raced(self, event: Event, error: bool, from_candidate: bool, share: float) -> bool:
        """A live request of either arm while the candidate has traffic.

        Args:
            error: it counts against its variant, and is no invalid output, which has a guard of its own.
            share: the candidate's configured share of the two arms' traffic when it was routed, in (0, 1].
        """
        return False

    def paired(self, event: Event) -> bool:
        """An answer of the candidate beside the teacher's to the same input."""
        return False

    def labelled(self, event: Event, teacher_right: bool, candidate_right: bool) -> bool:
        """A pair whose true class is known; `event` is the record that completed it."""
        return False

    def resolved(self, event: Event, prob: float, right: bool) -> bool:
        """An answer of the candidate, to a client or to a copy, whose true class is known.

        Args:
            event: the record that completed it.
            prob: probability of the class that the candidate named, in [0, 1].
            right: that class is the true one.
        """
        return False

    def audited(self, event: Event) -> bool:
        """An audit of one row inside the variant, whoever it was answered for; `prob` is the share that saturated,
        `ref_prob` that of the worst tensor, `energy` the distance of its embedding, NaN what was not looked at."""
        return False

    # ------------------------------------------------------------ what it says

    @abstractmethod
    def finding(self, names: Names) -> str:
        """What was observed and what it is held to: the first half of the verdict's sentence."""

    def conclusion(self, word: str) -> str:
        """What follows from it: the second half. `word` is fail, pass or inconclusive."""
        detector = self.detector
        evidence, threshold = detector.log_evidence, detector.log_threshold
        if word == "fail":
            # The verdict latches: what counts is the evidence when it crossed, whatever was seen since.
            evidence = max(evidence, detector.failed_at) if detector.failed else detector.log_breach_evidence
            since = "≥" if evidence >= threshold else "since fallen from"
            return f": evidence e^{evidence:.1f} {since} e^{threshold:.1f}"
        if not GUARD_ROLES[self.name].passes:
            return f": evidence against it e^{max(evidence, detector.log_breach_evidence):.1f} < e^{threshold:.1f}"
        needed = -math.log(detector.pass_alpha)
        if word == "pass":
            shown = max(detector.log_pass_evidence, needed)
            return f", within the limit: evidence for it e^{shown:.1f} ≥ e^{needed:.1f}"
        return (
            f": not conclusive, evidence against it e^{evidence:.1f} < e^{threshold:.1f}, "
            f"for it e^{detector.log_pass_evidence:.1f} < e^{needed:.1f}"
        )


def percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def ratio(part: float, whole: float) -> str:
    """The share in brackets; nothing of nothing."""
    return f"({percent(part / whole)})" if whole else ""
