"""Intervals of shares, for display; the guards have evidence of their own. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Most that is staked on one observation, and the observations that the first guess of the variance is worth.
_MOST, _PRIOR = 0.5, 1.0


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


class MeanSequence:
    """A confidence sequence for the mean of observations in [0, 1]: valid at all times at once.

    The empirical-Bernstein sequence with predictable stakes; what it is about is the mean over all answers, of which
    each observation stands for 1 / `inclusion`: the stake on it is scaled by that, which is known before it.
    Sources: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting" (JRSS B 2024), theorem 2;
    Howard et al., "Time-uniform, nonparametric, nonasymptotic confidence sequences" (Annals of Statistics 2021).

    Args:
        alpha: chance that the mean is ever outside, in (0, 1).

    >>> sequence = MeanSequence()
    >>> for n in range(1000):
    ...     sequence.add(float(n % 10 == 0))
    >>> [round(value, 3) for value in sequence.interval()], round(sequence.mean, 3)
    ([0.066, 0.137], 0.101)
    """

    def __init__(self, alpha: float = 0.05) -> None:
        self._alpha = alpha
        self.reset()

    def reset(self) -> None:
        self.count = 0
        self._sum = self._squares = 0.0  # of the observations, and of their distance to the mean before them
        self._stakes = self._staked = self._spent = 0.0
        self._least = 1.0  # the smallest inclusion so far

    def add(self, value: float, inclusion: float = 1.0) -> None:
        """One observation, chosen with this chance; what is no number is none."""
        if math.isnan(value):
            return
        value = min(max(value, 0.0), 1.0)
        self._least = min(self._least, inclusion) if inclusion > 0 else self._least
        before = self._guess()
        variance = (0.25 + self._squares) / (_PRIOR + self.count)
        turn = self.count + 1
        stake = math.sqrt(2.0 * math.log(2.0 / self._alpha) / (variance * turn * math.log(1.0 + turn)))
        stake = min(stake, _MOST) * (self._least / inclusion if inclusion > 0 else 1.0)
        self._stakes += stake
        self._staked += stake * value
        self._spent += (value - before) ** 2 * (-math.log1p(-stake) - stake)
        self.count = turn
        self._sum += value
        self._squares += (value - self._guess()) ** 2

    def _guess(self) -> float:
        return (0.5 + self._sum) / (_PRIOR + self.count)

    @property
    def mean(self) -> float:
        """The weighted mean so far; NaN without observations."""
        return self._staked / self._stakes if self._stakes else math.nan

    def interval(self) -> tuple[float, float]:
        """Where the mean is, all looks together, but for a chance of `alpha`."""
        if not self._stakes:
            return 0.0, 1.0
        half = (math.log(2.0 / self._alpha) + self._spent) / self._stakes
        return max(0.0, self.mean - half), min(1.0, self.mean + half)

    def state(self) -> list[float]:
        return [self.count, self._sum, self._squares, self._stakes, self._staked, self._spent, self._least]

    def load(self, state: Sequence[float]) -> None:
        count, *rest = state
        self.count = int(count)
        self._sum, self._squares, self._stakes, self._staked, self._spent, self._least = (float(part) for part in rest)
