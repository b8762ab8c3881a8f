"""How many pairs does `agreement` need to find a candidate over its limit, and how often is it wrong at the limit?

    python -m loadtests.detection.pairs [--limit 0.02] [--runs 2000]

Streams of pairs that differ with a fixed chance go through the guard's evidence (`monitoring/detectors/betting.py`).
What counts is the verdict that pauses a rollout, evidence against "at most the limit" beyond 1 / alpha, looked at after
every pair. The least that any such test needs on average is ln(1/alpha) / KL(rate, limit) pairs (Wald).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt

from loadtests.proportions import lower, upper
from monitoring.config import GuardSettings
from monitoring.detectors.betting import log_gain, log_mixture

Ints = npt.NDArray[np.int64]

#: What one guard of a single candidate takes of the default budget, or a little less.
ALPHA = GuardSettings().false_rollback / 10
HARMS = (1.5, 2.0, 4.0)
#: Pairs that are worked through at once, and the most in a run, in multiples of the bound.
BLOCK, PATIENCE = 200, 20


class Crossings(NamedTuple):
    """Where evidence first reached the threshold; one entry a run.

    `at` counts observations from 1 and is 0 where it never did; `events` are the ones among them.
    """

    at: Ints
    events: Ints

    @property
    def found(self) -> int:
        return int(np.count_nonzero(self.at))


def crossings(
    rate: float,
    limit: float,
    alpha: float,
    runs: int,
    horizon: int,
    random: np.random.Generator,
    stake: float | None = None,
) -> Crossings:
    """Let each run's evidence against "the rate is at most `limit`" grow until it reaches 1 / alpha.

    `stake` is the only one that is bet with; None: the guard's mixture.
    """
    threshold, gains = -math.log(alpha), log_gain([0.0, 1.0], limit)
    if stake is not None:
        gains = np.log1p(stake * np.array([[-1.0], [1.0 / limit - 1.0]]))
    at, events = np.zeros(runs, np.int64), np.zeros(runs, np.int64)
    logs = np.zeros((runs, gains.shape[1]))
    for start in range(0, horizon, BLOCK):
        open_ = np.flatnonzero(at == 0)
        for some in np.array_split(open_, len(open_) // 500 + 1):
            bad = (random.random((len(some), min(BLOCK, horizon - start))) < rate).astype(np.int64)
            path = logs[some, None, :] + np.cumsum(gains[bad], axis=1)
            over = (log_mixture(path) if stake is None else path[..., 0]) >= threshold
            hit, first = over.any(axis=1), over.argmax(axis=1)
            logs[some] = path[:, -1]
            at[some[hit]] = start + 1 + first[hit]
            seen = np.cumsum(bad, axis=1)
            events[some] += np.where(hit, seen[np.arange(len(some)), first], seen[:, -1])
    return Crossings(at, events)


def bound(rate: float, limit: float, alpha: float) -> float:
    """ln(1/alpha) over the Kullback-Leibler divergence of two Bernoulli variables, rate over limit."""
    divergence = rate * math.log(rate / limit) + (1 - rate) * math.log((1 - rate) / (1 - limit))
    return -math.log(alpha) / divergence


def detection(limit: float, harm: float, alpha: float, runs: int, random: np.random.Generator) -> dict[str, Any]:
    """Pairs that are needed at `harm` times the limit."""
    rate = harm * limit
    least = bound(rate, limit, alpha)
    horizon = math.ceil(PATIENCE * least)
    seen = crossings(rate, limit, alpha, runs, horizon, random)
    at = np.where(seen.at > 0, seen.at, horizon)
    best = crossings(rate, limit, alpha, runs, horizon, random, stake=(rate - limit) / (1 - limit))
    return {
        "harm": harm,
        "bound": least,
        "best_stake": float(np.where(best.at > 0, best.at, horizon).mean()),
        "mean": float(at.mean()),
        "error": float(at.std(ddof=1) / math.sqrt(runs)),
        "median": float(np.median(at)),
        "p90": float(np.quantile(at, 0.9)),
        "not_found": runs - seen.found,
    }


HEADER = (
    "\n| true rate | ln(1/α)/KL | mean pairs | ratio | median | ratio | p90 | not found | best stake, mean | ratio |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def line(row: dict[str, Any]) -> str:
    """One row of the table; ratios are to the bound."""
    least, mean, median, best = row["bound"], row["mean"], row["median"], row["best_stake"]
    cells = (
        f"{row['harm']:g} × the limit",
        f"{least:,.0f}",
        f"{mean:,.0f} ± {row['error']:.0f}",
        f"{mean / least:.2f}",
        f"{median:,.0f}",
        f"{median / least:.2f}",
        f"{row['p90']:,.0f}",
        f"{row['not_found']}",
        f"{best:,.0f}",
        f"{best / least:.2f}",
    )
    return f"| {' | '.join(cells)} |"


@click.command()
@click.option("--limit", type=click.FloatRange(0, 0.2, min_open=True), default=0.02, show_default=True)
@click.option("--alpha", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=ALPHA, show_default=True)
@click.option("--runs", type=click.IntRange(min=2), default=2000, show_default=True, help="Of each harm.")
@click.option("--null-runs", type=click.IntRange(min=1), default=10_000, show_default=True, help="At the limit.")
@click.option("--horizon", type=click.IntRange(min=1), default=10_000, show_default=True, help="Pairs of those.")
@click.option("--seed", type=int, default=1, show_default=True)
def main(limit: float, alpha: float, runs: int, null_runs: int, horizon: int, seed: int) -> None:
    """Simulate and print both."""
    random = np.random.default_rng(seed)
    click.echo(f"limit {limit:.2%}, alpha {alpha:g}, {runs} runs each")
    click.echo(HEADER)
    for harm in HARMS:
        click.echo(line(detection(limit, harm, alpha, runs, random)))
    wrong = crossings(limit, limit, alpha, null_runs, horizon, random).found
    click.echo(
        f"\nat the limit itself: {wrong} of {null_runs} runs of {horizon:,} pairs called it over "
        f"({lower(wrong, null_runs):.3%} to {upper(wrong, null_runs):.3%}), budget {alpha:.3%}"
    )


if __name__ == "__main__":
    main()
