"""Two classifiers on the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.build import metrics


def paired(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """Rows that only one of two gets right, and the exact sign test.

    Args:
        ours, theirs: whether each row was answered rightly, bool [n].
    """
    only_this, only_other = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    return {"only_this": only_this, "only_other": only_other, "p_value": metrics.sign_test(only_this, only_other)}


def verdict(pair: Mapping[str, Any]) -> str:
    """In words, of the first against the second."""
    if pair["p_value"] >= 0.05:
        return "no difference at the 5 % level"
    return "more often right" if pair["only_this"] > pair["only_other"] else "less often right"
