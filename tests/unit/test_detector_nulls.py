"""What a detector is held to is stored with its evidence: held to something else, it starts anew."""

from __future__ import annotations

import inspect
import json
from functools import partial
from typing import Any

import numpy as np
import pytest
from test_detectors import DETECTORS

from monitoring.detectors.agreement import Agreement
from monitoring.detectors.base import Detector
from monitoring.detectors.calibration import Calibration, Expected
from monitoring.detectors.embedding import Embedding
from monitoring.detectors.errors import Errors
from monitoring.detectors.harm import Harm
from monitoring.detectors.interference import Interference
from monitoring.detectors.invalid_output import InvalidOutput
from monitoring.detectors.kpi import Kpi, KpiTarget
from monitoring.detectors.latency import Latency
from monitoring.detectors.ood import Ood
from monitoring.detectors.saturation import Saturation
from monitoring.detectors.slices import Slices
from monitoring.detectors.srm import Srm

WORTH = [Expected(0.0, 0.01)] * 3

#: How each is made, and another value for each of its parameters.
MADE: dict[str, tuple[partial[Detector], dict[str, Any]]] = {
    "agreement": (partial(Agreement, limit=0.05, gross=0.15), {"limit": 0.04, "gross": 0.2}),
    "harm": (partial(Harm, budget=0.1), {"budget": 0.03}),
    "invalid_output": (partial(InvalidOutput, limit=3), {"limit": 2}),
    "errors": (partial(Errors), {"ratio": 1.5, "budget": 0.001}),
    "latency": (partial(Latency), {"quantile": 0.95, "margin": 0.1, "margin_ms": 1.0}),
    "slices": (
        partial(Slices, names=["short", "de", "tenant"]),
        {"names": ["short", "de", "tenant", "late"], "limit": 0.1, "ratio": 1.5},
    ),
    "saturation": (partial(Saturation), {"limit": 0.02}),
    "ood": (partial(Ood, threshold=0.5), {"threshold": 0.4, "level": 0.02, "margin": 0.01}),
    "embedding": (partial(Embedding), {"level": 0.02, "margin": 0.01}),
    "calibration": (
        partial(Calibration, edges=[0.5, 0.8], labels=WORTH, teacher=WORTH),
        {"edges": [0.5, 0.9], "labels": [*WORTH[1:], Expected(0.1, 0.01)], "teacher": None, "margin": 0.01},
    ),
    "srm": (partial(Srm), {}),
    "interference": (partial(Interference), {"margin": 0.5, "margin_ms": 1.0, "spells": 0.4}),
    "kpi": (
        partial(Kpi, targets=[KpiTarget("conversion")]),
        {"targets": [KpiTarget("conversion"), KpiTarget("revenue", high=100.0)]},
    ),
}


def stored(name: str) -> Any:
    """The state of one that has seen something, failed and passed, as it is read again."""
    detector, feed = MADE[name][0](), DETECTORS[name][1]
    for a, b in np.random.default_rng(3).random((400, 2)).tolist():
        feed(detector, a, b)
    detector.failed = detector.passed = detector.breached = True
    return json.loads(json.dumps(detector.state()))


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_held_to_something_else_it_starts_anew(name: str) -> None:
    make, others = MADE[name]
    state = stored(name)
    assert set(others) == set(inspect.signature(make.func).parameters) - {"budgets"}
    for parameter, value in (others | {"pass_alpha": 0.01}).items():
        other = make(**{parameter: value})
        assert not other.load(state), parameter
        assert other.no_data
        assert (other.failed, other.passed, other.breached) == (False, False, False)
        assert other.log_evidence == other.log_pass_evidence == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_held_to_the_same_it_goes_on_whatever_its_share_of_the_budget_is(name: str) -> None:
    state = stored(name)
    same = MADE[name][0](alpha=0.0001)
    assert same.load(state)
    assert same.failed
    assert json.loads(json.dumps(same.state())) == state


def test_what_is_known_of_the_baseline_is_held_to_nothing() -> None:
    latency, interference = Latency(), Interference()
    for n in range(1024):
        latency.learn(1000 + n % 90)
        interference.learn(20_000, wall_ns=n)
    interference.observe(60_000, at_ns=0)
    other, lower, slow = Latency(margin=0.5), Latency(quantile=0.5), Interference(spells=0.4)
    for new, old in ((other, latency), (lower, latency), (slow, interference)):
        assert not new.load(json.loads(json.dumps(old.state())))
    assert other.baseline.value == latency.baseline.value < 1200
    assert lower.threshold_us == float("inf")
    assert (slow.reference.value, slow.reference_us) == (interference.reference_us, 0.0)
