"""Candidates that raise, hang, give NaN or die, and processes that are killed: no client notices."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support.load import Background, send_all, text_request
from tests.support.stack import Stack, wait_for

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def calm(tiny_stack: Stack) -> Iterator[None]:
    """Every test starts and ends with all traffic on the baseline and no kill in force."""
    _reset(tiny_stack)
    yield
    _reset(tiny_stack)


def _reset(stack: Stack) -> None:
    wait_for(lambda: stack.admin.get("/status").status_code == 200)
    view = stack.model("tiny")
    if view["killed"]:
        stack.post("/models/tiny:rearm", kill_seq=view["kill_seq"]).raise_for_status()
    live = [v["name"] for v in view["variants"] if v["role"] == "candidate" and v["weight"]]
    if live:
        stack.traffic("tiny", weights=dict.fromkeys(live, 0))


def _killed_by_its_guard(stack: Stack) -> dict[str, Any] | None:
    """The model's view once the monitor has told of its kill: until then it is known from the control word alone, and
    one who re-arms it meets what is told late."""
    view = stack.model("tiny")
    return view if view["killed"] and view["kill"]["actor"] == "monitor" else None


def _goes_on_or_is_paused(stack: Stack, name: str, weight: float) -> bool:
    """Whether a variant has its weight still, or the monitor has told that its guard took it away."""
    view = {variant["name"]: variant for variant in stack.model("tiny")["variants"]}[name]
    return view["weight"] == weight or (view["rolled_back"] or {}).get("actor") == "monitor"


def _ramp(stack: Stack, **weights: float) -> None:
    epoch = stack.traffic("tiny", weights=weights)["epoch"]
    wait_for(lambda: stack.infer("tiny", "ham").headers.get("x-canarium-epoch") == str(epoch))


def _url(stack: Stack) -> str:
    return f"http://127.0.0.1:{stack.http_port}"


def _metric(stack: Stack, name: str, **labels: str) -> float:
    """Sum of a metric's samples that carry `labels`."""
    total = 0.0
    for line in stack.monitor.get("/metrics").text.splitlines():
        match = re.fullmatch(rf"{name}\{{(.*)\}} (\S+)", line)
        if match and all(f'{key}="{value}"' in match[1] for key, value in labels.items()):
            total += float(match[2])
    return total


@pytest.mark.parametrize(
    ("variant", "text", "cause"),
    [("raises", "spam", "error"), ("nan", "spam", "invalid_output"), ("hangs", "boom spam", "timeout")],
)
def test_a_faulty_candidate_costs_no_client_anything(tiny_stack: Stack, variant: str, text: str, cause: str) -> None:
    _ramp(tiny_stack, **{variant: 50})
    requests = [text_request("tiny", text, f"u{number}") for number in range(64)]
    outcomes = send_all(_url(tiny_stack), requests, clients=16)
    assert [outcome.code for outcome in outcomes] == ["200"] * 64
    assert {outcome.variant for outcome in outcomes} == {"teacher"}
    assert any(outcome.reason == f"fallback:{cause}" for outcome in outcomes)
    if variant == "nan":  # its guard kills the model: let that happen here, not during the next test
        wait_for(lambda: _killed_by_its_guard(tiny_stack))


def test_a_candidate_that_gives_nan_is_killed_by_its_guard(tiny_stack: Stack) -> None:
    _ramp(tiny_stack, nan=50)
    send_all(_url(tiny_stack), [text_request("tiny", "spam", f"v{number}") for number in range(40)])
    view = wait_for(lambda: _killed_by_its_guard(tiny_stack))
    assert "nan gave" in view["kill"]["reason"]
    wait_for(lambda: tiny_stack.infer("tiny", "ham", x_user_id="v1").headers.get("x-canarium-variant") == "teacher")
    pinned = tiny_stack.infer("tiny", "ham", version="5")
    assert pinned.status_code == 503
    assert "killed" in pinned.json()["error"]


def test_kill_9_of_an_isolated_worker_under_32_clients(tiny_stack: Stack) -> None:
    _ramp(tiny_stack, good=50)
    worker = tiny_stack.pid("ServeReplica:canarium-tiny-good")
    before = _metric(tiny_stack, "canarium_fallbacks_total", variant="good", cause="died")
    with Background(_url(tiny_stack), "tiny", 32) as load:
        wait_for(lambda: load.reasons["canary"] > 50)
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: load.reasons["fallback:died"] > 0)
        wait_for(lambda: set(tiny_stack.pids("ServeReplica:canarium-tiny-good")) - {worker}, 180)
        wait_for(lambda: tiny_stack.http.get("/v2/models/tiny/versions/2/ready").status_code == 200, 180)
        time.sleep(1)
    assert load.failures == []
    assert wait_for(lambda: _metric(tiny_stack, "canarium_fallbacks_total", variant="good", cause="died") - before) >= 1
    wait_for(lambda: _goes_on_or_is_paused(tiny_stack, "good", 50))


def test_a_hung_worker_is_replaced(tiny_stack: Stack) -> None:
    wait_for(lambda: tiny_stack.http.get("/v2/models/tiny/versions/7/ready").status_code == 200, 180)
    _ramp(tiny_stack, hangs=100)
    worker = tiny_stack.pid("ServeReplica:canarium-tiny-hangs")
    assert tiny_stack.infer("tiny", "boom").headers["x-canarium-reason"] == "fallback:timeout"
    wait_for(lambda: worker not in tiny_stack.pids("ServeReplica:canarium-tiny-hangs"), 180)
    wait_for(lambda: tiny_stack.http.get("/v2/models/tiny/versions/7/ready").status_code == 200, 180)


def test_every_placement_and_transport_answers(tiny_stack: Stack) -> None:
    for variant in ("good", "near", "far"):
        answer = tiny_stack.infer("tiny", "spam", x_canarium_variant=variant)
        assert (answer.status_code, answer.headers.get("x-canarium-variant")) == (200, variant)
        assert answer.json()["outputs"][1]["data"] == ["spam"]
    version = next(v["version"] for v in tiny_stack.model("tiny")["variants"] if v["name"] == "far")
    for announced in tiny_stack.paths.worker_dir("tiny", "far", version).glob("*.sock"):
        announced.unlink()  # `far` is reached over the Serve handle: it needs no socket
    assert tiny_stack.infer("tiny", "spam", x_canarium_variant="far").status_code == 200


def test_the_monitor_killed_and_back_counts_nothing_twice(tiny_stack: Stack) -> None:
    def count() -> float:
        return _metric(tiny_stack, "canarium_requests_total", code="200")

    def send(users: str) -> int:
        outcomes = send_all(_url(tiny_stack), [text_request("tiny", "ham", f"{users}{n}") for n in range(50)])
        return sum(outcome.code == "200" for outcome in outcomes)

    def flow() -> dict[str, int]:
        told: dict[str, int] = tiny_stack.monitor.get("/healthz").json()["events"]
        return told

    before = -1.0
    while before != (before := count()) or flow()["pending"]:
        time.sleep(1)
    sent = 0
    for _ in range(3):
        sent += send("m")
        monitor = tiny_stack.pid("monitoring.sidecar")
        os.kill(monitor, signal.SIGKILL)
        sent += send("n")

        def back(old: int = monitor) -> bool:
            try:
                return bool(
                    set(tiny_stack.pids("monitoring.sidecar")) - {old}
                    and tiny_stack.monitor.get("/healthz").status_code == 200
                )
            except httpx.TransportError:
                return False

        wait_for(back, 180)
    wait_for(lambda: count() - before == sent)
    time.sleep(1)
    assert count() - before == sent
    events = flow()
    assert events["written"] == events["consumed"] + events["lost"] + events["pending"]


def test_the_control_plane_killed_and_back_keeps_its_state(tiny_stack: Stack) -> None:
    _ramp(tiny_stack, good=30)
    before = tiny_stack.model("tiny")
    entries = tiny_stack.admin.get("/audit/verify").json()["entries"]
    control = tiny_stack.pid("ControlActor")
    with Background(_url(tiny_stack), "tiny", 8) as load:
        os.kill(control, signal.SIGKILL)

        def back() -> bool:
            try:
                return tiny_stack.admin.get("/status").status_code == 200
            except httpx.TransportError:
                return False

        time.sleep(0.5)
        wait_for(back, 180)
    assert load.failures == []
    after = tiny_stack.model("tiny")
    assert after["epoch"] == before["epoch"]
    assert {v["name"]: v["weight"] for v in after["variants"]} == {v["name"]: v["weight"] for v in before["variants"]}
    audit = tiny_stack.admin.get("/audit/verify").json()
    assert audit["ok"]
    assert audit["entries"] >= entries
    epoch = tiny_stack.traffic("tiny", weights={"good": 40})["epoch"]
    wait_for(lambda: tiny_stack.infer("tiny", "ham").headers.get("x-canarium-epoch") == str(epoch))


def test_a_gateway_that_dies_with_the_control_plane_down_comes_back_with_its_table(tiny_stack: Stack) -> None:
    _ramp(tiny_stack, good=100)
    control, gateway = tiny_stack.pid("ControlActor"), tiny_stack.pid("ServeReplica:canarium:Gateway")
    os.kill(control, signal.SIGSTOP)
    try:
        os.kill(gateway, signal.SIGKILL)
        wait_for(lambda: set(tiny_stack.pids("ServeReplica:canarium:Gateway")) - {gateway}, 180)

        def back() -> bool:
            answer = tiny_stack.infer("tiny", "ham")
            return answer.status_code == 200 and answer.headers.get("x-canarium-variant") == "good"

        wait_for(back, 180, every_s=0.5)
    finally:
        os.kill(control, signal.SIGCONT)
    wait_for(lambda: tiny_stack.admin.get("/status").status_code == 200)


def test_the_cli_kills_with_the_control_plane_stopped(tiny_stack: Stack) -> None:
    _ramp(tiny_stack, good=100)
    control = tiny_stack.pid("ControlActor")
    os.kill(control, signal.SIGSTOP)
    try:
        tiny_stack.canarium(
            "kill", "tiny", "--reason", "control is frozen", "--state-dir", str(tiny_stack.paths.state_dir)
        )
        wait_for(lambda: tiny_stack.infer("tiny", "ham").headers.get("x-canarium-variant") == "teacher")
    finally:
        os.kill(control, signal.SIGCONT)
    wait_for(lambda: tiny_stack.model("tiny")["killed"])
    # A kill acts first and is saved behind that.
    wait_for(lambda: any(entry["action"] == "kill" for entry in tiny_stack.admin.get("/audit").json()["entries"]))


def test_a_full_queue_answers_429_with_retry_after(tiny_stack: Stack) -> None:
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [200], "data": ["ham"] * 200}]}
    headers = {"x-canarium-variant": "slow", "x-canarium-timeout-ms": "50000"}

    def ask(_: int) -> httpx.Response:
        return tiny_stack.http.post("/v2/models/tiny/infer", json=body, headers=headers)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {answer.status_code for answer in refused} == {429}
    assert all(int(answer.headers["retry-after"]) >= 1 and "queue" in answer.json()["error"] for answer in refused)
    assert len(refused) < 4
    assert tiny_stack.infer("tiny", "ham").status_code == 200


def test_a_request_larger_than_the_queue_is_refused_with_the_limit(tiny_stack: Stack) -> None:
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [300], "data": ["ham"] * 300}]}
    answer = tiny_stack.http.post("/v2/models/tiny/infer", json=body)
    assert answer.status_code == 413
    assert "256" in answer.json()["error"]
