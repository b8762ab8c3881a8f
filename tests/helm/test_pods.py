"""What an operator relies on: who listens, who may connect, what a pod may do, what the pods share."""

from __future__ import annotations

from typing import Any

import charts
import pytest
import yaml

from serving import serve_env


def cluster(case: str) -> dict[str, Any]:
    spec: dict[str, Any] = charts.one(case, "RayService")["spec"]["rayClusterConfig"]
    return spec


def head(case: str = "default") -> dict[str, Any]:
    template: dict[str, Any] = cluster(case)["headGroupSpec"]["template"]
    return template


def worker(case: str = "default") -> dict[str, Any]:
    template: dict[str, Any] = cluster(case)["workerGroupSpecs"][0]["template"]
    return template


def containers(case: str) -> list[dict[str, Any]]:
    return [*head(case)["spec"]["containers"], *worker(case)["spec"]["containers"]]


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in container["env"]}


@pytest.mark.parametrize("case", charts.CASES)
def test_no_container_has_privileges(case: str) -> None:
    for pod in (head(case), worker(case)):
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["spec"]["automountServiceAccountToken"] is False
    for container in containers(case):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("case", charts.CASES)
def test_every_container_says_what_it_needs(case: str) -> None:
    for container in containers(case):
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]


def test_gateways_and_monitor_share_the_spool_and_the_pid_namespace() -> None:
    pod = worker()["spec"]
    gateway, monitor = pod["containers"]
    mounts = [{mount["mountPath"]: mount["name"] for mount in item["volumeMounts"]} for item in (gateway, monitor)]
    assert mounts[0]["/var/lib/canarium"] == mounts[1]["/var/lib/canarium"] == "state"
    assert "emptyDir" in next(volume for volume in pod["volumes"] if volume["name"] == "state")
    assert pod["shareProcessNamespace"] is True
    assert gateway["image"] == monitor["image"]


def test_a_dead_monitor_does_not_take_the_pod_out_of_service() -> None:
    monitor = worker()["spec"]["containers"][1]
    assert not {"readinessProbe", "livenessProbe", "startupProbe"} & monitor.keys()
    assert "while :" in monitor["args"][0]


def test_readiness_is_the_protocols_own() -> None:
    gateway = worker()["spec"]["containers"][0]
    assert gateway["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": "http"}
    # KubeRay deploys Serve once the head is ready: a head that waits for Serve would wait for ever.
    assert "readinessProbe" not in head()["spec"]["containers"][0]


def test_the_control_planes_database_is_on_the_heads_volume_and_has_one_head() -> None:
    state = next(volume for volume in head()["spec"]["volumes"] if volume["name"] == "state")
    claim = charts.one("default", "PersistentVolumeClaim", state["persistentVolumeClaim"]["claimName"])
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert charts.one("default", "RayService")["spec"]["upgradeStrategy"] == {"type": "None"}
    assert cluster("default")["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_every_volume_that_is_mounted_exists() -> None:
    for case in charts.CASES:
        for pod in (head(case), worker(case)):
            volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
            for container in pod["spec"]["containers"]:
                assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_gateways_drain_within_the_grace_period_before_their_node_goes() -> None:
    from serving.cli import canarium

    given = charts.with_value(charts.values("default"), "worker.terminationGracePeriodSeconds", 300)
    (service,) = charts.parse(charts.render(given)["rayservice.yaml"])
    pod = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]
    shell, _, script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    drain, stop = script.split("; ")
    assert (shell, stop) == ("/bin/sh", "ray stop")
    _, name, *options = drain.split()
    assert {"--file", "--within"} <= {text for option in canarium.commands[name].params for text in option.opts}
    assert options == ["--file", "/etc/canarium/config/canarium.yaml", "--within", "285"]
    assert pod["terminationGracePeriodSeconds"] == 300


def test_the_configuration_is_mounted_so_that_it_is_renewed() -> None:
    for container in containers("default"):
        config = next(mount for mount in container["volumeMounts"] if mount["name"] == "config")
        assert "subPath" not in config
        assert config["mountPath"] == "/etc/canarium/config"


def test_the_control_plane_finds_the_monitors() -> None:
    service = charts.one("full", "Service", "canary-monitor")
    for pod in (head("full"), worker("full")):  # whichever of them Ray Serve builds the application on
        url = environment(pod["spec"]["containers"][0])["CANARIUM_MONITOR"]
        assert url == f"http://{service['metadata']['name']}.ml.svc:{service['spec']['ports'][0]['port']}"


def test_tokens_come_from_the_secret_and_nowhere_else() -> None:
    for pod in (head("full"), worker("full")):
        tokens = next(volume["secret"] for volume in pod["spec"]["volumes"] if volume["name"] == "tokens")
        assert tokens["secretName"] == "canarium-tokens"
        assert tokens["items"] == [{"key": "users", "path": "tokens"}]
    *_, monitor = containers("full")
    reference = environment(monitor)["CANARIUM_MONITOR_TOKEN"]
    assert reference == {"secretKeyRef": {"name": "canarium-tokens", "key": "robot"}}


def test_ray_is_tuned_and_authenticated_on_every_node() -> None:
    for pod in (head(), worker()):
        assert serve_env.missing(environment(pod["spec"]["containers"][0])) == []
    assert cluster("default")["authOptions"] == {"mode": "token"}


def test_services_find_their_pods_by_named_ports() -> None:
    pods = {"gateway": worker(), "control": head()}
    for service in (item for item in charts.objects("default") if item["kind"] == "Service"):
        selector = service["spec"]["selector"]
        pod = pods[selector["app.kubernetes.io/component"]]
        assert selector.items() <= pod["metadata"]["labels"].items()
        named = {
            port["name"]: port["containerPort"] for item in pod["spec"]["containers"] for port in item.get("ports", [])
        }
        for port in service["spec"]["ports"]:
            assert named[port["targetPort"]] == port["port"]


def test_the_network_policy_opens_four_ports_and_the_dashboard_to_the_operator() -> None:
    policy = charts.one("full", "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    inside, *rules = policy["ingress"]
    assert inside == {"from": [{"podSelector": policy["podSelector"]}]}
    for pod in (head("full"), worker("full")):
        assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    opened = [sorted(port["port"] for port in rule["ports"]) for rule in rules]
    assert opened == [[8000, 8001], [8002], [8003], [8000, 8265]]
    assert all(rule["from"] for rule in rules)


def test_an_empty_list_of_peers_closes_the_port() -> None:
    policy = charts.one("default", "NetworkPolicy")["spec"]
    assert 8003 not in [port["port"] for rule in policy["ingress"] for port in rule.get("ports", [])]


def test_the_disruption_budget_is_of_the_gateways() -> None:
    budget = charts.one("default", "PodDisruptionBudget")["spec"]
    assert budget["selector"]["matchLabels"].items() <= worker()["metadata"]["labels"].items()
    assert not budget["selector"]["matchLabels"].items() <= head()["metadata"]["labels"].items()


def test_the_operators_resources_are_off_by_default() -> None:
    kinds = {item["kind"] for item in charts.objects("default")}
    assert not kinds & {"PodMonitor", "ServiceMonitor", "PrometheusRule"}


def test_the_service_monitor_finds_the_monitors_service() -> None:
    monitor = charts.one("full", "ServiceMonitor")["spec"]
    service = charts.one("full", "Service", "canary-monitor")
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]


def test_the_prometheus_rule_holds_the_alerts_and_the_given_groups() -> None:
    extra = {"name": "mine", "rules": [{"record": "a", "expr": "1"}]}
    given = charts.with_value(charts.values("full"), "metrics.prometheusRule.groups", [extra])
    rule = next(
        item for item in charts.parse(charts.render(given)["prometheus.yaml"]) if item["kind"] == "PrometheusRule"
    )
    committed = yaml.safe_load((charts.CHART / "files" / "alerts.yaml").read_text(encoding="utf-8"))
    assert rule["spec"]["groups"] == [*committed["groups"], extra]
