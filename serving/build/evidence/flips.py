"""Whose answers changed: a variant against the model it stands in for, row by row.

Two models of equal accuracy can err on different rows; a user who got a right answer yesterday notices. Negative
flips (Yan et al., CVPR 2021) count those, and McNemar's test (Psychometrika 1947), exact, tells whether losses and
gains differ by more than chance.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from serving.build import metrics


def paired_flips(answers: np.ndarray, teacher: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Compare two models on the same rows.

    Args:
        answers, teacher, truth: class indices, int64 [n], n ≥ 1.

    Returns:
        JSON values. `teacher_flips`: rows answered differently, with their share and its Wilson interval;
        `negative_flips`: teacher right, variant wrong, with the exact 95 % upper bound of their share;
        `positive_flips`: the reverse; `mcnemar_p`: exact, two-sided; `accuracy_change` with its 95 % interval.
    """
    n = len(answers)
    right, before = answers == truth, teacher == truth
    flips = int((answers != teacher).sum())
    lost, gained = int((before & ~right).sum()), int((~before & right).sum())
    return {
        "teacher_disagreement": flips / n,
        "teacher_disagreement_ci": metrics.wilson(flips, n),
        "teacher_flips": flips,
        "negative_flips": lost,
        "negative_flip_upper": metrics.clopper_pearson_upper(lost, n),
        "positive_flips": gained,
        "mcnemar_p": metrics.sign_test(gained, lost),
        "accuracy_change": (gained - lost) / n,
        "accuracy_change_ci": paired_change_interval(gained, lost, n),
    }


def paired_change_interval(gained: int, lost: int, rows: int, z: float = 1.959964) -> tuple[float, float]:
    """Interval of a difference of two paired proportions: Wald's after adding half a row to each of the four cells.

    Agresti & Min, Statistics in Medicine 2005: unlike Wald's own it keeps its level on few rows and with no flip.

    Args:
        gained, lost: rows that only the new, and only the old, model gets right.
        rows: all rows.
        z: normal quantile, 1.96 for 95 %.
    """
    n = rows + 2
    up, down = (gained + 0.5) / n, (lost + 0.5) / n
    half = z * math.sqrt((up + down - (up - down) ** 2) / n)
    return max(-1.0, up - down - half), min(1.0, up - down + half)
