"""Staged rollouts of the quickstart, real processes, the demo's traffic: one that succeeds and one that must not."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from serving import yaml12
from tests.support.stack import ROOT, Stack, running, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]

REGISTRY = ROOT / ".canarium" / "registry"
#: Requests a second, as in `make demo`.
RATE = 80
LIMIT_S = 1800


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The quickstart on free ports, with an availability that is soon shown: at 99.9 % that takes ten times as long."""
    if not (REGISTRY / "models" / "moderation").is_dir():
        pytest.fail("the quickstart is not built: `make test` does, or `canarium build`")
    document = yaml12.load((ROOT / "deployments" / "quickstart" / "canarium.yaml").read_text())
    document["registry"] = {"dir": str(REGISTRY)}
    for slo in document["models"]["moderation"]["slo"]:
        if slo["name"] == "availability":
            slo["objective"] = 0.99
    with running(document, tmp_path_factory.mktemp("rollout")) as stack:
        yield stack


@pytest.fixture
def load(stack: Stack) -> Iterator[None]:
    """The demo's mails at the demo's rate for as long as a test lasts."""
    url, data = f"http://127.0.0.1:{stack.http_port}", ROOT / "deployments" / "quickstart" / "data"
    command = (sys.executable, "-m", "loadtests.openloop", url, "--model", "moderation", "--data", str(data))
    process = subprocess.Popen(
        (*command, "--rate", str(RATE), "--seconds", str(LIMIT_S * 2)),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
        assert process.poll() is None, "the load ended before the test"
    finally:
        process.terminate()
        process.wait(60)


def show(stack: Stack, target: str) -> dict[str, Any]:
    view: dict[str, Any] = json.loads(stack.canarium("rollout", "show", target, "--json").stdout)
    return view


def follow(stack: Stack, target: str, *ends: str) -> list[dict[str, Any]]:
    """What `canarium rollout show` said until one of the states was reached; approves when asked to."""
    views: list[dict[str, Any]] = []
    deadline = time.monotonic() + LIMIT_S
    while not views or views[-1]["state"] not in ends:
        assert time.monotonic() < deadline, f"not {ends} after {LIMIT_S} s: {views[-1]}"
        views.append(show(stack, target))
        if views[-1]["hold"] == "approval":
            stack.canarium("rollout", "approve", target, "--reason", "the evidence is there")
        time.sleep(1)
    return views


def audit_of(stack: Stack, target: str) -> list[dict[str, Any]]:
    """The rows of a rollout, oldest first."""
    rows = json.loads(stack.canarium("audit", "--limit", "200", "--json").stdout)
    return [row for row in reversed(rows) if row["after"].get("rollout") == target]


def test_the_broken_variant_ends_rolled_back_with_its_evidence_in_the_audit(stack: Stack, load: None) -> None:
    stack.canarium("rollout", "start", "moderation", "broken", "--policy", "fast")
    target = show(stack, "moderation")["id"]
    views = follow(stack, target, "rolled_back")
    assert {view["weight"] for view in views} == {0.0}, "it got live traffic though its shadow had failed"
    (row,) = [row for row in audit_of(stack, target) if row["action"] == "rollout-fail"]
    assert row["evidence"]["guard"] == "agreement"
    statistic = row["evidence"]["statistic"]
    # Evidence may fall again with what is seen after the crossing.
    assert statistic["log_evidence_at_failure"] >= statistic["log_threshold"]
    assert statistic["events"] > 0
    assert statistic["example_request_keys"]
    assert row["reason"].startswith("broken disagrees with teacher on")
    assert stack.model("moderation")["baseline"] == "teacher"
    assert json.loads(stack.canarium("audit", "verify", "--json").stdout)["ok"]


def test_int8_is_rolled_out_until_it_is_the_baseline(stack: Stack, load: None) -> None:
    stack.canarium("rollout", "start", "moderation", "int8", "--policy", "fast")
    target = show(stack, "moderation")["id"]
    refused = stack.canarium("rollout", "start", "moderation", "int8", "--policy", "fast", check=False)
    assert refused.returncode == 4, "two rollouts of one candidate at once"
    views = follow(stack, target, "succeeded", "rolled_back")
    assert views[-1]["state"] == "succeeded", views[-1]["why"]
    weights = [row["after"]["weight"] for row in audit_of(stack, target)]
    assert list(dict.fromkeys(weights)) == [0.0, 1.0, 10.0, 50.0, 95.0, 100.0]
    assert any(view["state"] == "monitoring" and view["weight"] == 95.0 for view in views), "no holdback was seen"
    (promotion,) = [row for row in audit_of(stack, target) if row["action"] == "rollout-promote"]
    assert set(promotion["evidence"]["passes"]) == {"errors", "latency", "agreement"}
    humans = {row["action"] for row in audit_of(stack, target) if row["actor"] != "rollout"}
    assert humans == {"rollout-create", "rollout-approve"}
    assert _is_baseline(stack)
    told = 'canarium_rollout_state{model="moderation",state="succeeded",variant="int8"} 1.0'
    wait_for(lambda: told in stack.monitor.get("/metrics").text)
    _restart(stack)
    assert "baseline is teacher in the file and int8 in the store, which wins" in stack.output()
    assert _is_baseline(stack)


def _is_baseline(stack: Stack) -> bool:
    wait_for(lambda: stack.infer("moderation", "hello").headers.get("x-canarium-variant") == "int8")
    return bool(stack.model("moderation")["baseline"] == "int8")


def _restart(stack: Stack) -> None:
    assert stack.stop() == 0
    stack.log.unlink()
    stack.start()
