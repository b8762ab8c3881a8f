"""What the chart refuses, and how it says so."""

from __future__ import annotations

import json
from typing import Any

import charts
import pytest
from helm_python import HelmError, HelmRenderError, HelmValuesError


def test_without_a_secret_with_tokens_it_does_not_render() -> None:
    given = charts.with_value(charts.values("default"), "auth.tokensSecret.name", "")
    with pytest.raises(HelmRenderError, match=r"auth\.tokensSecret\.name is required: the pods listen on every"):
        charts.render(given)


def test_without_a_model_it_does_not_render() -> None:
    with pytest.raises(HelmRenderError, match="models is required"):
        charts.render(charts.with_value(charts.values("default"), "models", {}))


@pytest.mark.parametrize(("gateways", "pods"), [(1, 2), (4, 3)])
def test_a_worker_pod_that_may_be_without_a_gateway_is_refused(gateways: int, pods: int) -> None:
    given = charts.with_value(charts.values("default"), "worker.replicas", pods)
    with pytest.raises(HelmRenderError, match=r"server\.gateways \(\d\) must be a multiple of worker\.replicas"):
        charts.render(charts.with_value(given, "server.gateways", gateways))


def test_governance_that_would_do_nothing_is_refused() -> None:
    given = charts.with_value(charts.values("default"), "models.moderation.policy", "high")
    with pytest.raises(HelmRenderError, match=r"models\.moderation\.policy has no effect while governance\.mode"):
        charts.render(given)
    with pytest.raises(HelmRenderError, match=r"governance\.mode is enforce, which needs governance\.trusted_keys"):
        charts.render(charts.with_value(given, "governance.mode", "enforce"))


def test_two_monitors_of_the_same_pods_are_refused() -> None:
    given = charts.with_value(charts.values("full"), "metrics.podMonitor.enabled", True)
    with pytest.raises(HelmRenderError, match="scrape every monitor twice"):
        charts.render(given)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("auth.mode", "none"),
        ("auth.dataPlane", "none"),
        ("governance.mode", False),  # what YAML 1.1 makes of off
        ("governance.trusted_keys", [{"name": "ann", "key": "rsa"}]),
        ("card.owners", "us"),
        ("server.gateways", 0),
        ("server.gateways", "two"),
        ("server.host", "127.0.0.1"),
        ("worker.replicas", 0),
        ("image.pullPolicy", "Sometimes"),
        ("service.type", "ExternalName"),
        ("ray.env.lower_case", "1"),
        ("ray.env.RAY_SERVE_ENABLE_DIRECT_INGRESS", 1),
        ("state.spoolSizeLimit", "lots"),
        ("networkPolicy.inference.from", "everyone"),
        ("metrics.podMonitor.interval", "often"),
        ("models.moderation.variants", {}),
        ("models.moderation.variants.int8.placement", "elsewhere"),
        ("models.moderation.routing.weights.int8", 105),
        ("models.moderation.routing.wieghts", {"int8": 5}),
        ("models.moderation.slo", [{"name": "latency", "objective": 99}]),
        ("models.Moderation", {"baseline": "a", "variants": {"a": {"artifact": "m/a:1"}}}),
        ("typo", 1),
    ],
)
def test_a_wrong_value_is_refused_by_its_path(path: str, value: Any) -> None:
    with pytest.raises(HelmValuesError) as refusal:
        charts.render(charts.with_value(charts.values("default"), path, value))
    *_, last = path.split(".")
    assert last in str(refusal.value) or f"'/{path.replace('.', '/')}" in str(refusal.value)


def test_the_schema_is_made_from_the_configuration_of_today() -> None:
    generate = charts.script(charts.CHART / "generate_schema.py")
    assert json.loads(generate.TARGET.read_text(encoding="utf-8")) == generate.build(), (
        "run python helm/canarium/generate_schema.py"
    )


def test_every_value_has_a_schema() -> None:
    from helm_python import Chart

    with Chart.load(charts.CHART) as chart:
        unknown = sorted(set(chart.values) - set(chart.schema["properties"]))
    assert unknown == []


def test_errors_are_of_one_family() -> None:
    assert issubclass(HelmRenderError, HelmError)
    assert issubclass(HelmValuesError, HelmError)
