"""The guards of one model: events in, verdicts and trips out. Pure: time is in the records.

Evidence belongs to an *arming* of a candidate: the epoch at which it got traffic, and the re-arms
of its veto and of its model's kill-switch since. A new arming starts from nothing, except that what
was gathered in shadow carries forward. A guard trips once per arming.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec

from monitoring.config import GuardSettings, MonitorModel
from monitoring.detectors.agreement import Agreement
from monitoring.detectors.base import Detector
from monitoring.detectors.errors import Errors
from monitoring.detectors.harm import Harm
from monitoring.detectors.invalid_output import InvalidOutput
from monitoring.detectors.latency import Latency
from monitoring.verdicts import ACTIONS, Verdict, statistic, verdict
from serving.contract import BUCKETS, GUARDS, SHADOW_GUARDS, Cause, Flag, Kind, Latch, RouteTable, Snapshot

#: Epochs whose weights are remembered, for records that are read late.
EPOCHS_KEPT = 256
EXAMPLES = 5

#: (since, cleared veto, cleared kill of the model, cleared global kill); since is -1 without traffic.
Arming = tuple[int, int, int, int]
UNARMED: Arming = (-1, 0, 0, 0)

_BLAMED = (Cause.TIMEOUT, Cause.DIED, Cause.OVERLOADED)
_WAITED = (Cause.TIMEOUT, Cause.OVERLOADED)
_BLAMED_IF_ANSWERED = (Cause.ERROR, Cause.INVALID_OUTPUT)


class Event(msgspec.Struct, frozen=True):
    """One record, with its variants by name."""

    kind: int
    variant: str
    answered: str = ""
    flags: int = Flag.LIVE | Flag.BASELINE_VALID
    cause: int = Cause.NONE
    status: int = 200
    epoch: int = 0
    total_us: int = 0
    batch_key: int = 0
    request_key: int = 0
    rows: int = 1
    flips: int = 0
    wall_ns: int = 0
    mono_ns: int = 0
    inclusion: float = 1.0  # of a pair: the chance with which its request was chosen to be scored


class Trip(msgspec.Struct, frozen=True):
    """A guard that failed while its candidate takes traffic: act now."""

    model: str
    variant: str
    guard: str
    action: str  # rollback | kill
    arming: Arming
    sentence: str
    statistic: dict[str, Any]
    mono_ns: int  # of the record that tripped it
    wall_ns: int


def is_error(event: Event, baseline: str) -> bool:
    """Whether a live request counts against the variant it was routed to.

    An input on which the baseline fails as well is not a candidate's fault, unless it has used up the time. The
    baseline's own failures always count: nobody can tell whether a candidate would have done better, and a race
    in which they are left out would blame a candidate for what befalls both. A refusal for want of capacity
    counts against either arm.
    """
    if event.cause in _BLAMED:
        return True
    if event.cause in _BLAMED_IF_ANSWERED:
        return event.variant == baseline or bool(event.flags & Flag.BASELINE_VALID) or event.status < 500
    return event.cause == Cause.NONE and (event.status >= 500 or event.status == 429)


class Candidate:
    """All guards of one candidate, over one arming."""

    def __init__(self, name: str, model: MonitorModel) -> None:
        settings = model.guards
        self.name = name
        self.arming: Arming = UNARMED
        self.weight = 0.0  # share of all traffic, in [0, 1]
        self.shadow = 0.0
        self.last_ns = 0
        self.last_mono_ns = 0
        self.suspect = 0.0  # live answers that differ from the teacher's, estimated from the scored ones
        self.tripped: list[str] = []
        limit = agreement_limit(model, name)
        budget = min((1 - slo.objective for slo in model.slo if slo.name == "availability"), default=0.01)
        margins = settings.latency
        passing = settings.false_promotion
        self.invalid = InvalidOutput(limit=settings.invalid_output.limit, pass_alpha=passing)
        self.errors = Errors(ratio=settings.errors.ratio, budget=budget, pass_alpha=passing)
        self.latency = Latency(margins.quantile, margins.margin, margins.margin_ms, pass_alpha=passing)
        self.agreement = Agreement(limit, gross_limit(limit, settings), pass_alpha=passing)
        self.harm = Harm(budget=settings.harm.budget, pass_alpha=passing)
        self.detectors: dict[str, Detector] = {
            detector.name: detector for detector in (self.invalid, self.errors, self.latency, self.agreement, self.harm)
        }
        self.examples: dict[str, deque[int]] = {guard: deque(maxlen=EXAMPLES) for guard in GUARDS}

    @property
    def live(self) -> bool:
        """Takes traffic or copies of it."""
        return self.weight > 0 or self.shadow > 0

    def arm(self, arming: Arming) -> None:
        """Start anew if the arming differs; from shadow to traffic, keep what the pairs have shown."""
        since, *cleared = arming
        if since < 0:
            arming = (self.arming[0], *arming[1:])
        if arming == self.arming:
            return
        from_shadow = self.arming[0] < 0 and tuple(cleared) == self.arming[1:]
        for guard, detector in self.detectors.items():
            if not (from_shadow and guard in SHADOW_GUARDS):
                detector.rearm()
                self.examples[guard].clear()
        self.tripped = []
        self.suspect = 0.0
        self.arming = arming

    def state(self) -> dict[str, Any]:
        return {
            "arming": list(self.arming),
            "weight": self.weight,
            "shadow": self.shadow,
            "last_ns": self.last_ns,
            "last_mono_ns": self.last_mono_ns,
            "tripped": self.tripped,
            "suspect": self.suspect,
            "examples": {guard: list(keys) for guard, keys in self.examples.items()},
            "detectors": {guard: detector.state() for guard, detector in self.detectors.items()},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        since, veto, kill, all_kill = (int(part) for part in state["arming"])
        self.arming = (since, veto, kill, all_kill)
        self.weight, self.shadow = float(state["weight"]), float(state["shadow"])
        self.last_ns, self.last_mono_ns = int(state["last_ns"]), int(state["last_mono_ns"])
        self.tripped = [str(guard) for guard in state["tripped"]]
        self.suspect = float(state["suspect"])
        for guard, detector in self.detectors.items():
            self.examples[guard].extend(int(key) for key in state["examples"].get(guard, ()))
            detector.load(state["detectors"][guard])


class ModelGuards:
    """The guards of every candidate of one model. Tell it what is configured, then feed it events."""

    def __init__(self, name: str, model: MonitorModel) -> None:
        self.name = name
        self._model = model
        self.baseline = model.baseline
        self.teacher = model.teacher
        self.candidates: dict[str, Candidate] = {}
        self.epoch: int | None = None  # of the table in force; None before the first
        self.reference = 1.0  # share of candidates' answers that the teacher scores, in [0, 1]
        self._weights: dict[int, dict[str, float]] = {}  # epoch -> share of each variant
        self.unknown_epochs = 0  # records not used in a race: the weights they were routed by are not known
        self.skipped_epochs = 0  # records from before the arming
        for variant in model.variants:
            if variant != model.baseline:
                self._candidate(variant)

    # ------------------------------------------------------------ what is configured

    def configure(self, snapshot: Snapshot) -> None:
        """Take over the routing that the control plane publishes."""
        table = snapshot.tables.get(self.name)
        if table is None:
            return
        if table.baseline != self.baseline or table.teacher != self.teacher:
            self.baseline, self.teacher = table.baseline, table.teacher
            self.candidates.clear()
        self.epoch = table.epoch
        self.reference = table.reference_bp / BUCKETS
        shares = table_weights(table)
        self._weights[table.epoch] = shares
        kept = [epoch for epoch in sorted(self._weights) if epoch <= table.epoch][-EPOCHS_KEPT:]
        self._weights = {epoch: self._weights[epoch] for epoch in kept}
        kills = tuple(snapshot.kills.get(name, Latch()).cleared for name in (self.name, "*"))
        for variant in table.variants:
            if variant == self.baseline:
                continue
            candidate = self._candidate(variant)
            candidate.weight = shares.get(variant, 0.0)
            candidate.shadow = table.shadow.get(variant, 0) / BUCKETS
            since = table.since.get(variant, -1) if candidate.weight else -1
            veto = snapshot.vetoes.get(f"{self.name}/{variant}", Latch()).cleared
            candidate.arm((since, veto, kills[0], kills[1]))
        for name, candidate in self.candidates.items():
            if name not in table.variants:
                candidate.weight = candidate.shadow = 0.0
        live = max(1, sum(candidate.live for candidate in self.candidates.values()))
        for candidate in self.candidates.values():
            for detector in candidate.detectors.values():
                detector.alpha = self._model.guards.false_rollback / (len(GUARDS) * live)

    def _candidate(self, variant: str) -> Candidate:
        candidate = self.candidates.get(variant)
        if candidate is None:
            candidate = self.candidates[variant] = Candidate(variant, self._model)
            for detector in candidate.detectors.values():
                detector.alpha = self._model.guards.false_rollback / len(GUARDS)
        return candidate

    # ------------------------------------------------------------ events

    def observe(self, event: Event) -> None:
        """One record of this model, in order of arrival. Labels come through `labelled`."""
        if event.kind == Kind.REQUEST:
            if event.flags & Flag.LIVE:
                self._request(event)
        elif event.kind in (Kind.REFERENCE, Kind.SHADOW):
            self._pair(event)

    def labelled(self, variant: str, teacher_right: bool, candidate_right: bool, event: Event) -> None:
        """A pair whose true class is known."""
        candidate = self.candidates.get(variant)
        if candidate is None:
            return
        candidate.last_ns, candidate.last_mono_ns = event.wall_ns, event.mono_ns
        if teacher_right and not candidate_right:
            candidate.examples["harm"].append(event.request_key)
        candidate.harm.observe(teacher_right, candidate_right)

    def _request(self, event: Event) -> None:
        if event.flags & Flag.CLIENT_FAULT or event.cause == Cause.KILLED:
            return
        error = is_error(event, self.baseline)
        if event.variant == self.baseline:
            for candidate in self.candidates.values():
                if candidate.weight > 0 and event.epoch >= candidate.arming[0]:
                    self._race(candidate, event, error, from_candidate=False)
                else:  # so that the threshold is known when traffic comes
                    candidate.latency.learn(event.total_us)
            return
        own = self.candidates.get(event.variant)
        if own is None:
            return
        if event.epoch < own.arming[0]:
            self.skipped_epochs += 1
            return
        own.last_ns, own.last_mono_ns = event.wall_ns, event.mono_ns
        invalid = event.cause == Cause.INVALID_OUTPUT
        if error:
            own.examples["invalid_output" if invalid else "errors"].append(event.request_key)
        if invalid or event.cause == Cause.NONE:
            own.invalid.observe(invalid, bool(event.flags & Flag.BASELINE_VALID), event.batch_key)
        # Invalid outputs have a guard of their own; here they would be counted against it twice.
        self._race(own, event, error and not invalid, from_candidate=True)

    def _race(self, candidate: Candidate, event: Event, error: bool, from_candidate: bool) -> None:
        weights = self._weights.get(event.epoch)
        if weights is None:
            self.unknown_epochs += from_candidate
            return
        mine, theirs = weights.get(candidate.name, 0.0), weights.get(self.baseline, 0.0)
        if mine <= 0:
            return
        share = mine / (mine + theirs)
        waited = event.cause in _WAITED
        candidate.errors.observe(from_candidate, error, share, event.batch_key, waited=waited, at_ns=event.mono_ns)
        slow_before = candidate.latency.candidate_slow
        candidate.latency.observe(from_candidate, event.total_us, share, event.batch_key, event.mono_ns)
        if candidate.latency.candidate_slow > slow_before:
            candidate.examples["latency"].append(event.request_key)

    def _pair(self, event: Event) -> None:
        candidate = self.candidates.get(event.variant)
        if candidate is None or event.answered != self.teacher or event.status != 200:
            return
        if event.epoch < candidate.arming[0]:
            self.skipped_epochs += 1
            return
        candidate.last_ns, candidate.last_mono_ns = event.wall_ns, event.mono_ns
        if event.flips:
            candidate.examples["agreement"].append(event.request_key)
            if event.kind == Kind.REFERENCE:  # somebody was given that answer, and others like it were not scored
                candidate.suspect += 1.0 / (event.inclusion or 1.0)
        candidate.agreement.observe(event.flips, event.rows)

    # ------------------------------------------------------------ what follows

    def counts(self) -> dict[str, dict[str, float]]:
        """What was counted of each candidate in its arming: what rollouts wait for, and are limited by.

        `live`: live answers; `pairs`: answers compared with the teacher's; `suspect`: see `Candidate`.
        """
        return {
            name: {
                "live": candidate.errors.candidate_requests,
                "pairs": candidate.agreement.observations,
                "suspect": round(candidate.suspect, 2),
            }
            for name, candidate in self.candidates.items()
        }

    def assumptions(self) -> dict[str, dict[str, float]]:
        """What a prediction for each candidate rests on: its limits, and the budgets if it were live too."""
        live = sum(candidate.live for candidate in self.candidates.values())
        settings = self._model.guards
        found = {}
        for name, candidate in self.candidates.items():
            known = self._model.variants.get(name)
            found[name] = {
                "reference": self.reference,
                "agreement": candidate.agreement.limit,
                "disagreement": (known.reference_disagreement if known else None) or 0.0,
                "errors": candidate.errors.budget,
                "alpha": settings.false_rollback / (len(GUARDS) * (live + (not candidate.live))),
                "pass_alpha": settings.false_promotion,
            }
        return found

    def trips(self) -> list[Trip]:
        """Guards that have failed and act, of candidates that take traffic, not reported before in this arming."""
        found = []
        for candidate in self.candidates.values():
            if candidate.weight <= 0 and self._weights:
                continue
            for guard, detector in candidate.detectors.items():
                detector.settle()
                if detector.failed and guard not in candidate.tripped:
                    candidate.tripped.append(guard)
                    if guard in self._model.guards.dry_run:
                        continue
                    found.append(self._trip(candidate, detector))
        return found

    def verdicts(self, degraded: str = "") -> list[Verdict]:
        """Verdicts on every candidate that takes traffic or copies of it, or that has failed."""
        result = []
        for candidate in self.candidates.values():
            for detector in candidate.detectors.values():
                detector.settle()
                if candidate.live or detector.failed or (not self._weights and not detector.no_data):
                    result.append(self._verdict(candidate, detector, degraded))
        return result

    def judged(self, variant: str) -> list[Verdict]:
        """Verdicts on one candidate, traffic or not. Raises `KeyError` if it is none."""
        candidate = self.candidates[variant]
        for detector in candidate.detectors.values():
            detector.settle()
        return [self._verdict(candidate, detector, "") for detector in candidate.detectors.values()]

    def _verdict(self, candidate: Candidate, detector: Detector, degraded: str) -> Verdict:
        examples = list(candidate.examples[detector.name])
        return verdict(
            detector,
            candidate.name,
            self.teacher,
            self._share(candidate),
            candidate.last_ns,
            degraded=degraded,
            dry_run=detector.name in self._model.guards.dry_run,
            examples=examples,
        )

    def _trip(self, candidate: Candidate, detector: Detector) -> Trip:
        return Trip(
            model=self.name,
            variant=candidate.name,
            guard=detector.name,
            action=ACTIONS[detector.name],
            arming=candidate.arming,
            sentence=self._verdict(candidate, detector, "").sentence,
            statistic={
                **statistic(detector),
                "example_request_keys": [f"{key:016x}" for key in candidate.examples[detector.name]],
            },
            mono_ns=candidate.last_mono_ns,
            wall_ns=candidate.last_ns,
        )

    @property
    def shares(self) -> dict[str, float]:
        """Share of live traffic of each variant by the newest table; empty before the first one."""
        return self._weights[max(self._weights)] if self._weights else {}

    def _share(self, candidate: Candidate) -> float:
        total = candidate.weight + self.shares.get(self.baseline, 0.0)
        return candidate.weight / total if total else 0.0

    # ------------------------------------------------------------ storage

    def state(self) -> dict[str, Any]:
        return {
            "baseline": self.baseline,
            "teacher": self.teacher,
            "weights": {str(epoch): shares for epoch, shares in self._weights.items()},
            "candidates": {name: candidate.state() for name, candidate in self.candidates.items()},
            "unknown_epochs": self.unknown_epochs,
            "skipped_epochs": self.skipped_epochs,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a stored state. Raises `KeyError`, `TypeError` or `ValueError` if it is damaged."""
        self.baseline, self.teacher = str(state["baseline"]), str(state["teacher"])
        self._weights = {int(epoch): dict(shares) for epoch, shares in state["weights"].items()}
        self.unknown_epochs, self.skipped_epochs = int(state["unknown_epochs"]), int(state["skipped_epochs"])
        self.candidates.clear()
        for name, stored in state["candidates"].items():
            self._candidate(name).load(stored)


def table_weights(table: RouteTable) -> dict[str, float]:
    """Share of all live traffic of every variant, in [0, 1]; the baseline has what is left."""
    shares = {name: sum(high - low for low, high in spans) / BUCKETS for name, spans in table.candidates.items()}
    shares[table.baseline] = max(0.0, 1.0 - sum(shares.values()))
    return shares


def agreement_limit(model: MonitorModel, variant: str) -> float:
    """The share of flips a variant may show: the configured one, or its own on the test set and a margin."""
    settings = model.guards.agreement
    if settings.limit is not None:
        return settings.limit
    known = model.variants.get(variant)
    reference = known.reference_disagreement if known is not None else None
    return min(0.5, max(1e-4, (reference or 0.0) + settings.margin))


def gross_limit(limit: float, settings: GuardSettings) -> float:
    """The share of flips at which a variant is rolled back; halfway to 1 where the factor overshoots."""
    gross = limit * settings.agreement.gross_factor
    return gross if gross < 0.95 else limit + (1.0 - limit) / 2
