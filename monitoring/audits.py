"""How much of each variant's activations saturates, of late: for metrics, beside the guard's own statistic. Pure."""

from __future__ import annotations

from collections.abc import Mapping

#: After so many audits the weight of the newest is no longer that of a plain mean, but this part.
SPAN = 100


class Audits:
    """A mean for each variant: plain at first, then of about the latest `SPAN` audits.

    >>> audits = Audits()
    >>> for share in (0.0, 0.01, 0.02):
    ...     audits.add("int8", share)
    >>> round(audits.shares["int8"], 6)
    0.01
    """

    def __init__(self) -> None:
        self.shares: dict[str, float] = {}
        self._seen: dict[str, int] = {}

    def add(self, variant: str, share: float) -> None:
        """One audited row; `share` in [0, 1]."""
        seen = self._seen[variant] = min(SPAN, self._seen.get(variant, 0) + 1)
        before = self.shares.get(variant, 0.0)
        self.shares[variant] = before + (share - before) / seen

    def state(self) -> dict[str, list[float]]:
        return {variant: [share, float(self._seen[variant])] for variant, share in self.shares.items()}

    def load(self, state: Mapping[str, list[float]]) -> None:
        """Raises `TypeError` or `ValueError` if it is no stored state."""
        self.shares = {variant: float(share) for variant, (share, _) in state.items()}
        self._seen = {variant: int(seen) for variant, (_, seen) in state.items()}
