"""Intervals of shares, for display; the guards have evidence of their own. Pure."""

from __future__ import annotations

import math


def wilson(successes: float, trials: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson, JASA 1927), 95 % by default. Good for one look.

    >>> [round(bound, 3) for bound in wilson(63, 97)]
    [0.55, 0.737]
    """
    if trials <= 0:
        return 0.0, 1.0
    share, square = successes / trials, z * z
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    half = z / (1 + square / trials) * math.sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)
