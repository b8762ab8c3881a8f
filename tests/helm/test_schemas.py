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
CONFIG = "/etc/canarium/config/canarium.yaml"
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
    for pod in pods(charts.one(case, "RayService")):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


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
    assert schema.applications[0].args == {"config": CONFIG, "revision": revision(case)}
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


def test_every_section_that_is_given_word_for_word_reaches_the_configuration() -> None:
    for section in ("models", "governance", "card"):
        assert canarium_yaml("full")[section] == charts.values("full")[section]
    config = parse_config(canarium_yaml("full"))
    assert (config.governance.mode, config.models["moderation"].policy) == ("enforce", "limited")
    assert config.auth.data_plane == "open"
    assert parse_config(canarium_yaml("default")).auth.data_plane == "tokens"


def test_a_changed_configuration_changes_every_application() -> None:
    """In-place updates rebuild only what has other arguments; the file that they are built from is one for all."""

    def applications(**variant: Any) -> tuple[str, dict[str, Any]]:
        given = charts.with_value(charts.values("full"), "models.moderation.variants.int8", variant)
        rendered = charts.render(given)
        (file,) = charts.parse(rendered["configmap.yaml"])
        (service,) = charts.parse(rendered["rayservice.yaml"])
        listed = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
        return file["data"]["revision"], {one["name"]: one["args"] for one in listed}

    (first, before), (second, after) = applications(artifact="m/int8:3"), applications(artifact="m/int8:4")
    assert before.keys() == after.keys()
    assert first != second
    for name in before:
        assert (before[name].pop("revision"), after[name].pop("revision")) == (first, second)
    assert before == after


@pytest.mark.parametrize("name", ["8", "010", "1e3", "0x1f", "on", "no", "null", "2026-01-01"])
def test_a_name_that_yaml_would_read_as_something_else_stays_a_name(name: str) -> None:
    models = {name: {"baseline": name, "variants": {name: {"artifact": "m/a:1"}}}}
    rendered = charts.render(charts.with_value(charts.values("default"), "models", models))
    (config,) = charts.parse(rendered["configmap.yaml"])
    assert parse_config(yaml.safe_load(config["data"]["canarium.yaml"])).models[name].baseline == name
    (service,) = charts.parse(rendered["rayservice.yaml"])
    _, application = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert application["name"] == f"canarium-{name}-{name}"
    args = {"config": CONFIG, "revision": config["data"]["revision"], "model": name, "variant": name}
    assert application["args"] == args
    assert [deployment["name"] for deployment in application["deployments"]] == [name]
    assert all(f': "{text}"' in service["spec"]["serveConfigV2"] for text in (name, application["name"]))


@pytest.mark.parametrize("name", ["8", "on", "null"])
def test_every_name_that_a_user_gives_the_chart_stays_a_name(name: str) -> None:
    given = charts.values("full")
    for path in (
        *("nameOverride", "fullnameOverride", "auth.tokensSecret.name", "auth.tokensSecret.tokensKey"),
        *("auth.tokensSecret.monitorTokenKey", "state.databaseSecret.name", "state.databaseSecret.urlKey"),
        *("state.persistence.existingClaim", "registry.persistence.storageClassName", "serviceAccount.name"),
    ):
        given = charts.with_value(given, path, name)
    given = charts.with_value(given, "ray.env.ON", "1")
    texts = [text for file, text in charts.render(given, name).items() if file.endswith(".yaml")]
    objects = [item for text in texts for item in charts.parse(text)]
    for item in objects:
        if item["kind"] not in OF_PROMETHEUS_OPERATOR | {"RayService"}:
            kubernetes_validate.validate(item, KUBERNETES, strict=True)
    assert {item["metadata"]["name"] for item in objects} >= {name, f"{name}-control", f"{name}-registry"}
    assert all(isinstance(item["metadata"]["name"], str) for item in objects)
    (service,) = (item for item in objects if item["kind"] == "RayService")
    for pod in pods(service):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def revision(case: str) -> str:
    found: str = charts.one(case, "ConfigMap")["data"]["revision"]
    return found


def canarium_yaml(case: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(charts.one(case, "ConfigMap")["data"]["canarium.yaml"])
    return config


def pods(service: dict[str, Any]) -> list[dict[str, Any]]:
    """The pods of a RayService, made from its templates."""
    cluster = service["spec"]["rayClusterConfig"]
    templates = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    return [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"} | item["metadata"], "spec": item["spec"]}
        for item in templates
    ]
