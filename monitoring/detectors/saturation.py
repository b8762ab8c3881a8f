"""Do activations leave the ranges that an INT8 variant was calibrated for?"""

from __future__ import annotations

from typing import Any, ClassVar

from monitoring.detectors.base import Detector


class Saturation(Detector):
    """The share of activations outside the calibrated ranges, on audited rows.

    Assumption: which rows are audited (the first of a batch, at most one in so many seconds of each worker) does not
    depend on their content.
    Observation: X = share of the values outside, of each quantized tensor, averaged over the tensors, for one row; in
    [0, 1].
    Formula: E[X | past] <= limit, with limit = max(factor x the share measured when the variant was built, floor).
    Passes by the mirrored test.
    Source: betting.py; Podkopaev & Ramdas (ICLR 2022), for a risk against a level measured before.

    Args:
        limit: tolerated mean share, in (0, 1).

    >>> guard = Saturation(limit=0.01)
    >>> next(n for n in range(1, 400) if guard.observe(0.06 if n % 2 else 0.02))
    7
    """

    name: ClassVar[str] = "saturation"
    FIELDS: ClassVar[tuple[str, ...]] = (*Detector.FIELDS, "total", "worst")
    NULL: ClassVar[tuple[str, ...]] = (*Detector.NULL, "limit")

    def __init__(self, limit: float = 0.01, **budgets: float) -> None:
        self.limit = limit
        super().__init__(**budgets)

    def reset(self) -> None:
        super().reset()
        self.total = 0.0  # sum of the shares
        self.worst = 0.0  # the highest share of a single tensor on any row

    @property
    def share(self) -> float:
        """Mean share of the audited rows, in [0, 1]."""
        return self.total / self.observations if self.observations else 0.0

    def observe(self, share: float, worst: float = 0.0) -> bool:
        """One audited row; True when it makes the detector fail. `events` counts rows over the limit.

        Args:
            share: see X above.
            worst: the highest share of a single tensor, in [0, 1].
        """
        share = min(1.0, max(0.0, share))
        self.observations += 1
        self.events += share > self.limit
        self.total += share
        self.worst = max(self.worst, min(1.0, worst))
        self._against.update(share, self.limit)
        self._for.update(share, self.limit)
        return self._judge()

    def numbers(self) -> dict[str, Any]:
        return {"share": round(self.share, 6), "worst_tensor_share": round(self.worst, 6), "limit": self.limit}
