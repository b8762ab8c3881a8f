"""Are the calibration rows like the training rows? Ranges and temperatures fitted to other data serve neither.

Three looks: each feature alone by Kolmogorov-Smirnov (with Holm's correction) and by the population stability index;
all together by a classifier two-sample test (Lopez-Paz & Oquab, ICLR 2017): can a model tell the two sets apart
better than a coin on rows it has not seen?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LEVEL = 0.01
#: From here on the industry's rule of thumb calls a shift considerable (Siddiqi, Credit Risk Scorecards, 2006).
PSI_LIMIT = 0.25
#: Of fewer rows nothing can be said; half of them is what a classifier is tried on.
LEAST_ROWS = 8
_BINS, _MOST_ROWS, _SEED = 10, 2000, 3


def text_features(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """What can be measured of any text, float [n] each: lengths, and shares of its characters."""
    lengths = np.array([max(len(text), 1) for text in texts], float)

    def share(kind: str) -> np.ndarray:
        return np.asarray(np.array([sum(getattr(letter, kind)() for letter in text) for text in texts]) / lengths)

    return {
        "characters": lengths,
        "words": np.array([len(text.split()) for text in texts], float),
        "upper case": share("isupper"),
        "digits": share("isdigit"),
        "punctuation": 1 - share("isalnum") - share("isspace"),
        "not ASCII": np.array([sum(not letter.isascii() for letter in text) for text in texts]) / lengths,
    }


def stability_index(reference: np.ndarray, sample: np.ndarray, bins: int = _BINS) -> float:
    """Population stability index over bins of equal mass of the reference, floats [n] and [m]; 0 means alike.

    Half a row is added to every bin, so that an empty one does not make it infinite.
    """
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, bins + 1)[1:-1]))
    # A feature of few values (many zeros) has fewer bins; a value equal to an edge belongs below it.
    counts = [np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1) for values in (reference, sample)]
    used = (counts[0] + counts[1]) > 0
    p, q = ((count[used] + 0.5) / (count[used] + 0.5).sum() for count in counts)
    return float(((q - p) * np.log(q / p)).sum())


def expected_index(reference: int, sample: int, bins: int = _BINS) -> float:
    """The stability index to expect of two samples of these sizes from one distribution: (bins - 1)(1/n + 1/m)."""
    return (bins - 1) * (1 / reference + 1 / sample)


def compare_features(reference: Mapping[str, np.ndarray], sample: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Each feature alone: the statistic and Holm-corrected p-value of Kolmogorov-Smirnov, and the stability index."""
    from scipy.stats import ks_2samp

    found = {name: ks_2samp(reference[name], sample[name]) for name in reference}
    corrected, highest = dict[str, float](), 0.0
    ordered = sorted(found, key=lambda name: (float(found[name].pvalue), name))
    for rank, name in enumerate(ordered):
        highest = max(highest, min(1.0, float(found[name].pvalue) * (len(ordered) - rank)))
        corrected[name] = highest
    return {
        name: {
            "ks": float(found[name].statistic),
            "p_value": corrected[name],
            "psi": stability_index(reference[name], sample[name]),
        }
        for name in reference
    }


def tell_apart(reference: Any, sample: Any) -> dict[str, Any]:
    """Classifier two-sample test: logistic regression on half of the rows, area under the curve on the other half.

    Args:
        reference, sample: feature matrices [n, F] and [m, F], dense or sparse.

    Returns:
        JSON values: `auc` (0.5: alike), and `p_value` of the rank-sum test that it is no more than chance, one-sided.
    """
    from scipy import sparse
    from scipy.stats import mannwhitneyu
    from sklearn.linear_model import LogisticRegression

    chance = np.random.default_rng(_SEED)
    stack = sparse.vstack if sparse.issparse(reference) else np.vstack
    halves: list[list[Any]] = [[], []]
    for rows in (reference, sample):
        order = chance.permutation(rows.shape[0])[:_MOST_ROWS]
        halves[0].append(rows[order[::2]])
        halves[1].append(rows[order[1::2]])
    model = LogisticRegression(max_iter=500, class_weight="balanced")
    model.fit(stack(halves[0]), np.repeat([0, 1], [rows.shape[0] for rows in halves[0]]))
    scores = [model.decision_function(rows) for rows in halves[1]]
    test = mannwhitneyu(scores[1], scores[0], alternative="greater")
    return {"auc": float(test.statistic) / (len(scores[0]) * len(scores[1])), "p_value": float(test.pvalue)}


def drift_of_texts(reference: Sequence[str], sample: Sequence[str]) -> dict[str, Any]:
    """The whole comparison for texts; see `drift`."""
    from sklearn.feature_extraction.text import HashingVectorizer

    words = HashingVectorizer(n_features=2**14, alternate_sign=False)
    return drift(
        text_features(reference), text_features(sample), tell_apart(words.transform(reference), words.transform(sample))
    )


def drift_of_values(names: Sequence[str], reference: np.ndarray, sample: np.ndarray) -> dict[str, Any]:
    """The whole comparison for numbers [n, F] and [m, F]; see `drift`."""
    centre, spread = reference.mean(axis=0), reference.std(axis=0)
    scaled = [(rows - centre) / np.where(spread > 0, spread, 1.0) for rows in (reference, sample)]
    return drift(
        {name: reference[:, index] for index, name in enumerate(names)},
        {name: sample[:, index] for index, name in enumerate(names)},
        tell_apart(*scaled),
    )


def drift(
    reference: Mapping[str, np.ndarray], sample: Mapping[str, np.ndarray], told_apart: Mapping[str, Any]
) -> dict[str, Any]:
    """Put the looks together.

    Returns:
        JSON values: `rows` of both sets, `features`, `classifier`, and `shifted`: one sentence for each sign that the
        sets differ; empty if none was found.
    """
    features = compare_features(reference, sample)
    sizes = (len(next(iter(reference.values()))), len(next(iter(sample.values()))))
    by_chance = expected_index(*sizes)
    shifted = [
        f"{name}: Kolmogorov-Smirnov {found['ks']:.3f} (p {found['p_value']:.2g}), stability index {found['psi']:.3f}"
        for name, found in features.items()
        if found["p_value"] < LEVEL or found["psi"] > PSI_LIMIT + by_chance
    ]
    if told_apart["p_value"] < LEVEL:
        shifted.append(
            f"all features: a classifier tells the sets apart with area under the curve {told_apart['auc']:.3f} "
            f"(p {told_apart['p_value']:.2g})"
        )
    return {
        "rows": {"train": sizes[0], "calibration": sizes[1]},
        "features": features,
        "classifier": dict(told_apart),
        "shifted": shifted,
    }
