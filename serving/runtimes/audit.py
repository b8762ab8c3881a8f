"""One row looked at from within: what saturates, what rounding costs, how unfamiliar its embedding is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from serving.runtimes.embedding import Familiar, pooled, tail_of
from serving.runtimes.inside import Inside
from serving.runtimes.saturation import outside, ranges_of, sqnr_db


class Audit(NamedTuple):
    """What one row shows; NaN: that was not looked at.

    `share`: of the values outside their ranges, averaged over the tensors; `worst`: that of the worst tensor;
    `distance`: of its embedding, in units of the one that 1 % of held-out rows exceeded; `sqnr_db`:
    signal-to-quantization-noise ratio, decibels, averaged over the tensors; `worst_sqnr_db`: that of the worst tensor.
    """

    share: float = math.nan
    worst: float = math.nan
    distance: float = math.nan
    sqnr_db: float = math.nan
    worst_sqnr_db: float = math.nan


class RowAudit:
    """Audits rows of one ONNX model.

    Args:
        source: the file that is served, or its bytes.
        saturation: look at the ranges of quantized activations.
        familiar: by which its embeddings are measured, and the session output that they lead to; None: they are not.

    Raises:
        ValueError: the file quantizes no activation by a fixed range, or has no embedding.
    """

    def __init__(
        self, source: Path | bytes, *, saturation: bool = True, familiar: tuple[Familiar, str] | None = None
    ) -> None:
        import onnx

        model = onnx.load_model_from_string(source) if isinstance(source, bytes) else onnx.load(source)
        self.ranges = ranges_of(model) if saturation else []
        if saturation and not self.ranges:
            raise ValueError("the model: no activation is quantized by a fixed range")
        self._familiar = familiar[0] if familiar is not None else None
        self._tail = tail_of(model, familiar[1]) if familiar is not None else ""
        names = [*(one.name for one in self.ranges), *([self._tail] if self._tail else [])]
        self._inside = Inside(model, names, optimized=not saturation)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Audit:
        """Audit session inputs of one row. Raises what ONNX Runtime raises."""
        shown, audit = self._inside.run(inputs), Audit()
        if self.ranges:
            shares = [outside(shown[one.name], one.low, one.high) for one in self.ranges]
            audit = audit._replace(share=sum(shares) / len(shares), worst=max(shares))
            ratios = [sqnr_db(one.meant(shown[one.name]), one.held(shown[one.name])) for one in self.ranges]
            if known := [ratio for ratio in ratios if not math.isnan(ratio)]:
                audit = audit._replace(sqnr_db=sum(known) / len(known), worst_sqnr_db=min(known))
        if self._familiar is not None:
            audit = audit._replace(distance=float(self._familiar.distances(pooled(shown[self._tail]))[0]))
        return audit
