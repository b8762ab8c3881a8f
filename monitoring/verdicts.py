"""A guard's verdict and the sentence that says it with its numbers. Pure.

The sentence is used word for word in logs, the API, the console and the audit.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from monitoring.detectors.base import Detector
from monitoring.guards.base import Guard, Names

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
    guard: Guard[Any],
    names: Names,
    at_ns: int,
    *,
    degraded: str = "",
    dry_run: bool = False,
    examples: list[int],
) -> Verdict:
    """Judge one guard.

    Args:
        at_ns: wall time of the last observation, ns since the epoch.
        degraded: why the numbers cannot be trusted now, or "".
        dry_run: the guard only observes: what it would have done is said, not done.
        examples: request keys of the latest bad events.
    """
    word, action = _word(guard, degraded)
    sentence = guard.finding(names)
    if word == "degraded":
        sentence = f"{sentence}: {degraded}"
    elif word != "no_data":
        sentence += guard.conclusion(word)
    if dry_run and action != "none":
        sentence, action = f"{sentence} (dry run: no {action})", "none"
    return Verdict(
        guard=guard.name,
        variant=names.variant,
        verdict=word,
        action=action,
        sentence=sentence,
        at=iso(at_ns),
        statistic=statistic(guard.detector),
        example_request_keys=[f"{key:016x}" for key in examples],
        dry_run=dry_run,
    )


def statistic(detector: Detector) -> dict[str, Any]:
    """The numbers of a verdict."""
    return {
        "log_evidence": round(detector.log_evidence, 4),
        **({"log_evidence_at_failure": round(detector.failed_at, 4)} if detector.failed else {}),
        **({"log_breach_evidence": round(detector.log_breach_evidence, 4)} if detector.breached else {}),
        "log_threshold": round(detector.log_threshold, 4),
        "log_pass_evidence": round(detector.log_pass_evidence, 4),
        "observations": detector.observations,
        "events": detector.events,
        **detector.numbers(),
    }


def iso(at_ns: int) -> str:
    """ISO 8601 of nanoseconds since the epoch, to the millisecond, UTC."""
    return datetime.fromtimestamp(at_ns / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _word(guard: Guard[Any], degraded: str) -> tuple[str, str]:
    detector = guard.detector
    if detector.failed:
        return "fail", guard.action
    if detector.breached:
        return "fail", "pause"
    if detector.no_data:
        return "no_data", "none"
    if degraded:
        return "degraded", "none"
    return ("pass", "none") if detector.passed else ("inconclusive", "none")
