"""By what an artifact's inputs are told from unfamiliar ones while it serves: the embeddings of its own rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from serving.build.examples import Examples
from serving.build.rows import spread
from serving.runtimes.embedding import Familiar, pooled, tail_of
from serving.runtimes.inside import Inside
from serving.runtimes.pipeline import Pipeline

#: Of fewer held-out rows nobody can say which distance 1 % exceed.
ROWS_MIN = 200
#: Most rows of a split that are looked at.
ROWS_MAX = 2000
#: The covariance of wider embeddings would be larger than many a model.
WIDEST = 1024
LEVEL = 0.01
_BATCH = 16


def familiar_of(
    path: Path, output: str, pipeline: Pipeline, train: Examples, held_out: Sequence[Examples]
) -> Familiar | None:
    """Measure the embeddings of an ONNX file.

    Args:
        output: the session output that the last linear layer leads to.
        train: rows that the model was trained on; `ROWS_MAX` of them are looked at, evenly spread.
        held_out: rows it was not trained on, for the threshold; the same of each split.

    Returns:
        None for a model without a linear layer before that output, with too wide embeddings, or with too few rows.
    """
    import onnx

    if len(train) < ROWS_MIN or sum(map(len, held_out)) < ROWS_MIN:
        return None
    model = onnx.load(path)
    try:
        tail = tail_of(model, output)
    except ValueError:
        return None
    inside = Inside(model, [tail], optimized=True)

    def embeddings(examples: Examples) -> np.ndarray:
        batches = (pipeline.preprocess(inputs) for inputs, _ in _batches(examples))
        return np.concatenate([pooled(inside.run(batch)[tail]) for batch in batches])

    known = embeddings(train)
    if known.shape[1] > WIDEST:
        return None
    classes = np.concatenate([classes for _, classes in _batches(train)])
    return fit(known, classes, np.concatenate([embeddings(examples) for examples in held_out]))


def _batches(examples: Examples) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Evenly spread rows: their inputs and their classes."""
    few = examples.at(spread(len(examples), ROWS_MAX))
    for at in range(0, len(few), _BATCH):
        end = min(at + _BATCH, len(few))
        yield few.take(at, end), few.classes[at:end]


def fit(known: np.ndarray, classes: np.ndarray, held_out: np.ndarray) -> Familiar:
    """Means, covariance and threshold of embeddings.

    Args:
        known: float [n, d].
        classes: class index of each [n].
        held_out: float [m, d], of which 1 % will lie over the threshold.

    The covariance is that about the class means. Its correlations are shrunk by Ledoit & Wolf ("A well-conditioned
    estimator for large-dimensional covariance matrices", J. Multivariate Analysis 2004), so that it can be inverted for
    any n.
    """
    from sklearn.covariance import ledoit_wolf

    present = np.unique(classes)
    known = known.astype(np.float64)
    means = np.stack([known[classes == each].mean(axis=0) for each in present])
    gaps = known - means[np.searchsorted(present, classes)]
    spread = gaps.std(axis=0)
    # A unit that never fires has no spread: it counts as if it had a thousandth of the usual one.
    spread = np.maximum(spread, max(1e-3 * float(spread.mean()), 1e-6))
    correlations, _ = ledoit_wolf(gaps / spread, assume_centered=True)
    correlations += 1e-6 * np.eye(len(correlations))
    whitening = np.linalg.cholesky(np.linalg.inv(correlations)) / spread[:, None]
    unscaled = Familiar(means.astype(np.float32), whitening.astype(np.float32), 1.0)
    threshold = float(np.quantile(unscaled.distances(held_out), 1.0 - LEVEL, method="higher"))
    return unscaled._replace(threshold=max(threshold, 1e-6))
