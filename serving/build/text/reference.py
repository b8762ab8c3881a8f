"""The yardstick: TF-IDF with logistic regression, what anyone would try first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serving.build import metrics
from serving.build.cache import Tick, write_json
from serving.build.text.data import ROWS, read_split


def train_reference(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Write `reference.json` and `answers.npy` (class index of each test row)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    path, labels = needs["data"] / ROWS, parameters["labels"]
    train, test = read_split(path, "train", labels), read_split(path, "test", labels)
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=parameters["min_df"])
    model = LogisticRegression(C=30.0, max_iter=1000)
    model.fit(vectorizer.fit_transform(train.texts), train.classes)
    answers = model.predict(vectorizer.transform(test.texts)).astype(np.int64)
    np.save(out / "answers.npy", answers)
    correct = int((answers == test.classes).sum())
    write_json(
        out / "reference.json",
        {
            "method": "TF-IDF of words and word pairs (sublinear), logistic regression with C = 30",
            "features": len(vectorizer.vocabulary_),
            "correct": correct,
            "rows": len(answers),
            "accuracy": correct / len(answers),
            "accuracy_ci": metrics.wilson(correct, len(answers)),
        },
    )
