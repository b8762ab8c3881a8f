"""How many suspect answers do users get before a broken candidate is taken away?

    python -m loadtests.exposure [--true 0.3816] [--built 0.0121] [--runs 10000]

A candidate whose answers differ from the teacher's with the chance that the quickstart's `broken` does is live; the
teacher scores a share of its answers. The `agreement` guard looks after every scored answer. Beside it stands what
is commonly done instead: a z-test over fixed windows of n scored answers, one look at the end of each.

Both hold the same null, at most the gross limit, and the same chance of a false rollback over the same horizon.
The z-test's threshold is the least at which its exact chance over all looks stays within the guard's budget; the
chance that the guard really uses of it is smaller, so the comparison leans towards the z-test. Both chances are
simulated at the end.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import click
import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from loadtests.detection.pairs import ALPHA, Crossings, crossings
from loadtests.proportions import lower, upper
from monitoring.config import GuardSettings, MonitorModel, MonitorVariant
from monitoring.guards.agreement import agreement_limit, gross_limit

#: Scored answers of one window.
WINDOWS = (20, 30, 50, 100, 200, 500)
#: Share of the candidate's answers that the teacher scores.
REFERENCES = (1.0, 0.05)


class ZTest(NamedTuple):
    """Fails at the end of a window of `window` scored answers of which `least` or more differ."""

    window: int
    least: int

    def z(self, rate: float) -> float:
        """The threshold as a z-score against `rate`."""
        return (self.least - self.window * rate) / math.sqrt(self.window * rate * (1 - rate))

    def false_rollback(self, rate: float, horizon: int) -> float:
        """Chance that any look within `horizon` scored answers fails, if they differ with chance `rate`."""
        look = float(binom.sf(self.least - 1, self.window, rate))
        return -math.expm1((horizon // self.window) * math.log1p(-look))

    def crossings(self, rate: float, runs: int, horizon: int, random: np.random.Generator) -> Crossings:
        """Where each of `runs` streams fails; `at` is 0 where none of the looks does."""
        at, events = np.zeros(runs, np.int64), np.zeros(runs, np.int64)
        for look in range(1, horizon // self.window + 1):
            open_ = np.flatnonzero(at == 0)
            if not len(open_):
                break
            seen = random.binomial(self.window, rate, len(open_))
            events[open_] += seen
            at[open_[seen >= self.least]] = look * self.window
        return Crossings(at, events)


def calibrated(window: int, rate: float, horizon: int, alpha: float) -> ZTest | None:
    """The most sensitive z-test of that window within the budget; None if not even all of a window are enough."""
    for least in range(math.ceil(window * rate), window + 1):
        test = ZTest(window, least)
        if test.false_rollback(rate, horizon) <= alpha:
            return test
    return None


def suspects(seen: Crossings, rate: float, reference: float, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Answers unlike the teacher's that were given until the rollback: the scored ones and those between them."""
    unscored = random.negative_binomial(seen.at, reference) if reference < 1 else np.zeros_like(seen.at)
    found: npt.NDArray[np.int64] = seen.events + random.binomial(unscored, rate)
    return found


def limits(built: float) -> tuple[float, float]:
    """Limit and gross limit of `agreement` for a candidate that differed on a share `built` of the test rows."""
    model = MonitorModel("teacher", "teacher", {"candidate": MonitorVariant(1, built)})
    limit = agreement_limit(model, "candidate")
    return limit, gross_limit(limit, GuardSettings())


@click.command()
@click.option("--true", "rate", type=click.FloatRange(0, 1), default=443 / 1161, help="Share of differing answers.")
@click.option("--built", type=click.FloatRange(0, 1), default=14 / 1161, help="That share in its manifest.")
@click.option("--percent", type=click.FloatRange(0, 100, min_open=True), default=10.0, show_default=True)
@click.option("--rate", "traffic", type=click.FloatRange(0, min_open=True), default=80.0, show_default=True)
@click.option("--horizon", type=click.IntRange(min=1), default=20_000, show_default=True, help="Scored answers.")
@click.option("--runs", type=click.IntRange(min=2), default=10_000, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
def main(rate: float, built: float, percent: float, traffic: float, horizon: int, runs: int, seed: int) -> None:
    """Simulate and print."""
    random = np.random.default_rng(seed)
    limit, gross = limits(built)
    click.echo(
        f"true rate {rate:.2%}, limit {limit:.2%}, gross limit {gross:.2%}; {percent:g} % of {traffic:g} requests/s; "
        f"budget {ALPHA:g} over {horizon:,} scored answers; {runs:,} runs"
    )
    tests = [test for window in WINDOWS if (test := calibrated(window, gross, horizon, ALPHA)) is not None]
    click.echo("\n| scored | rolled back by | suspect answers, median | p90 | mean | seconds, median | p90 |")
    click.echo("|---:|---|---:|---:|---:|---:|---:|")
    ways = {"`agreement`": crossings(rate, gross, ALPHA, runs, horizon, random)}
    ways |= {
        f"z-test, windows of {test.window}, z ≥ {test.z(gross):.2f} ({test.least} of {test.window})": test.crossings(
            rate, runs, horizon, random
        )
        for test in tests
    }
    for reference in REFERENCES:
        for name, seen in ways.items():
            if seen.found < runs:
                click.echo(f"| {reference:.0%} | {name} | finds it in {seen.found} of {runs} runs only | | | | |")
                continue
            given = suspects(seen, rate, reference, random)
            seconds = seen.at / reference / (traffic * percent / 100)
            click.echo(
                f"| {reference:.0%} | {name} | {np.median(given):.0f} | {np.quantile(given, 0.9):.0f} "
                f"| {given.mean():.1f} | {np.median(seconds):.1f} | {np.quantile(seconds, 0.9):.1f} |"
            )
    click.echo("\nfalse rollbacks of a candidate exactly at the gross limit:")
    nulls = {"`agreement`": crossings(gross, gross, ALPHA, runs, horizon, random).found}
    nulls |= {f"z-test, {test.window}": test.crossings(gross, runs, horizon, random).found for test in tests}
    for name, wrong in nulls.items():
        click.echo(f"  {name}: {wrong} of {runs:,} ({lower(wrong, runs):.3%} to {upper(wrong, runs):.3%})")


if __name__ == "__main__":
    main()
