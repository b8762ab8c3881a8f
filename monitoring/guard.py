"""The guards of one model: events in, verdicts and trips out. Pure: time is in the records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from monitoring.baseline import Baseline
from monitoring.candidate import TRIPS, Arming, Attempt, Candidate
from monitoring.config import MonitorModel
from monitoring.detectors.agreement import Agreement
from monitoring.detectors.errors import Errors
from monitoring.event import Event, is_divided, is_error, is_killed
from monitoring.guards.base import Guard, Names
from monitoring.intervals import MeanSequence
from monitoring.returns import Returned
from monitoring.verdicts import Verdict, statistic, verdict
from serving.contract import BUCKETS, Cause, Flag, Kind, Latch, RouteTable, Snapshot
from serving.packing import is_unopened

#: Epochs whose weights are remembered, for records that are read late.
EPOCHS_KEPT = 256
#: How long what a candidate has left queued may slow the baseline, nanoseconds.
REST_NS = 60_000_000_000


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


class ModelGuards:
    """The guards of every candidate of one model. Tell it what is configured, then feed it events."""

    def __init__(self, name: str, model: MonitorModel) -> None:
        self.name = name
        self._model = model
        self.baseline = model.baseline
        self.teacher = model.teacher
        self.own = Baseline(model.baseline, model)
        self.candidates: dict[str, Candidate] = {}
        self._earlier: dict[str, dict[str, float]] = {}  # counts of each candidate in earlier armings of its attempt
        self.epoch: int | None = None  # of the table in force; None before the first
        self.reference = 1.0  # share of candidates' answers that the teacher scores, in [0, 1]
        self.noise = MeanSequence()  # share of its answers that the teacher changes when asked again
        self._artifacts: dict[str, str] = {}  # of the baseline and the teacher; empty before the first table
        self._began = 0  # the epoch since which it is these that candidates are compared with
        self._weights: dict[int, dict[str, float]] = {}  # epoch -> share of each variant
        self.unknown_epochs = 0  # records not used in a race: the weights they were routed by are not known
        self.skipped_epochs = 0  # records from before the arming, or from before the baseline or the teacher
        self._skipped: Event | None = None  # the newest of them: it may be told to several guards
        self._rest_ns = 0  # wall time until which the baseline may still suffer from a candidate's traffic
        for variant in model.variants:
            if variant != model.baseline:
                self._candidate(variant)

    # ------------------------------------------------------------ what is configured

    def configure(self, snapshot: Snapshot) -> None:
        """Take over the routing that the control plane publishes."""
        known = {name: (candidate.attempt, self._counted(name)) for name, candidate in self.candidates.items()}
        table = snapshot.tables.get(self.name)
        if table is None:
            return
        artifacts = {name: table.variants[name].artifact for name in (table.baseline, table.teacher)}
        named = (table.baseline, table.teacher) == (self.baseline, self.teacher)
        if not named or self._artifacts not in ({}, artifacts):
            self.baseline, self.teacher = table.baseline, table.teacher
            self.own = Baseline(table.baseline, self._model)
            self.candidates.clear()
            self.noise.reset()
            self._began = table.epoch
        self._artifacts = artifacts
        self._began = min(self._began, table.epoch)  # epochs fall when the control plane's store is an older one
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
            candidate.arm((since, veto, kills[0], kills[1]), table.epoch, table.variants[variant].artifact)
        for name in self.candidates.keys() - table.variants.keys():
            del self.candidates[name]  # taken out of the configuration: what it did would be told for ever
        live = max(1, sum(candidate.live for candidate in self.candidates.values()))
        for candidate in self.candidates.values():
            candidate.allot(self._model.guards.false_rollback / live)
        self._carry(known)

    def _carry(self, known: Mapping[str, tuple[Attempt, dict[str, float]]]) -> None:
        """Count on from what was known of a candidate whose attempt goes on, whether its evidence does or not."""
        self._earlier.clear()
        for name, candidate in self.candidates.items():
            attempt, counts = known.get(name, (candidate.attempt, {}))
            if attempt == candidate.attempt:
                now = self._counted(name)
                self._earlier[name] = {what: count - now[what] for what, count in counts.items()}

    def _candidate(self, variant: str) -> Candidate:
        candidate = self.candidates.get(variant)
        if candidate is None:
            candidate = self.candidates[variant] = Candidate(variant, self._model)
            candidate.allot(self._model.guards.false_rollback)
            candidate.detector(Agreement).floor = self.floor
        return candidate

    @property
    def floor(self) -> float:
        """The share of flips that the teacher has with itself at least; 0 while it is not known to have any."""
        return self.noise.interval()[0]

    # ------------------------------------------------------------ events

    def observe(self, event: Event) -> None:
        """One record of this model, in order of arrival. Labels come through `labelled`."""
        if event.epoch < self._began and event.kind != Kind.AUDIT:  # audits have no epoch
            self._skip(event)
        elif event.kind == Kind.REQUEST:
            self._divide(event)
            if event.flags & Flag.LIVE:
                self._request(event)
        elif event.kind in (Kind.REFERENCE, Kind.SHADOW):
            self._pair(event)
        elif event.kind == Kind.AUDIT and event.variant == self.baseline:
            self.own.audited(event)
        elif event.kind == Kind.AUDIT and (candidate := self.candidates.get(event.variant)) is not None:
            candidate.last_ns, candidate.last_mono_ns = event.wall_ns, event.mono_ns
            candidate.audited(event)  # of the artifact, whatever it was routed by

    def labelled(
        self,
        variant: str,
        teacher_right: bool,
        candidate_right: bool,
        event: Event,
        epoch: int | None = None,
        shadow: bool = False,
    ) -> None:
        """A pair whose true class is known.

        Args:
            event: the record that completed it.
            epoch: by whose weights its request was routed; None: the record's own.
            shadow: the candidate answered a copy.
        """
        candidate = self._armed(variant, event, epoch, shadow)
        if candidate is None:
            return
        candidate.last_ns, candidate.last_mono_ns = event.wall_ns, event.mono_ns
        candidate.labelled(event, teacher_right, candidate_right)

    def resolved(
        self, variant: str, prob: float, right: bool, event: Event, epoch: int | None = None, shadow: bool = False
    ) -> None:
        """An answer whose true class is known; see `Guard.resolved`, and `labelled`."""
        candidate = self._armed(variant, event, epoch, shadow)
        if candidate is not None:
            candidate.last_ns, candidate.last_mono_ns = event.wall_ns, event.mono_ns
            candidate.resolved(event, prob, right)

    def _armed(self, variant: str, event: Event, epoch: int | None = None, shadow: bool = False) -> Candidate | None:
        """The candidate, unless the request is from before its arming."""
        candidate = self.candidates.get(variant)
        if candidate is None:
            return None
        first = candidate.shadow_epoch if shadow else candidate.first_epoch
        if (event.epoch if epoch is None else epoch) >= max(first, self._began):
            return candidate
        self._skip(event)
        return None

    def _skip(self, event: Event) -> None:
        """Count a record that is from too early, however many guards it was for."""
        self.skipped_epochs += event is not self._skipped
        self._skipped = event

    def returned(self, event: Event, found: Returned) -> None:
        """A business KPI has found its request."""
        asked = found.asked
        for candidate in self.candidates.values():
            if candidate.arming[0] < 0 or asked.epoch < max(candidate.arming[0], self._began):
                continue
            if asked.variant in (candidate.name, self.baseline):
                candidate.last_ns, candidate.last_mono_ns = event.wall_ns, event.mono_ns
                candidate.returned(event, found, asked.variant == candidate.name)

    def _divide(self, event: Event) -> None:
        """Tell every candidate with traffic whose request this is, by the split."""
        if is_killed(event) or event.cause == Cause.KILLED:
            for candidate in self.candidates.values():
                candidate.killed()
            return
        weights = self._weights.get(event.epoch)
        if weights is None or not is_divided(event):
            return
        for name, share in weights.items():
            known = self.candidates.get(name) if share > 0 else None
            if known is not None and event.epoch >= known.arming[0] >= 0 and not is_unopened(event.extra, name):
                arm = None if event.variant not in (name, self.baseline) else event.variant == name
                known.divided(event, arm, share / (share + weights.get(self.baseline, 0.0)))

    def _alone(self, event: Event) -> bool:
        """Whether no candidate has traffic when this request of the baseline is answered, nor had a minute before."""
        weights = self._weights.get(event.epoch)
        if weights is None:
            return False
        if weights.get(self.baseline, 0.0) < 1.0:
            self._rest_ns = event.wall_ns + REST_NS
        return not 0 < self._rest_ns - event.wall_ns <= REST_NS

    def _request(self, event: Event) -> None:
        if event.flags & Flag.CLIENT_FAULT or event.cause == Cause.KILLED:
            return
        error = is_error(event, self.baseline)
        if event.variant == self.baseline:
            self.own.answered(event)
            if is_killed(event) or event.flags & Flag.UNOPENED:
                return  # the candidates' users are among those who were answered
            alone, weights = self._alone(event), self._weights.get(event.epoch, {})
            for candidate in self.candidates.values():
                if alone:
                    candidate.quiet(event)
                # By the weights it was routed by, as the candidate's own: the table may have moved on meanwhile.
                if weights.get(candidate.name, 0.0) > 0 and event.epoch >= candidate.first_epoch:
                    self._race(candidate, event, error, from_candidate=False)
                else:
                    candidate.idle(event)
            return
        own = self._armed(event.variant, event)
        if own is None:
            return
        own.last_ns, own.last_mono_ns = event.wall_ns, event.mono_ns
        invalid = event.cause == Cause.INVALID_OUTPUT
        own.answered(event, invalid)
        # Invalid outputs have a guard of their own; here they would be counted against it twice.
        self._race(own, event, error and not invalid, from_candidate=True)

    def _race(self, candidate: Candidate, event: Event, error: bool, from_candidate: bool) -> None:
        if is_unopened(event.extra, candidate.name):
            return  # on a gateway where it has no requests, the baseline's would outnumber the split
        weights = self._weights.get(event.epoch)
        if weights is None:
            self.unknown_epochs += from_candidate
            return
        mine, theirs = weights.get(candidate.name, 0.0), weights.get(self.baseline, 0.0)
        if mine <= 0:
            return
        candidate.raced(event, error, from_candidate, mine / (mine + theirs))

    def _pair(self, event: Event) -> None:
        if event.answered != self.teacher or event.status != 200:
            return
        if event.variant == self.teacher:
            self._once_more(event)
            return
        candidate = self._armed(event.variant, event, shadow=event.kind == Kind.SHADOW)
        if candidate is None:
            return
        candidate.last_ns, candidate.last_mono_ns = event.wall_ns, event.mono_ns
        if event.flips and event.kind == Kind.REFERENCE:
            # Somebody was given that answer, and others like it were not scored.
            candidate.suspect += 1.0 / (event.inclusion or 1.0)
        candidate.depth.add(event)
        candidate.paired(event)

    def _once_more(self, event: Event) -> None:
        """The teacher's second answer to an input beside its first."""
        if event.rows > 0:
            self.noise.add(event.flips / event.rows, event.inclusion)
            for candidate in self.candidates.values():
                candidate.detector(Agreement).floor = self.floor

    # ------------------------------------------------------------ what follows

    def counts(self) -> dict[str, dict[str, float]]:
        """What was counted of each candidate in its attempt: what rollouts wait for, and are limited by.

        `live`: live answers; `pairs`: answers compared with the teacher's; `suspect`: see `Candidate`.
        """
        return {
            name: {what: round(count, 2) for what, count in self._counted(name).items()} for name in self.candidates
        }

    def _counted(self, name: str) -> dict[str, float]:
        candidate, earlier = self.candidates[name], self._earlier.get(name, {})
        counts = {
            "live": candidate.detector(Errors).candidate_requests,
            "pairs": candidate.detector(Agreement).observations,
            "suspect": candidate.suspect,
        }
        return {what: count + earlier.get(what, 0) for what, count in counts.items()}

    def assumptions(self) -> dict[str, dict[str, float]]:
        """What a prediction for each candidate rests on: its limits, and the budgets if it were live too."""
        live = sum(candidate.live for candidate in self.candidates.values())
        found = {}
        for name, candidate in self.candidates.items():
            known = self._model.variants.get(name)
            found[name] = {
                "reference": self.reference,
                "agreement": candidate.detector(Agreement).limit,
                "disagreement": (known.reference_disagreement if known else None) or 0.0,
                "errors": candidate.detector(Errors).budget,
                "alpha": candidate.alpha(self._model.guards.false_rollback / (live + (not candidate.live))),
                "pass_alpha": self._model.guards.false_promotion,
            }
        return found

    def trips(self) -> list[Trip]:
        """Guards that have failed and act, of candidates that take traffic, not reported before in this arming."""
        found = []
        for candidate in self.candidates.values():
            if candidate.weight <= 0 and self._weights:
                continue
            for name, guard in candidate.guards.items():
                guard.detector.settle()
                acts = guard.action in TRIPS and name not in self._model.guards.dry_run
                if guard.detector.failed and acts and name not in candidate.tripped:
                    candidate.tripped.append(name)
                    found.append(self._trip(candidate, guard))
                    candidate.diverted()
        return found

    def verdicts(self, degraded: str = "") -> list[Verdict]:
        """Verdicts on every candidate that takes traffic or copies of it, or that has failed."""
        result = []
        for candidate in self.candidates.values():
            for guard in candidate.guards.values():
                detector = guard.detector
                detector.settle()
                if candidate.live or detector.failed or (not self._weights and not detector.no_data):
                    result.append(self._verdict(candidate, guard, degraded))
        return [*result, *self.own.verdicts(degraded)]

    def judged(self, variant: str) -> list[Verdict]:
        """Verdicts on one candidate, traffic or not. Raises `KeyError` if it is none."""
        candidate = self.candidates[variant]
        for guard in candidate.guards.values():
            guard.detector.settle()
        return [self._verdict(candidate, guard, "") for guard in candidate.guards.values()]

    def _verdict(self, candidate: Candidate, guard: Guard[Any], degraded: str) -> Verdict:
        found = verdict(
            guard,
            Names(candidate.name, self.teacher, self._share(candidate)),
            candidate.last_ns,
            degraded=degraded,
            dry_run=guard.name in self._model.guards.dry_run,
            examples=list(candidate.examples[guard.name]),
        )
        if guard.name != Agreement.name:
            return found
        return msgspec.structs.replace(found, statistic=found.statistic | candidate.depth.top_k() | self._noise())

    def _noise(self) -> dict[str, float]:
        """How far the teacher differs from itself, with its interval, as the verdicts on agreement show it."""
        if not self.noise.count:
            return {}
        lower, upper = self.noise.interval()
        return {
            "teacher_noise": round(self.noise.mean, 5),
            "teacher_noise_lower": round(lower, 5),
            "teacher_noise_upper": round(upper, 5),
            "teacher_noise_pairs": self.noise.count,
        }

    def _trip(self, candidate: Candidate, guard: Guard[Any]) -> Trip:
        return Trip(
            model=self.name,
            variant=candidate.name,
            guard=guard.name,
            action=guard.action,
            arming=candidate.arming,
            sentence=self._verdict(candidate, guard, "").sentence,
            statistic={
                **statistic(guard.detector),
                "example_request_keys": [f"{key:016x}" for key in candidate.examples[guard.name]],
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
            "artifacts": self._artifacts,
            "began": self._began,
            "weights": {str(epoch): shares for epoch, shares in self._weights.items()},
            "candidates": {name: candidate.state() for name, candidate in self.candidates.items()},
            "earlier": self._earlier,
            "unknown_epochs": self.unknown_epochs,
            "skipped_epochs": self.skipped_epochs,
            "rest_ns": self._rest_ns,
            "noise": self.noise.state(),
            "own": self.own.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a stored state. Raises `KeyError`, `TypeError` or `ValueError` if it is damaged."""
        self.baseline, self.teacher = str(state["baseline"]), str(state["teacher"])
        self._artifacts = {str(name): str(artifact) for name, artifact in state["artifacts"].items()}
        self._began = int(state["began"])
        self._weights = {int(epoch): dict(shares) for epoch, shares in state["weights"].items()}
        self.unknown_epochs, self.skipped_epochs = int(state["unknown_epochs"]), int(state["skipped_epochs"])
        self._rest_ns = int(state["rest_ns"])
        self.noise.load(state["noise"])
        self.own = Baseline(self.baseline, self._model)
        self.own.load(state["own"])
        self.candidates.clear()
        for name, stored in state["candidates"].items():
            self._candidate(name).load(stored)
        self._earlier = {name: dict(counts) for name, counts in state.get("earlier", {}).items()}


def table_weights(table: RouteTable) -> dict[str, float]:
    """Share of all live traffic of every variant, in [0, 1]; the baseline has what is left."""
    shares = {name: sum(high - low for low, high in spans) / BUCKETS for name, spans in table.candidates.items()}
    shares[table.baseline] = max(0.0, 1.0 - sum(shares.values()))
    return shares
