"""What the quickstart's story plans and what it saw, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Plan:
    """Who plays, for how long (seconds), and what is the least to be seen."""

    model: str = "moderation"
    baseline: str = "teacher"
    healthy: str = "int8"
    damaged: str = "broken"
    percent: float = 10.0
    baseline_s: float = 8.0
    canary_s: float = 25.0
    trip_limit_s: float = 45.0
    arrival_limit_s: float = 10.0
    settle_s: float = 6.0
    least_answers: int = 30


@dataclass
class Timeline:
    """What happened. Times are Unix seconds; None was not observed."""

    beats: dict[str, bool] = field(
        default_factory=lambda: dict.fromkeys(("baseline", "canary", "tripped", "recovered"), False)
    )
    missing: list[str] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)
    onset_at: float | None = None
    trip_at: float | None = None
    trip_action: str | None = None
    trip_reason: str | None = None
    trip_evidence: Any = None
    last_candidate_answer_at: float | None = None
    routed_to_candidate: int = 0
    suspect_answers: int = 0
    wrong_suspect_answers: int = 0
    client_failures: int = 0
    sent_again: int = 0  # refused by a full queue, and answered when they came again
    unsent: int = 0
    labels_sent: int = 0
    labels_failed: int = 0

    @property
    def ok(self) -> bool:
        return all(self.beats.values()) and not self.missing

    @property
    def onset_to_trip_s(self) -> float | None:
        return _difference(self.trip_at, self.onset_at)

    @property
    def trip_to_last_candidate_answer_ms(self) -> float | None:
        """Negative if the candidate's last answer came before the trip was written down."""
        seconds = _difference(self.last_candidate_answer_at, self.trip_at)
        return None if seconds is None else seconds * 1000


def unix_seconds(at: Any) -> float | None:
    """Unix seconds of an ISO 8601 time or a number."""
    if isinstance(at, int | float):
        return float(at)
    try:
        return datetime.fromisoformat(str(at)).timestamp()
    except ValueError:
        return None


def _difference(later: float | None, earlier: float | None) -> float | None:
    return None if later is None or earlier is None else later - earlier
