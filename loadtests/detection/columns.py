"""What each comparator is shown of a stream, and what healthy values of it look like."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from loadtests.detection.comparators import DISTRIBUTION, PROPORTION, Column, Comparator
from loadtests.detection.family import HEALTHY, Recorded
from loadtests.detection.streams import ERRORS, Answers, Requests
from loadtests.worlds import BATCH_SIGMA, MEDIAN_US, OWN_SIGMA

Floats = npt.NDArray[np.float64]

#: Healthy values that a distribution is compared with; a proportion is told the true healthy rate.
REFERENCE = 5000
#: The baseline's 99th percentile, microseconds: what a rule on slow answers counts.
P99_US = MEDIAN_US * float(np.exp(2.3263 * np.hypot(BATCH_SIGMA, OWN_SIGMA)))


def answer_columns(
    recorded: Recorded, drawn: Answers, kind: str, random: np.random.Generator
) -> dict[str, tuple[Comparator, Column]]:
    """Flips of the pairs for rules on proportions; the probabilities of all answers for tests of distributions.

    `certainty`: ADWIN, which watches a mean, is shown how certain the candidate is instead of whether it flips.
    """
    healthy = recorded.answers[HEALTHY][:, 1]
    flipped = float(np.mean((healthy > 0.5) != (recorded.baseline[:, 1] > 0.5)))
    flips = Column(drawn.at_s[drawn.pair], drawn.flipped[drawn.pair].astype(np.float64), _exact(flipped))
    probabilities = Column(drawn.at_s, drawn.second, random.choice(healthy, REFERENCE))
    found = {name: (comparator, flips) for name, comparator in PROPORTION.items()}
    found |= {name: (comparator, probabilities) for name, comparator in DISTRIBUTION.items()}
    if kind == "certainty":
        certain = np.maximum(drawn.second, 1.0 - drawn.second)[drawn.pair]
        column = Column(flips.at_s, certain, np.maximum(healthy, 1.0 - healthy))
        found["ADWIN"] = (PROPORTION["ADWIN"], column)
    return found


def request_columns(drawn: Requests, kind: str, random: np.random.Generator) -> dict[str, tuple[Comparator, Column]]:
    """The candidate's own requests: failed or not, invalid or not; or its latencies, and whether each is slow."""
    own = drawn.candidate
    at_s = drawn.at_s[own]
    if kind == "latency":
        sigma = float(np.hypot(BATCH_SIGMA, OWN_SIGMA))
        logs = np.log(np.maximum(drawn.latency_us[own], 1) / 1000.0)
        healthy = np.log(MEDIAN_US / 1000.0) + random.normal(0.0, sigma, REFERENCE)
        slow = Column(at_s, (drawn.latency_us[own] > P99_US).astype(np.float64), _exact(0.01))
        latencies = Column(at_s, logs, healthy)
        found = {name: (comparator, slow) for name, comparator in PROPORTION.items()}
        found |= {name: (comparator, latencies) for name, comparator in DISTRIBUTION.items()}
        return found | {"ADWIN": (PROPORTION["ADWIN"], latencies)}
    bad = drawn.error if kind == "errors" else drawn.invalid
    column = Column(at_s, bad[own].astype(np.float64), _exact(ERRORS if kind == "errors" else 0.0))
    found = {name: (comparator, column) for name, comparator in PROPORTION.items()}
    return found | {"Evidently, hourly": (DISTRIBUTION["Evidently, hourly"], column)}


def _exact(rate: float) -> Floats:
    """Zeros and ones with exactly (to 1 in 10,000) this share of ones."""
    return (np.arange(10_000) < round(rate * 10_000)).astype(np.float64)
