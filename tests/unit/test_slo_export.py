"""Objectives in other tools' formats: what OpenSLO v1 asks of a document, and the same queries as our own rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring import slo as slo_policy
from serving.cli import main
from serving.config import parse_config
from serving.exports.openslo import documents
from serving.exports.prometheus_rules import slo_groups

SLOS = [
    {"name": "latency", "objective": 0.99, "threshold_ms": 100},
    {"name": "availability", "objective": 0.999, "window": "7d"},
]
DOCUMENT = {
    "apiVersion": "canarium/v1",
    "models": {
        "m": {"baseline": "a", "variants": {"a": {"artifact": "m/a:1"}}, "slo": SLOS},
        "quiet": {"baseline": "a", "variants": {"a": {"artifact": "m/a:1"}}},
    },
}


def found(kind: str) -> dict[str, dict[str, Any]]:
    made = documents(parse_config(DOCUMENT), "http://prometheus:9090")
    assert {document["apiVersion"] for document in made} == {"openslo/v1"}
    return {document["metadata"]["name"]: document["spec"] for document in made if document["kind"] == kind}


def query(metric: dict[str, Any]) -> str:
    text: str = metric["metricSource"]["spec"]["query"]
    return text


def test_a_latency_objective_is_good_answers_over_all_answers() -> None:
    spec = found("SLO")["m-latency"]
    assert (spec["service"], spec["budgetingMethod"]) == ("m", "Occurrences")
    assert spec["timeWindow"] == [{"duration": "30d", "isRolling": True}]
    assert [objective["target"] for objective in spec["objectives"]] == [0.99]
    ratio = spec["indicator"]["spec"]["ratioMetric"]
    assert ratio["counter"] is True
    assert 'le="0.1"' in query(ratio["good"])
    assert "_count" in query(ratio["total"])


def test_an_availability_objective_counts_what_clients_got() -> None:
    ratio = found("SLO")["m-availability"]["indicator"]["spec"]["ratioMetric"]
    assert 'code=~"429|5.."' in query(ratio["bad"])
    assert 'code=~"2..|429|5.."' in query(ratio["total"])


def test_every_policy_that_is_referred_to_is_there_with_its_factor_for_the_window() -> None:
    slos, policies = found("SLO"), found("AlertPolicy")
    named = [policy["alertPolicyRef"] for spec in slos.values() for policy in spec["alertPolicies"]]
    assert sorted(named) == sorted(policies)
    assert len(policies) == 2 * len(slo_policy.POLICIES)
    for spec in policies.values():
        (condition,) = spec["conditions"]  # OpenSLO v1 allows one
        assert spec["notificationTargets"][0]["targetRef"] in found("AlertNotificationTarget")
        assert condition["spec"]["condition"]["kind"] == "burnrate"
    fast = policies["m-latency-burn-1h"]["conditions"][0]["spec"]
    assert fast["severity"] == "page"
    assert fast["condition"] == {"kind": "burnrate", "threshold": 14.4, "lookbackWindow": "1h", "alertAfter": "5m"}
    week = policies["m-availability-burn-1h"]["conditions"][0]["spec"]["condition"]["threshold"]
    assert week == pytest.approx(14.4 * 7 / 30, rel=1e-5)
    slow = policies["m-availability-burn-3d"]["conditions"][0]["spec"]
    assert slow["condition"]["threshold"] == 1.0  # under it the objective is kept
    assert "43% of it is gone" in slow["description"]


def test_services_are_the_models_with_objectives() -> None:
    assert list(found("Service")) == ["m"]


def test_the_command_prints_either_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "canarium.yaml"
    file.write_text(yaml.safe_dump(DOCUMENT))
    assert main(["slo", "export", "-f", str(file), "--prometheus", "http://p:1"]) == 0
    printed = list(yaml.safe_load_all(capsys.readouterr().out))
    assert printed == documents(parse_config(DOCUMENT), "http://p:1")
    assert main(["slo", "export", "-f", str(file), "--format", "prometheus"]) == 0
    groups = yaml.safe_load(capsys.readouterr().out)["groups"]
    assert [group["name"] for group in groups if group["name"] != "canarium"] == [
        group["name"] for group in slo_groups(parse_config(DOCUMENT))
    ]


def test_a_file_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slo", "export", "-f", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err
