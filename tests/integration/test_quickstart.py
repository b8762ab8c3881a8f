"""The quickstart as a user and an operator use it: canary shares, rollback under load, labels, metrics."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from serving.commands import examine
from tests.support.load import Background, send_all, text_request, told
from tests.support.prometheus import RunningPrometheus
from tests.support.stack import ROOT, Stack, wait_for

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def calm(quickstart: Stack) -> Iterator[None]:
    """Every test starts with all traffic on the teacher."""
    quickstart.post("/models/moderation:rollback", reason="between tests").raise_for_status()
    return


def _url(stack: Stack) -> str:
    return f"http://127.0.0.1:{stack.http_port}"


def _mails(count: int) -> list[str]:
    with gzip.open(ROOT / "deployments/quickstart/data/mails.jsonl.gz", "rt") as file:
        return [json.loads(next(file))["text"] for _ in range(count)]


def _settle(stack: Stack) -> None:
    epoch = str(stack.model("moderation")["epoch"])
    wait_for(lambda: stack.infer("moderation", "x").headers.get("x-canarium-epoch") == epoch)


def test_canary_shares_are_exact_sticky_and_only_grow(quickstart: Stack) -> None:
    quickstart.canarium("traffic", "moderation", "int8=10", "--reason", "try")
    _settle(quickstart)
    users = [f"user-{number}" for number in range(5000)]
    first = send_all(_url(quickstart), [text_request("moderation", "hello", user) for user in users])
    assert {outcome.code for outcome in first} == {"200"}
    assignment = {outcome.request.tag: outcome.variant for outcome in first}
    share = sum(variant == "int8" for variant in assignment.values())
    assert abs(share - 500) <= 5 * (5000 * 0.1 * 0.9) ** 0.5  # the salt is random: one run in two million is off
    again = send_all(_url(quickstart), [text_request("moderation", "again", user) for user in users[:500]])
    assert all(outcome.variant == assignment[outcome.request.tag] for outcome in again)
    quickstart.canarium("traffic", "moderation", "int8=20", "--reason", "raise")
    _settle(quickstart)
    raised = send_all(_url(quickstart), [text_request("moderation", "more", user) for user in users[:1500]])
    assert all(outcome.variant == "int8" for outcome in raised if assignment[outcome.request.tag] == "int8")
    assert sum(outcome.variant == "int8" for outcome in raised) > sum(
        assignment[user] == "int8" for user in users[:1500]
    )


def test_rollback_under_16_clients(quickstart: Stack) -> None:
    quickstart.traffic("moderation", weights={"distilled": 50})
    _settle(quickstart)
    with Background(_url(quickstart), "moderation", 16) as load:
        wait_for(lambda: load.variants["distilled"] > 100, 60)
        sent_ns = time.monotonic_ns()
        answer = quickstart.admin.post(
            "/models/moderation:rollback", json={"reason": "under load", "actor": "operator"}
        )
        returned_ns = time.monotonic_ns()
        wait_for(lambda: sum(outcome.started_ns > returned_ns for outcome in list(load.outcomes)) > 200, 60)
    assert answer.status_code == 200
    assert answer.json()["rolled_back"] == ["distilled"]
    distilled = [outcome for outcome in load.outcomes if outcome.variant == "distilled"]
    assert max(outcome.started_ns for outcome in distilled) <= returned_ns  # nobody who asks from then on gets it
    # It takes milliseconds, on a machine that does not stand still meanwhile.
    assert max(returned_ns, *(outcome.finished_ns for outcome in distilled)) - sent_ns <= 10e9
    assert load.failures == []

    def newest() -> tuple[str, str, str]:
        entry = quickstart.admin.get("/audit", params={"model": "moderation", "limit": 1}).json()["entries"][0]
        return entry["action"], entry["actor"], entry["reason"]

    wait_for(lambda: newest() == ("rollback", "operator", "under load"))  # it acts first and is saved behind that


def test_a_broken_candidate_is_rolled_back_by_its_guard(quickstart: Stack) -> None:
    quickstart.traffic("moderation", weights={"broken": 20})
    _settle(quickstart)
    mails = _mails(600)  # more than it takes: a busy machine sheds some of the second answers
    requests = [text_request("moderation", mail, f"u{number}") for number, mail in enumerate(mails)]
    outcomes = send_all(_url(quickstart), requests)
    assert {outcome.code for outcome in outcomes} == {"200"}
    entry = wait_for(
        lambda: next(
            (
                entry
                for entry in quickstart.admin.get("/audit", params={"model": "moderation"}).json()["entries"]
                if entry["actor"] == "monitor" and entry["variant"] == "broken"
            ),
            None,
        )
    )
    assert entry["action"] == "rollback"
    assert "disagrees with teacher" in entry["reason"]
    statistic = entry["evidence"]["statistic"]
    assert statistic["log_evidence_at_failure"] >= statistic["log_threshold"]
    assert "≥" in entry["reason"]
    assert quickstart.infer("moderation", "x", x_user_id="u1").headers["x-canarium-variant"] == "teacher"


def test_labels_reach_the_harm_guard_and_unknown_ids_are_counted(quickstart: Stack) -> None:
    quickstart.traffic("moderation", weights={"int8": 100})
    _settle(quickstart)
    for number, mail in enumerate(_mails(30)):
        body = {
            "id": f"labelled-{number}",
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [mail]}],
        }
        assert quickstart.http.post("/v2/models/moderation/infer", json=body).status_code == 200
        label = {"id": f"labelled-{number}", "label": "ham"}
        assert quickstart.http.post("/v2/models/moderation/feedback", json=label).status_code == 202

    def joined() -> bool:
        verdicts = quickstart.admin.get("/models/moderation/verdicts").json()["verdicts"]
        harm = next((v for v in verdicts if (v["guard"], v["variant"]) == ("harm", "int8")), None)
        return harm is not None and harm["statistic"]["observations"] >= 30

    wait_for(joined)


def test_shadow_traffic_is_scored_and_never_returned(quickstart: Stack) -> None:
    quickstart.traffic("moderation", shadow={"distilled": 100})
    _settle(quickstart)
    # Few at once: whole mails of 16 clients wait for the teacher up to the half of the latency objective that they may,
    # and on a slower machine over it, so that some are refused.
    requests = [text_request("moderation", mail, f"s{n}") for n, mail in enumerate(_mails(50))]
    outcomes = send_all(_url(quickstart), requests, clients=4)
    assert [told(outcome) for outcome in outcomes if not outcome.ok] == []
    assert {outcome.variant for outcome in outcomes} == {"teacher"}
    wait_for(
        lambda: 'canarium_shadow_total{model="moderation",result="ok",variant="distilled"} 0.0'
        not in quickstart.monitor.get("/metrics").text
    )


def test_prometheus_scrapes_the_monitor(quickstart: Stack) -> None:
    quickstart.traffic("moderation", weights={"int8": 50})
    _settle(quickstart)
    with RunningPrometheus(targets=[f"127.0.0.1:{quickstart.monitor_port}"]) as prometheus:
        with Background(_url(quickstart), "moderation", 4):
            value = prometheus.wait_for('sum(rate(canarium_requests_total{code="200"}[10s])) > 0', 60)
        assert value
        dashboard = json.loads((ROOT / "deployments/grafana/canarium.json").read_text())
        assert dashboard["panels"]


def test_the_torch_runtime_serves(quickstart: Stack) -> None:
    answer = quickstart.infer("moderation", "FREE money, click here!!!", x_canarium_variant="distilled-torch")
    assert answer.status_code == 200
    assert answer.headers["x-canarium-variant"] == "distilled-torch"
    assert answer.json()["outputs"][1]["data"] == ["spam"]


def test_the_admin_api_refuses_strangers(quickstart: Stack) -> None:
    body = {"reason": "cross-site", "weights": {"int8": 100}}
    url = f"http://127.0.0.1:{quickstart.control_port}/admin/v1/models/moderation/traffic"
    assert httpx.put(url, json=body, headers={"Origin": "https://evil.example"}).status_code == 403
    assert httpx.put(url, json=body, headers={"Host": "evil.example"}).status_code in (400, 403, 421)
    assert httpx.put(url, content=json.dumps(body), headers={"Content-Type": "text/plain"}).status_code == 415


def test_inference_is_answered_on_the_configured_ports_of_loopback_and_nowhere_else(quickstart: Stack) -> None:
    """Ray opens ports of its own on every interface; none of a gateway's may let a stranger infer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: only asks which address this machine would use
        address = probe.getsockname()[0]
    gateway = quickstart.pid("ServeReplica:canarium:Gateway")
    found = {one["port"]: one for one in examine.listeners({gateway})}
    assert [found.pop(port)["loopback"] for port in (quickstart.http_port, quickstart.grpc_port)] == [True, True]
    for port in found:
        with contextlib.closing(tritonclient.grpc.InferenceServerClient(f"{address}:{port}")) as client:
            text = tritonclient.grpc.InferInput("text", [1], "BYTES")
            text.set_data_from_numpy(np.array([b"hello"], dtype=object))
            with pytest.raises(InferenceServerException):
                client.infer("moderation", [text], client_timeout=5)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://{address}:{port}/v2", timeout=5, trust_env=False)
