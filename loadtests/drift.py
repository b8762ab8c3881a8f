"""How often a drift report calls unchanged inputs drifted, and how often it finds changed ones.

    python -m loadtests.drift --registry .canarium/registry

Real mails and no server: the quickstart's rows are split at random, again and again, into a reference and a stable
stream, so that every alarm on a window of the stream is false. Evidently's default tests judge the same windows.
Changes: twice the share of spam; mails cut to half their length; one in five in capitals.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.stats import ks_2samp

from loadtests.proportions import lower, upper
from monitoring.drift.distance import is_words, jensen_shannon, simplified, thresholds, wasserstein
from serving.build.text.data import read_rows
from serving.registry.store import Registry
from serving.runtimes import features
from serving.runtimes.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[1]
MAILS = ROOT / "deployments" / "quickstart" / "data" / "mails.jsonl.gz"
REFERENCE_ROWS = 779  # as the quickstart's build leaves
Columns = dict[str, np.ndarray]


def columns(pipeline: Pipeline, texts: list[str]) -> Columns:
    """The features of texts, as the gateway takes them."""
    rows = []
    for text in texts:
        inputs = {"text": np.array([text.encode()], dtype=object)}
        row = pipeline.first_row(inputs, pipeline.preprocess(inputs))
        rows.append(features.of_row(*row, pipeline.inputs, pipeline.unknown_id))
    return {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}


def ours(reference: Columns, limits: dict[str, float], current: Columns) -> bool:
    """Whether a report calls any feature drifted."""
    for name, values in reference.items():
        before, after = simplified(values, current[name])
        if (jensen_shannon if is_words(before) else wasserstein)(before, after) >= limits[name]:
            return True
    return False


def default(reference: Columns, current: Columns) -> int:
    """How many features Evidently flags by default, for up to 1,000 rows of reference: p < 0.05, each by itself."""
    return sum(ks_2samp(values, current[name]).pvalue < 0.05 for name, values in reference.items())


def main() -> int:
    """Print one line a kind of window and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", type=Path, default=ROOT / ".canarium" / "registry")
    parser.add_argument("--artifact", default="moderation/teacher", help="whose tokenizer is used")
    parser.add_argument("--splits", type=int, default=40, help="random splits into reference and stream")
    parser.add_argument("--windows", type=int, default=50, help="stable windows of each split")
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 1000])
    options = parser.parse_args()
    pipeline = Pipeline(*Registry(options.registry).open(options.artifact))
    rows = read_rows(MAILS)
    texts, spam = [row.text for row in rows], np.array([row.label == "spam" for row in rows])
    chance = np.random.default_rng(20_260_101)
    capitals = [text.upper() if chance.random() < 0.2 else text for text in texts]
    whole = columns(pipeline, texts)
    changed = {
        "half as long": columns(pipeline, [text[: len(text) // 2] for text in texts]),
        "one in five in capitals": columns(pipeline, capitals),
    }
    found: dict[int, dict[str, Counter[str]]] = {size: {} for size in options.sizes}

    def judge(size: int, kind: str, reference: Columns, limits: dict[str, float], current: Columns) -> None:
        counts = found[size].setdefault(kind, Counter())
        flagged = default(reference, current)
        counts["windows"] += 1
        counts["ours"] += ours(reference, limits, current)
        counts["any"] += flagged > 0
        counts["half"] += flagged >= len(reference) / 2

    for _ in range(options.splits):
        order = chance.permutation(len(texts))
        known, stream = order[:REFERENCE_ROWS], order[REFERENCE_ROWS:]
        reference = {name: values[known] for name, values in whole.items()}
        told = {name: simplified(values, values)[0] for name, values in reference.items()}
        for size in options.sizes:
            limits = thresholds(told, size, false_alarm=0.001, least=0.1)
            for number in range(options.windows):
                chosen = chance.choice(stream, size, replace=False)
                judge(size, "unchanged", reference, limits, {name: values[chosen] for name, values in whole.items()})
                if number % 10:
                    continue
                for kind, table in changed.items():
                    judge(size, kind, reference, limits, {name: values[chosen] for name, values in table.items()})
                twice = _weighted(chance, stream, spam, size)
                judge(
                    size, "twice the spam", reference, limits, {name: values[twice] for name, values in whole.items()}
                )
    print("rows | window | windows | a report | Evidently's tests: any feature | half of the features")
    for size, kinds in found.items():
        for kind, counts in kinds.items():
            print(f"{size} | {kind} | {counts['windows']} | {_told(counts, 'ours')} | {_told(counts, 'any')} | "
                  f"{_told(counts, 'half')}")  # fmt: skip
    return 0


def _weighted(chance: np.random.Generator, stream: np.ndarray, spam: np.ndarray, size: int) -> np.ndarray:
    """Rows of the stream, twice as many of them spam as there are."""
    share = 2 * float(spam[stream].mean())
    number = int(chance.binomial(size, share))
    bad, good = stream[spam[stream]], stream[~spam[stream]]
    return np.concatenate([chance.choice(bad, number), chance.choice(good, size - number)])


def _told(counts: Counter[str], what: str) -> str:
    low, high = (side(counts[what], counts["windows"], 0.025) for side in (lower, upper))
    return f"{counts[what] / counts['windows']:.2%} ({low:.2%} to {high:.2%})"


if __name__ == "__main__":
    sys.exit(main())
