"""A guard's verdict and the sentence that says it with its numbers. Pure.

The sentence is used word for word in logs, the API, the console and the audit.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import msgspec

from monitoring.detectors.agreement import Agreement
from monitoring.detectors.base import Detector
from monitoring.detectors.errors import ALONE_SHARE, Errors
from monitoring.detectors.harm import Harm
from monitoring.detectors.invalid_output import InvalidOutput
from monitoring.detectors.latency import Latency

#: What a failed guard does.
ACTIONS = {
    "invalid_output": "kill",
    "errors": "rollback",
    "latency": "rollback",
    "agreement": "rollback",
    "harm": "rollback",
}
VERDICTS = ("pass", "fail", "inconclusive", "no_data", "degraded")


class Verdict(msgspec.Struct, frozen=True):
    """What one guard thinks of one variant, as the APIs show it."""

    guard: str
    variant: str
    verdict: str  # one of VERDICTS
    action: str  # none | alert | pause | rollback | kill
    sentence: str
    at: str  # ISO 8601, UTC
    statistic: dict[str, Any]
    example_request_keys: list[str] = []  # request keys (16 hex digits) of the latest bad events
    dry_run: bool = False  # the guard observes and never acts


def verdict(
    detector: Detector,
    variant: str,
    teacher: str,
    share: float,
    at_ns: int,
    *,
    degraded: str = "",
    dry_run: bool = False,
    examples: list[int],
) -> Verdict:
    """Judge one detector.

    Args:
        share: the variant's share of the traffic it is compared over, in [0, 1].
        at_ns: wall time of the last observation, ns since the epoch.
        degraded: why the numbers cannot be trusted now, or "".
        dry_run: the guard only observes: what it would have done is said, not done.
        examples: request keys of the latest bad events.
    """
    word, action = _word(detector, degraded)
    sentence = _SENTENCES[type(detector)](detector, variant, teacher, share) + _ending(detector, word, degraded)
    if dry_run and action != "none":
        sentence, action = f"{sentence} (dry run: no {action})", "none"
    return Verdict(
        guard=detector.name,
        variant=variant,
        verdict=word,
        action=action,
        sentence=sentence,
        at=iso(at_ns),
        statistic=statistic(detector),
        example_request_keys=[f"{key:016x}" for key in examples],
        dry_run=dry_run,
    )


def statistic(detector: Detector) -> dict[str, Any]:
    """The numbers of a verdict."""
    return {
        "log_evidence": round(detector.log_evidence, 4),
        **({"log_evidence_at_failure": round(detector.failed_at, 4)} if detector.failed else {}),
        "log_threshold": round(detector.log_threshold, 4),
        "log_pass_evidence": round(detector.log_pass_evidence, 4),
        "observations": detector.observations,
        "events": detector.events,
        **detector.numbers(),
    }


def iso(at_ns: int) -> str:
    """ISO 8601 of nanoseconds since the epoch, to the millisecond, UTC."""
    return datetime.fromtimestamp(at_ns / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _word(detector: Detector, degraded: str) -> tuple[str, str]:
    if detector.failed:
        return "fail", ACTIONS[detector.name]
    if isinstance(detector, Agreement) and detector.breached:
        return "fail", "pause"
    if detector.no_data:
        return "no_data", "none"
    if degraded:
        return "degraded", "none"
    return ("pass", "none") if detector.passed else ("inconclusive", "none")


def _ending(detector: Detector, word: str, degraded: str) -> str:
    if word == "no_data":
        return ""
    if word == "degraded":
        return f": {degraded}"
    if isinstance(detector, InvalidOutput):
        if word == "fail":
            return f", the limit is {detector.limit}"
        return f", under the limit of {detector.limit}"
    evidence, threshold = detector.log_evidence, detector.log_threshold
    if isinstance(detector, Agreement) and word == "fail" and not detector.failed:
        evidence = detector.log_limit_evidence
    if word == "fail":
        # The verdict latches: what counts is the evidence when it crossed, whatever was seen since.
        evidence = max(evidence, detector.failed_at)
        return f": evidence e^{evidence:.1f} {'≥' if evidence >= threshold else 'since fallen from'} e^{threshold:.1f}"
    needed = -math.log(detector.pass_alpha)
    if word == "pass":
        return f", within the limit: evidence for it e^{max(detector.log_pass_evidence, needed):.1f} ≥ e^{needed:.1f}"
    return (
        f": not conclusive, evidence against it e^{evidence:.1f} < e^{threshold:.1f}, "
        f"for it e^{detector.log_pass_evidence:.1f} < e^{needed:.1f}"
    )


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _ratio(part: int, whole: int) -> str:
    return f"({_percent(part / whole)})" if whole else ""


def _invalid(detector: InvalidOutput, variant: str, teacher: str, share: float) -> str:
    if detector.no_data:
        return f"{variant} has answered no live request yet"
    return f"{variant} gave {detector.events} invalid outputs in {detector.observations} live answers"


def _errors(detector: Errors, variant: str, teacher: str, share: float) -> str:
    if detector.no_data:
        return f"{variant} has answered no live request yet"
    if share > ALONE_SHARE:
        rate = _ratio(detector.candidate_errors, detector.candidate_requests)
        over = "over" if detector.failed else "held to"
        return (
            f"{variant} failed {detector.candidate_errors} of {detector.candidate_requests} requests {rate}, "
            f"{over} its own limit of 10.0 % (no other arm has traffic to compare with)"
        )
    if not detector.observations:
        return f"{variant} and the baseline had no error in {detector.candidate_requests} requests of {variant}"
    return (
        f"{variant} caused {detector.events} of {detector.observations} error events "
        f"{_ratio(detector.events, detector.observations)} with {_percent(share)} of the traffic, "
        f"{'over' if detector.failed else 'held to'} the limit of {_percent(detector.last_limit)}"
    )


def _latency(detector: Latency, variant: str, teacher: str, share: float) -> str:
    if detector.no_data:
        if detector.candidate_requests and share >= 1.0:
            return f"{variant} has all the traffic: there is no baseline to compare its latency with"
        if detector.candidate_requests and not math.isfinite(detector.baseline.value):
            return f"{variant}: the baseline's p{detector.quantile * 100:g} is not known yet"
        if detector.candidate_requests:
            return (
                f"{variant} and the baseline had no slow event in {detector.candidate_requests} requests of {variant}"
            )
        return f"{variant} has answered no live request yet"
    return (
        f"{variant} caused {detector.events} of {detector.observations} slow events "
        f"{_ratio(detector.events, detector.observations)} (over {detector.threshold_us / 1000:.1f} ms, "
        f"{detector.baseline.value / 1000:.1f} ms for the baseline) with {_percent(share)} of the traffic, "
        f"{'over' if detector.failed else 'held to'} the limit of {_percent(detector.last_limit)}"
    )


def _agreement(detector: Agreement, variant: str, teacher: str, share: float) -> str:
    if detector.no_data:
        return f"{variant} has no answer scored by {teacher} yet"
    kind, limit = ("gross limit", detector.gross) if detector.failed else ("limit", detector.limit)
    return (
        f"{variant} disagrees with {teacher} on {detector.events} of {detector.rows} scored answers "
        f"{_ratio(detector.events, detector.rows)}, "
        f"{'over' if detector.failed or detector.breached else 'held to'} the {kind} of {_percent(limit)}"
    )


def _harm(detector: Harm, variant: str, teacher: str, share: float) -> str:
    if detector.no_data:
        return f"{variant} has no labelled pair yet"
    return (
        f"{variant} got wrong what {teacher} got right in {detector.events} of {detector.observations} labelled pairs "
        f"{_ratio(detector.events, detector.observations)}, "
        f"{'over' if detector.failed else 'held to'} the budget of {_percent(detector.budget)}"
    )


_SENTENCES: dict[type[Detector], Any] = {
    InvalidOutput: _invalid,
    Errors: _errors,
    Latency: _latency,
    Agreement: _agreement,
    Harm: _harm,
}
