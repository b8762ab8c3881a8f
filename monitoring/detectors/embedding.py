"""Are inputs further from the training rows, in the model's own terms, than held-out rows were?"""

from __future__ import annotations

from typing import Any, ClassVar

from monitoring.detectors.ood import Ood


class Embedding(Ood):
    """The share of audited rows whose embedding is further away than a high quantile of those of held-out rows.

    Assumption: which rows are audited (the first of a batch, at most one in so many seconds of each worker) does not
    depend on their content; and as for `Ood`.
    Observation: X = 1{distance > 1} of one row, in {0, 1}; the distance is that of Mahalanobis to the nearest class, in
    units of the held-out rows' quantile.
    Formula: E[X | past] <= level + margin, as for `Ood`. It never passes.
    Source: Lee et al., "A simple unified framework for detecting out-of-distribution samples and adversarial attacks"
    (NeurIPS 2018), for the score; betting.py.

    Args:
        level, margin: in (0, 1), and together too; `level` is the share of held-out rows over the threshold.

    >>> guard = Embedding(level=0.01, margin=0.02)
    >>> next(n for n in range(1, 400) if guard.observe(1.5 if n % 4 == 0 else 0.8))
    24
    """

    name: ClassVar[str] = "embedding"

    def __init__(self, level: float = 0.01, margin: float = 0.02, **budgets: float) -> None:
        super().__init__(1.0, level, margin, **budgets)

    def numbers(self) -> dict[str, Any]:
        return {"limit": round(self.limit, 6)}
