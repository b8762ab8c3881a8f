"""How small a change of a row of numbers, chosen by someone who wants it, turns a right answer wrong?

HopSkipJump (Chen, Jordan & Wainwright, "HopSkipJumpAttack: a query-efficient decision-based attack", IEEE S&P 2020), as
the adversarial-robustness-toolbox has it: it sees answers alone, as whoever can send requests does, so that it treats a
quantized variant as it treats any other. An attacker who knows the weights, or has more patience, needs less still.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np

#: Rows that are attacked, rounds of an attack, and answers that it may ask for in its first and its last round.
ROWS, ROUNDS, FIRST, LAST = 40, 8, 50, 300
#: Halvings of the last stretch.
HALVINGS = 12
#: Training rows among which an attack looks for where to begin.
STARTS = 2000
SEED = 11
_BATCH = 512

Answers = Callable[[np.ndarray], np.ndarray]


class Target(NamedTuple):
    """The rows that are attacked.

    `input`: the name of the one input; `rows`: float [n, F]; `truth`: class indices [n]; `starts`: float [m, F],
    training rows, of which an attack begins at the nearest that is answered otherwise; `spread`: standard deviation of
    each feature in them, [F], > 0.
    """

    input: str
    rows: np.ndarray
    truth: np.ndarray
    starts: np.ndarray
    spread: np.ndarray


def library() -> str | None:
    """The version of what attacks; None if it is not installed (extra `adversarial`)."""
    try:
        return version("adversarial-robustness-toolbox")
    except PackageNotFoundError:
        return None


def distances(answers: Answers, classes: int, target: Target) -> np.ndarray:
    """The least change found that makes each row's answer wrong, float64 [n], in standard deviations of the features.

    Euclidean over the features. 0: it is wrong as it is; infinite: no training row is answered otherwise.

    Args:
        answers: rows float32 [k, F] -> class indices [k].
        classes: how many there are.
    """
    from art.attacks.evasion import HopSkipJump
    from art.estimators.classification import BlackBoxClassifier

    def predict(scaled: np.ndarray) -> np.ndarray:
        chosen: np.ndarray = np.eye(classes, dtype=np.float32)[answers((scaled * target.spread).astype(np.float32))]
        return chosen

    rows, starts = ((part / target.spread).astype(np.float32) for part in (target.rows, target.starts))
    own, theirs = answers(target.rows), answers(target.starts)
    found = np.where(own == target.truth, np.inf, 0.0)
    attacked = [at for at in np.flatnonzero(own == target.truth).tolist() if np.any(theirs != own[at])]
    if not attacked:
        return found
    begun = [_nearest(rows[at], starts[theirs != own[at]]) for at in attacked]
    classifier = BlackBoxClassifier(predict, (rows.shape[1],), classes)
    attack = HopSkipJump(
        classifier, batch_size=_BATCH, max_iter=ROUNDS, init_eval=FIRST, max_eval=LAST, init_size=1, verbose=False
    )
    with _seeded():
        moved = attack.generate(rows[attacked], x_adv_init=np.stack(begun))

    def fooled(points: np.ndarray) -> np.ndarray:
        wrong: np.ndarray = predict(points).argmax(axis=1) != own[attacked]
        return wrong

    # An attack ends with a step beyond the boundary: back to it, on the straight way to the row.
    gaps, inside, beyond = moved - rows[attacked], np.zeros(len(attacked)), np.ones(len(attacked))
    for _ in range(HALVINGS):
        middle = (inside + beyond) / 2
        wrong = fooled(rows[attacked] + middle[:, None] * gaps)
        inside, beyond = np.where(wrong, inside, middle), np.where(wrong, middle, beyond)
    found[attacked] = np.where(fooled(moved), beyond * np.linalg.norm(gaps, axis=1), np.inf)
    return found


def compare(found: np.ndarray, trusted: np.ndarray) -> dict[str, Any]:
    """JSON values: how far the rows had to be moved, beside the trusted variant's; see `distances`.

    `p_value`: of Wilcoxon's signed-rank test, two-sided, that neither is easier to fool.
    """
    from scipy.stats import wilcoxon

    gaps = (np.minimum(found, _FAR) - np.minimum(trusted, _FAR)).astype(np.float64)
    return {
        "attack": "HopSkipJump",
        "library": library(),
        "rows": len(found),
        "wrong_as_they_are": int(np.count_nonzero(found == 0)),
        "median_distance": _finite(np.quantile(found, 0.5, method="lower")),
        "tenth_distance": _finite(np.quantile(found, 0.1, method="lower")),
        "trusted_median_distance": _finite(np.quantile(trusted, 0.5, method="lower")),
        "p_value": float(wilcoxon(gaps).pvalue) if np.any(gaps) else 1.0,
    }


#: Stands for a distance that was not found, where distances are ranked.
_FAR = 1e6


def _finite(value: np.floating[Any]) -> float | None:
    return float(value) if np.isfinite(value) else None


def _nearest(row: np.ndarray, others: np.ndarray) -> np.ndarray:
    nearest: np.ndarray = others[np.argmin(np.linalg.norm(others - row, axis=1))]
    return nearest


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """The attack draws from NumPy's global generator."""
    before = np.random.get_state()
    np.random.seed(SEED)
    try:
        yield
    finally:
        np.random.set_state(before)
