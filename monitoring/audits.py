"""What audits have shown of each variant, of late: for metrics, beside the guard's own statistic. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

#: After so many audits the weight of the newest is no longer that of a plain mean, but this part.
SPAN = 100


class Audits:
    """A mean for each variant: plain at first, then of about the latest `SPAN` audits.

    >>> audits = Audits()
    >>> for share in (0.0, 0.01, 0.02):
    ...     audits.add("int8", share)
    >>> round(audits.means["int8"], 6)
    0.01
    """

    def __init__(self) -> None:
        self.means: dict[str, float] = {}
        self._seen: dict[str, int] = {}

    def add(self, variant: str, value: float) -> None:
        """What one audited row shows; NaN is nothing."""
        if math.isnan(value):
            return
        seen = self._seen[variant] = min(SPAN, self._seen.get(variant, 0) + 1)
        before = self.means.get(variant, 0.0)
        self.means[variant] = before + (value - before) / seen

    def state(self) -> dict[str, list[float]]:
        return {variant: [mean, float(self._seen[variant])] for variant, mean in self.means.items()}

    def load(self, state: Mapping[str, list[float]]) -> None:
        """Raises `TypeError` or `ValueError` if it is no stored state."""
        self.means = {variant: float(mean) for variant, (mean, _) in state.items()}
        self._seen = {variant: int(seen) for variant, (_, seen) in state.items()}
