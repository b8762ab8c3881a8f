"""Kills of a real instance under load, with parts of it struck: the short form of `python -m loadtests.kill`."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from loadtests.kill import CASES, WATCH_S
from loadtests.killing import Load, Target, kill_once, settle
from tests.integration.conftest import tiny_document
from tests.support.load import text_request
from tests.support.stack import Stack, running, wait_for

pytestmark = pytest.mark.integration

KILLS = 3
#: Far over what is measured, for machines that do other things as well, milliseconds.
DEADLINE_MS, BOUND_MS = 5000, 20_000


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A model with one candidate, whose guards leave it alone: only kills take it away here."""
    folder = tmp_path_factory.mktemp("kill")
    document = tiny_document(folder / "registry", {"good": ""})
    model = document["models"]["tiny"]
    model["routing"] = {"reference_percent": 0, "queue": {"default_timeout_ms": DEADLINE_MS}}
    model["guards"] = {"false_rollback": 1e-12, "errors": {"ratio": 1e6}, "latency": {"margin": 1e6}}
    with running(document, folder) as started:
        yield started


@pytest.fixture(scope="module")
def target(stack: Stack) -> Target:
    urls = [f"http://127.0.0.1:{port}" for port in (stack.http_port, stack.control_port)]
    return Target(*urls, stack.paths.state_dir, "tiny", "good")


@pytest.mark.parametrize("case", CASES)
def test_no_candidate_answers_after_a_kill(stack: Stack, target: Target, case: str) -> None:
    what = CASES[case]
    stack.traffic("tiny", weights={"good": what.percent})
    requests = [text_request("tiny", "ham spam", f"user-{number}") for number in range(200)]
    with Load(target.http_url, requests, min(what.rate, 200), "good", timeout_s=30) as load:
        settle(target, load)
        kills = [kill_once(target, load, what.situation, WATCH_S) for _ in range(KILLS)]
        counts = load.counts()
    assert all(kill.last_ms < BOUND_MS for kill in kills), kills
    # Once whoever asked was told, the candidate answers no request that is sent from then on.
    assert all(kill.newest_ns <= kill.returned_ns for kill in kills), kills
    assert counts["failed"] == 0


def test_a_killed_candidate_stays_silent_until_it_is_armed_again(stack: Stack, target: Target) -> None:
    stack.traffic("tiny", weights={"good": 100})
    requests = [text_request("tiny", "ham", f"user-{number}") for number in range(200)]
    with Load(target.http_url, requests, 100, "good", timeout_s=30) as load:
        settle(target, load)
        seq = stack.post("/models/tiny:kill").json()["kill_seq"]
        killed_ns, answered = time.monotonic_ns(), load.counts()["answered"]
        wait_for(lambda: load.counts()["answered"] > answered + 200, 60)
        assert load.newest_ns <= killed_ns
        stack.post("/models/tiny:rearm", kill_seq=seq).raise_for_status()
        settle(target, load)
