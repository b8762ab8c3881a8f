"""Does the candidate say what the teacher says?"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from monitoring.detectors.base import Detector
from monitoring.detectors.betting import Betting


class Agreement(Detector):
    """Paired top-1 flips against the teacher, held to a limit and to a gross limit.

    Assumption: pairs are sampled by a hash, whatever the answers are; the rows of one request stand
    for one observation. Observation: X = flipped rows / rows of one pair, in [0, 1].
    Formula: two e-processes, of E[X | past] <= limit (`breached`: the ramp pauses) and of
    E[X | past] <= gross (`failed`: rolled back). Passes by the mirrored test at the limit.
    Source: betting.py; Podkopaev & Ramdas, "Tracking the risk of a deployed model and detecting
    harmful distribution shifts" (ICLR 2022), for watching a risk against a tolerated level.

    A teacher whose answers to one input differ cannot be agreed with more than it agrees with itself: `floor`, the
    share of flips of which that is certain, raises both limits where it is over the limit. It is known before X.

    Args:
        limit: tolerated share of flips, in (0, 1).
        gross: share over which it is rolled back, in (limit, 1).

    >>> guard = Agreement(limit=0.055, gross=0.165)
    >>> flips = [1 if n % 3 == 0 else 0 for n in range(1, 200)]
    >>> next(n for n, flip in enumerate(flips, start=1) if guard.observe(flip, rows=1))
    99
    >>> guard.breached, guard.events
    (True, 33)
    """

    name: ClassVar[str] = "agreement"
    FIELDS: ClassVar[tuple[str, ...]] = (*Detector.FIELDS, "rows", "breached", "_over_limit")
    NULL: ClassVar[tuple[str, ...]] = (*Detector.NULL, "_limits")

    def __init__(self, limit: float = 0.05, gross: float = 0.15, **budgets: float) -> None:
        self._limits = limit, gross
        self.floor = 0.0
        self._over_limit = Betting()
        super().__init__(**budgets)

    @property
    def limit(self) -> float:
        """Share of flips that is tolerated now."""
        return max(self._limits[0], self.floor)

    @property
    def gross(self) -> float:
        """Share of flips over which it is rolled back now; halfway to 1 where the floor leaves no more room."""
        limit, gross = self._limits
        return gross if self.floor <= limit else min(self.floor + gross - limit, (1.0 + self.floor) / 2)

    @property
    def raised(self) -> bool:
        """Whether the floor is over the limit that was given."""
        return self.floor > self._limits[0]

    def reset(self) -> None:
        super().reset()
        self._over_limit.reset()
        self.rows = 0

    @property
    def log_breach_evidence(self) -> float:
        """log evidence against "at most the limit" (`log_evidence` is about the gross limit)."""
        return self._over_limit.log_evidence

    def observe(self, flips: int, rows: int = 1) -> bool:
        """One pair; True when it makes the detector fail. `events` counts flipped rows."""
        if rows <= 0:
            return False
        value = min(max(flips, 0), rows) / rows
        limit = self.limit
        self.observations += 1
        self.rows += rows
        self.events += min(max(flips, 0), rows)
        self._against.update(value, self.gross)
        self._over_limit.update(value, limit)
        self._for.update(value, limit)
        if self.log_breach_evidence >= self.log_threshold:
            self.breached = True
        return self._judge()

    @property
    def ratio(self) -> float:
        """Share of rows that agree; NaN without pairs."""
        return 1.0 - self.events / self.rows if self.rows else math.nan

    def numbers(self) -> dict[str, Any]:
        return {
            "limit": self.limit,
            "gross_limit": self.gross,
            "rows": self.rows,
            "log_limit_evidence": round(self.log_breach_evidence, 4),
        }
