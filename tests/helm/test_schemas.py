"""Every object is valid for its API: Kubernetes' own schemas, KubeRay's RayService, Serve's and Canarium's files."""

from __future__ import annotations

import ast
import math
from copy import deepcopy
from typing import Any

import charts
import jsonschema
import kubernetes_validate
import pytest
import yaml
from rayservice import RAYSERVICE

from serving.config import parse_config

KUBERNETES = "1.37.0"
#: No published schema of these is at hand; the golden renders hold them.
OF_PROMETHEUS_OPERATOR = {"PodMonitor", "ServiceMonitor", "PrometheusRule"}


@pytest.mark.parametrize("case", charts.CASES)
def test_core_objects_are_valid_kubernetes(case: str) -> None:
    checked = []
    for item in charts.objects(case):
        if item["kind"] not in OF_PROMETHEUS_OPERATOR | {"RayService"}:
            kubernetes_validate.validate(item, KUBERNETES, strict=True)
            checked.append(item["kind"])
    assert {"ConfigMap", "Service", "NetworkPolicy", "PodDisruptionBudget", "ServiceAccount"} <= set(checked)


@pytest.mark.parametrize("case", charts.CASES)
def test_pod_templates_are_valid_kubernetes(case: str) -> None:
    for template in pod_templates(case):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"} | template["metadata"]}
        kubernetes_validate.validate(pod | {"spec": template["spec"]}, KUBERNETES, strict=True)


@pytest.mark.parametrize("case", charts.CASES)
def test_the_rayservice_is_valid_for_kuberay(case: str) -> None:
    jsonschema.validate(charts.one(case, "RayService"), RAYSERVICE)


def test_a_misspelt_field_of_the_rayservice_is_found() -> None:
    document = deepcopy(charts.one("default", "RayService"))
    document["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["maxReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(document, RAYSERVICE)


@pytest.mark.parametrize("case", charts.CASES)
def test_the_serve_config_is_valid_for_ray_serve(case: str) -> None:
    from ray.serve.config import ProxyLocation
    from ray.serve.schema import ServeDeploySchema

    config = yaml.safe_load(charts.one(case, "RayService")["spec"]["serveConfigV2"])
    schema = ServeDeploySchema.model_validate(config)
    assert schema.proxy_location == ProxyLocation.Disabled
    assert schema.applications[0].args == {"config": "/etc/canarium/canarium.yaml"}
    for application in schema.applications:
        assert application.route_prefix is None
        (deployment,) = application.deployments
        assert deployment.ray_actor_options.num_cpus > 0  # the head has none, and must run none
    gateways, values = schema.applications[0].deployments[0], charts.values(case)
    assert gateways.name == "Gateway"
    pods, replicas = values.get("worker", {}).get("replicas", 1), values.get("server", {}).get("gateways", 1)
    assert gateways.max_replicas_per_node == math.ceil(replicas / pods)


def test_deployments_have_the_names_by_which_the_chart_sets_their_options(monkeypatch: pytest.MonkeyPatch) -> None:
    from serving import app
    from serving.contract import VariantEntry
    from serving.gateway.replica import GatewaySettings

    named: list[str] = []

    class Deployment:
        def bind(self, *_: Any) -> None:
            pass

    monkeypatch.setattr(app.serve, "deployment", lambda _, name, **__: named.append(name) or Deployment())
    settings = GatewaySettings(parse_config(canarium_yaml("default")).model_dump_json(), "/state", "secret")
    app.gateway_deployment(settings)
    app.variant_deployment(settings, "moderation", VariantEntry("int8", 2, "moderation/int8:1"))
    assert named == ["Gateway", "int8"]


def test_serve_imports_an_application_that_exists() -> None:
    config = yaml.safe_load(charts.one("default", "RayService")["spec"]["serveConfigV2"])
    module, _, function = config["applications"][0]["import_path"].partition(":")
    source = charts.ROOT.joinpath(*module.split(".")).with_suffix(".py")
    defined = {node.name for node in ast.parse(source.read_text(encoding="utf-8")).body if hasattr(node, "name")}
    assert function in defined


def test_the_monitors_command_exists() -> None:
    from serving.cli import canarium

    script = charts.one("default", "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"][
        "containers"
    ][1]["args"][0]
    command = next(line.split() for line in script.splitlines() if line.strip().startswith("canarium "))
    assert command[1] in canarium.commands
    assert "--file" in [name for option in canarium.commands[command[1]].params for name in option.opts]


@pytest.mark.parametrize("case", charts.CASES)
def test_the_configuration_is_valid_for_canarium(case: str) -> None:
    config = parse_config(canarium_yaml(case))
    assert config.server.host == "0.0.0.0"
    assert config.auth.mode == "tokens"
    assert config.models["moderation"].baseline == "teacher"


def test_every_models_key_reaches_the_configuration() -> None:
    assert canarium_yaml("full")["models"] == charts.values("full")["models"]


def canarium_yaml(case: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(charts.one(case, "ConfigMap")["data"]["canarium.yaml"])
    return config


def pod_templates(case: str) -> list[dict[str, Any]]:
    cluster = charts.one(case, "RayService")["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
