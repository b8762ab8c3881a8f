"""Which rows stand for a whole file, where all of them would take too long.

Files are often ordered by label, by source or by time, so that their first rows are of one kind.
"""

from __future__ import annotations

import math

import numpy as np

_GOLDEN = (math.sqrt(5) - 1) / 2


def spread(total: int, rows: int) -> np.ndarray:
    """Indices of so many of `total` rows, int64, ascending: one of each stretch of equal length; all if there are few.

    Within its stretch the place moves on by the golden ratio each time: a fixed step would see one class alone where
    classes take turns.

    >>> spread(3, 5).tolist()
    [0, 1, 2]
    >>> spread(12, 4).tolist()
    [0, 4, 6, 11]
    """
    if rows >= total:
        return np.arange(total)
    edges = np.arange(rows + 1) * total // max(rows, 1)
    within = np.arange(rows) * _GOLDEN % 1.0
    return edges[:-1] + (within * np.diff(edges)).astype(np.int64)


def filled(total: int, rows: int) -> np.ndarray:
    """As `spread`; where there are fewer, they come again: what a batch costs depends on how many rows it has.

    >>> filled(3, 8).tolist()
    [0, 1, 2, 0, 1, 2, 0, 1]
    """
    return np.resize(spread(total, rows), rows)
