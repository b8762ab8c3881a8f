"""Intervals and tests where windows of one clip are alike: clips are independent, windows are not."""

from __future__ import annotations

from typing import Any

import numpy as np

_DRAWS, _SEED = 2000, 5
#: Of a 95 % interval on either side, and of a 95 % bound.
_TAIL, _BOUND = 0.025, 0.05


def by_clip(right: np.ndarray, before: np.ndarray, differs: np.ndarray) -> dict[str, Any]:
    """What `quality` says of answers that are independent, for those that are not.

    Args:
        right, before: whether the variant, and the teacher, is right, bool [clips, windows].
        differs: whether their answers differ, bool [clips, windows].

    Returns:
        JSON values; `bounds_if_perfect` are those of an artifact that is always right, as its teacher is: no other does
        better on as many clips.
    """
    change = right.astype(np.int64) - before
    always, never = np.ones(len(right)), np.zeros(len(right))
    return {
        "accuracy_ci": interval(right.mean(axis=1), 0, 1),
        "teacher_disagreement_ci": interval(differs.mean(axis=1), 0, 1),
        "negative_flip_upper": upper_end((change < 0).mean(axis=1), 1, _BOUND),
        "mcnemar_p": sign_flip_test(change.sum(axis=1)),
        "accuracy_change_ci": interval(change.mean(axis=1), -1, 1),
        "bounds_if_perfect": {
            "accuracy_ci": interval(always, 0, 1),
            "teacher_disagreement_ci": interval(never, 0, 1),
            "negative_flip_upper": upper_end(never, 1, _BOUND),
        },
    }


def interval(values: np.ndarray, least: float, most: float) -> tuple[float, float]:
    """95 % interval of a mean; both ends as `upper_end` has it."""
    low = 0.0 - upper_end(-values, -least, _TAIL)  # a plain minus would make -0.0 of 0
    return low, upper_end(values, most, _TAIL)


def upper_end(values: np.ndarray, most: float, tail: float) -> float:
    """Upper end of the mean over all clips there are, from some of them (Gaffke 2005; Learned-Miller & Thomas 2020).

    Clips get random weights, as in a Bayesian bootstrap, and so does one more clip with the largest value that there
    could be: it stands for what these clips did not happen to show. Of clips that are all or nothing this is Clopper
    and Pearson's bound, without any event too, and a larger value never gives a smaller end. No distribution is known
    for which it is below the truth more often than it says.

    Args:
        values: one a clip, independent, [clips].
        most: the largest value there could be.
        tail: how often the end may be below the truth.
    """
    clips = len(values)
    weights = np.random.default_rng(_SEED).standard_exponential((_DRAWS, clips))
    gap = most - weights @ values / weights.sum(axis=1)
    # The weight of the one more clip is over w with a chance of (1 - w) ** clips, whatever the others weigh.
    low, high = float(values.min()), float(most)
    for _ in range(30):
        end = (low + high) / 2
        short = np.divide(most - end, gap, out=np.ones(_DRAWS), where=gap > 0)
        if (short.clip(0, 1) ** clips).mean() > tail:
            low = end
        else:
            high = end
    return high


def sign_flip_test(net: np.ndarray) -> float:
    """Two-sided exact p-value that two models err equally often; McNemar's where no clip has more than one change.

    If they do, the change of a clip could as well have been the other way round: every choice of signs is as likely.

    Args:
        net: windows won less windows lost, by clip, int [clips].
    """
    chances = np.ones(1)  # of the sums of the clips so far, from the least to the largest
    for size in np.abs(net[net != 0]).tolist():
        gap = np.zeros(2 * size)
        chances = (np.concatenate((chances, gap)) + np.concatenate((gap, chances))) / 2
    sums = np.arange(len(chances)) - len(chances) // 2
    return min(1.0, float(chances[np.abs(sums) >= abs(int(net.sum()))].sum()))
