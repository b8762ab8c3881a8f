"""A real instance that is asked for more than it can do: the short form of `python -m loadtests.overload`."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

import pytest

from deployments.quickstart.running import DATA
from loadtests.load import Result, run
from loadtests.overload import CONNECTIONS, GOODPUT_KEPT, MAX_BUSY, OVER, requests_of
from loadtests.payloads import read_rows
from serving import yaml12
from tests.integration.conftest import QUICKSTART, REGISTRY
from tests.support.stack import Stack, running

pytestmark = pytest.mark.integration

#: Milliseconds. A queue that were bounded by rows or deadlines alone would make everybody wait longer.
THRESHOLD_MS, DEADLINE_MS = 600, 2000
ROUNDS, WINDOW_S = 4, 6.0


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The quickstart's teacher alone, with a queue that its rows do not bound."""
    assert (REGISTRY / "models" / "moderation").is_dir(), "the quickstart is not built: `make quickstart` does it"
    document: dict[str, Any] = yaml12.load(QUICKSTART.read_text())
    document["registry"] = {"dir": str(REGISTRY)}
    model = document["models"]["moderation"]
    model["variants"] = {"teacher": model["variants"]["teacher"]}
    model["routing"]["queue"] = {"max_rows": 100_000, "default_timeout_ms": DEADLINE_MS}
    model["slo"] = [{"name": "latency", "objective": 0.99, "threshold_ms": THRESHOLD_MS}]
    with running(document, tmp_path_factory.mktemp("overload")) as stack:
        yield stack


def test_at_120_percent_goodput_stays_and_accepted_requests_meet_the_objective(teacher: Stack) -> None:
    requests = requests_of("moderation", read_rows(DATA), rows=4)

    def load(seconds: float, **how: Any) -> Result:
        return run(teacher.http_port, requests, seconds=seconds, timeout_s=DEADLINE_MS / 1000, **how)

    best = load(WINDOW_S, connections=CONNECTIONS).rate
    assert best > 0
    # By turns, so that a machine which is busy with something else for a while is so in both.
    near, over = [], []
    for _ in range(ROUNDS):
        near.append(load(WINDOW_S, connections=MAX_BUSY, rate=best))
        best = max(best, near[-1].rate)
        over.append(load(WINDOW_S, connections=MAX_BUSY, rate=OVER * best))
    seen = [(round(one.rate), round(one.latency_us["p99"] / 1000), dict(one.codes)) for one in (*near, *over)]
    refused = sum(one.codes.get("429", 0) for one in over)
    assert refused, f"120 % was no overload: {seen}"
    assert set().union(*(one.codes for one in over)) <= {"200", "429"}, seen
    assert sum(one.rate for one in over) >= GOODPUT_KEPT * sum(one.rate for one in near), seen
    assert median(one.latency_us["p99"] for one in over) < THRESHOLD_MS * 1000, seen
