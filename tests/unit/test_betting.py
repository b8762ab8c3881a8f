"""What detectors are built of: bets, a running quantile, a race by batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.detectors.base import BatchRace
from monitoring.detectors.betting import Betting, Drift, Mirrored
from monitoring.detectors.latency import RunningQuantile


@given(st.lists(st.tuples(st.floats(allow_nan=True), st.floats(1e-9, 1 - 1e-9)), max_size=50))
def test_never_breaks(stream: list[tuple[float, float]]) -> None:
    bets = (Betting(), Mirrored(), Drift())
    for value, limit in stream:
        for bet in bets:
            bet.update(value, limit)
    assert all(math.isfinite(bet.log_evidence) for bet in bets)


def test_a_limit_that_leaves_nothing_to_bet_on_changes_nothing() -> None:
    bet = Betting()
    bet.update(1.0, 1.0)
    bet.update(1.0, 2.0)
    assert bet.log_evidence == pytest.approx(0.0)


def test_counted_observations_are_as_many_single_ones() -> None:
    once, often = Betting(), Betting()
    once.update(0.0, 0.1, count=40)
    for _ in range(40):
        often.update(0.0, 0.1)
    assert once.log_evidence == pytest.approx(often.log_evidence)


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_counted_observations_of_the_detector_are_as_many_single_ones(value: float) -> None:
    once, often = Drift(), Drift()
    for drift in (once, often):
        drift.update(1.0, 0.1)
    once.update(value, 0.1, count=40)
    for _ in range(40):
        often.update(value, 0.1)
    assert once.state() == pytest.approx(often.state())


def test_the_detector_cries_wolf_as_rarely_as_it_says() -> None:
    """Right at the limit, 2,000 observations of 10,000 between two false alarms: a fifth of the runs at the most."""
    alarms = 0
    for run in range(60):
        drift = Drift()
        for value in (np.random.default_rng(run).random(2000) < 0.03).tolist():
            drift.update(float(value), 0.03)
            if drift.log_evidence >= math.log(10_000):
                alarms += 1
                break
    assert alarms <= 18  # the chance of more, if it were a fifth, is 2 %


def test_a_damaged_state_is_refused() -> None:
    with pytest.raises(ValueError, match="finite log products"):
        Betting().load([1.0])


def test_drift_forgets_a_long_healthy_past() -> None:
    """After 5,000 healthy observations the test has to climb out, the detector has not."""
    rng = np.random.default_rng(8)
    stream = np.concatenate([rng.random(5000) < 0.02, rng.random(400) < 0.3])
    drift = Drift()

    def alarmed(value: float) -> bool:
        drift.update(value, 0.05)
        return drift.log_evidence >= math.log(1e6)

    assert 5000 < next(n for n, value in enumerate(stream, 1) if alarmed(float(value))) < 5100


def test_the_quantile_is_frozen_from_the_past() -> None:
    quantile = RunningQuantile(0.9)
    for value in range(1, 512):
        quantile.observe(value)
    assert math.isinf(quantile.value)
    quantile.observe(512)
    frozen = quantile.value
    assert 440 < frozen < 480
    for _ in range(255):
        quantile.observe(1e6)
    assert quantile.value == frozen
    quantile.observe(1e6)
    assert quantile.value > frozen


def test_a_race_by_batches_expects_the_share_of_batches() -> None:
    race = BatchRace()
    assert race.share(0.05) == 0.05
    for batch in range(1, 101):
        race.count(True, batch)
        for _ in range(19):
            race.count(False, 1000 + batch)
    assert race.share(0.05) == pytest.approx(0.5)
    assert race.first(1)
    assert not race.first(1)
