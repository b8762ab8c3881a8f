"""The monitor's own guards, fed with drawn streams: when does each of them call it?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec
import numpy as np

from loadtests.detection.family import HEALTHY, Recorded
from loadtests.detection.streams import Answers, Requests
from loadtests.false_rollbacks import BASELINE, CANDIDATE, MODEL, snapshot
from monitoring.config import (
    AgreementSettings,
    ErrorsSettings,
    GuardSettings,
    HarmSettings,
    LatencySettings,
    MonitorModel,
    MonitorVariant,
    SaturationSettings,
)
from monitoring.detectors.base import Detector
from monitoring.event import Event
from monitoring.guard import ModelGuards
from serving.contract import Cause, Flag, Kind

SECOND_NS = 1_000_000_000
EPOCH = 2
SLICES = ("short",)
#: Seconds between two rows that are audited.
AUDIT_S = 1.0


def guards_for(
    recorded: Recorded, alpha: float | None = None, tolerant: bool = True, kind: type[ModelGuards] = ModelGuards
) -> ModelGuards:
    """Guards of one candidate.

    Args:
        alpha: of each guard; None for the default.
        tolerant: with the default margins over what is healthy. Else with none, and told the true healthy rates, as
            the comparators are: both then ask the same question.
        kind: all of them, or only those that can end a rollout.
    """
    settings = GuardSettings() if tolerant else strict(recorded)
    guards = _guards(recorded, settings, kind)
    if alpha is None:
        return guards
    default = next(iter(detectors(guards).values())).alpha
    settings = msgspec.structs.replace(settings, false_rollback=settings.false_rollback * alpha / default)
    return _guards(recorded, settings, kind)


def strict(recorded: Recorded) -> GuardSettings:
    """Limits at the truth: the healthy candidate's own rates on the rows that are streamed, and the baseline's.

    `calibration` keeps its margin: within a bin no candidate is calibrated exactly.
    """
    guess, theirs = recorded.answers[HEALTHY].argmax(axis=1), recorded.baseline.argmax(axis=1)
    harmful = (theirs == recorded.classes) & (guess != recorded.classes)
    return GuardSettings(
        errors=ErrorsSettings(ratio=1.0),
        latency=LatencySettings(margin=0.0, margin_ms=0.0),
        agreement=AgreementSettings(limit=float(np.mean(guess != theirs))),
        harm=HarmSettings(budget=float(np.mean(harmful))),
        saturation=SaturationSettings(factor=1.0, floor=max(1e-4, float(recorded.outside[HEALTHY].mean()))),
    )


def _guards(recorded: Recorded, settings: GuardSettings, kind: type[ModelGuards]) -> ModelGuards:
    variants = {
        BASELINE: MonitorVariant(1),
        CANDIDATE: MonitorVariant(2, recorded.differs, recorded.reliability, saturation=recorded.saturation),
    }
    guards = kind(MODEL, MonitorModel(BASELINE, BASELINE, variants, guards=settings, slices=SLICES))
    guards.configure(snapshot(1, 0.0))
    return guards


def detectors(guards: ModelGuards) -> Mapping[str, Detector]:
    """The detectors of the one candidate, by the name of their guard."""
    return {name: guard.detector for name, guard in guards.candidates[CANDIDATE].guards.items()}


def called(detector: Detector) -> bool:
    """Whether it has said that the candidate is over a limit: it failed, or asks for a pause."""
    return detector.failed or detector.breached


def pair_event(drawn: Answers, number: int) -> Event:
    """The record of a scored answer, as the gateway writes it."""
    at_ns, guess = int(drawn.at_s[number] * SECOND_NS), int(drawn.candidate[number])
    return Event(
        Kind.REFERENCE,
        CANDIDATE,
        answered=BASELINE,
        epoch=EPOCH,
        request_key=number + 1,
        unit_key=int(drawn.unit[number]),
        slices=int(drawn.short[number]),
        flips=int(guess != drawn.baseline[number]),
        cls=guess,
        ref_cls=int(drawn.baseline[number]),
        prob=float(drawn.second[number] if guess else 1.0 - drawn.second[number]),
        ref_prob=float(drawn.theirs[number] if guess else 1.0 - drawn.theirs[number]),
        mono_ns=at_ns,
        wall_ns=at_ns,
    )


def audit_event(drawn: Answers, number: int) -> Event:
    """The record of an answer whose row was audited for saturation."""
    at_ns = int(drawn.at_s[number] * SECOND_NS)
    share = float(drawn.outside[number])
    return Event(
        Kind.AUDIT, CANDIDATE, epoch=EPOCH, prob=share, ref_prob=share, energy=math.nan, mono_ns=at_ns, wall_ns=at_ns
    )


def give_label(guards: ModelGuards, drawn: Answers, number: int) -> None:
    """The true class of a scored answer is known, as `monitoring/join.py` tells the guards."""
    event, truth = pair_event(drawn, number), drawn.truth[number]
    right = bool(drawn.candidate[number] == truth)
    guards.labelled(CANDIDATE, bool(drawn.baseline[number] == truth), right, event)
    guards.resolved(CANDIDATE, event.prob, right, event)


def feed_answers(guards: ModelGuards, drawn: Answers, weight: float, watched: tuple[str, ...]) -> dict[str, float]:
    """Seconds at which each of the watched guards called it; infinite if it never did."""
    guards.configure(snapshot(EPOCH, weight))
    known, found = detectors(guards), dict.fromkeys(watched, math.inf)
    pairs = [(float(drawn.at_s[n]), "pair", n) for n in np.flatnonzero(drawn.pair).tolist()]
    labels = [(float(drawn.label_at_s[n]), "label", n) for n in np.flatnonzero(drawn.labelled).tolist()]
    audits = [(float(drawn.at_s[n]), "audit", n) for n in _audited(drawn)] if "saturation" in watched else []
    end = float(drawn.at_s[-1]) if len(drawn.at_s) else 0.0
    for at_s, what, number in sorted(pairs + labels + audits):
        if at_s > end:
            break
        if what == "label":
            give_label(guards, drawn, number)
        else:
            guards.observe(pair_event(drawn, number) if what == "pair" else audit_event(drawn, number))
        for guard, when in found.items():
            if math.isinf(when) and called(known[guard]):
                found[guard] = at_s
        if all(math.isfinite(when) for when in found.values()):
            break
    return found


def _audited(drawn: Answers) -> list[int]:
    """The first answer of each `AUDIT_S`."""
    return np.unique(np.floor(drawn.at_s / AUDIT_S), return_index=True)[1].tolist()


def feed_requests(guards: ModelGuards, drawn: Requests, weight: float, guard: str, earlier: Iterable[int]) -> float:
    """Seconds at which the guard called it; infinite if it never did.

    `earlier`: latencies of the baseline before the candidate had traffic, microseconds.
    """
    for latency_us in earlier:
        guards.observe(Event(Kind.REQUEST, BASELINE, epoch=1, total_us=latency_us))
    guards.configure(snapshot(EPOCH, weight))
    detector = detectors(guards)[guard]
    fine = Flag.LIVE | Flag.BASELINE_VALID
    columns = (column.tolist() for column in drawn)
    for at_s, candidate, latency_us, error, invalid in zip(*columns, strict=True):
        cause, flags, status = Cause.NONE, fine, 200
        if candidate and invalid:
            cause = Cause.INVALID_OUTPUT
        elif error:
            cause = Cause.ERROR
            if not candidate:  # nobody answers in the baseline's place
                flags, status = Flag.LIVE, 500
        at_ns = int(at_s * SECOND_NS)
        guards.observe(
            Event(
                Kind.REQUEST,
                CANDIDATE if candidate else BASELINE,
                cause=cause,
                flags=flags,
                status=status,
                epoch=EPOCH,
                total_us=latency_us,
                mono_ns=at_ns,
                wall_ns=at_ns,
            )
        )
        if called(detector):
            return float(at_s)
    return math.inf
