"""What deployments/ ships: generated files are up to date and the real tools accept them."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.prometheus import need

from deployments.grafana import generate as grafana
from deployments.prometheus import generate as prometheus
from serving.config import parse_config
from serving.exports.prometheus_rules import slo_groups

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENTS = ROOT / "deployments"
PROMETHEUS = DEPLOYMENTS / "prometheus"


def run(package: str, program: str, *arguments: str | Path) -> None:
    """Run a checker; its complaint is the failure."""
    path = need(program, package)
    # Without `timeout`, with which waiting would sleep; these take milliseconds and the test has its limit.
    done = subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ---------------------------------------------------------------- Prometheus, Alertmanager


def test_the_committed_rules_are_those_of_the_quickstart() -> None:
    for path, text in prometheus.committed().items():
        assert path.read_text(encoding="utf-8") == text, f"run python -m deployments.prometheus.generate ({path.name})"


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    run("prometheus", "promtool", "check", "config", PROMETHEUS / "prometheus.yml")
    run("prometheus", "promtool", "check", "rules", PROMETHEUS / "rules.yml")
    run("prometheus", "promtool", "check", "rules", ROOT / "helm" / "canarium" / "files" / "alerts.yaml")


def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    run("prometheus", "promtool", "test", "rules", PROMETHEUS / "rules_test.yml")


def test_amtool_accepts_the_routing_of_alerts() -> None:
    run("prometheus-alertmanager", "amtool", "check-config", DEPLOYMENTS / "alertmanager" / "alertmanager.yml")


def test_every_alert_has_a_route() -> None:
    severities = {
        rule["labels"]["severity"]
        for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    assert severities == {"page", "ticket"}
    routing = yaml.safe_load((DEPLOYMENTS / "alertmanager" / "alertmanager.yml").read_text(encoding="utf-8"))
    assert routing["route"]["receiver"] == "tickets"
    assert routing["route"]["routes"][0]["matchers"] == ['severity="page"']


def config(*slo: dict[str, Any]) -> Any:
    variants = {"a": {"artifact": "m/a:1"}}
    return parse_config(
        {"apiVersion": "canarium/v1", "models": {"m": {"baseline": "a", "variants": variants, "slo": list(slo)}}}
    )


def rules(*slo: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    groups = slo_groups(config(*slo))
    return {group["name"]: group["rules"] for group in groups}


def test_a_latency_threshold_selects_its_bucket() -> None:
    found = rules({"name": "latency", "objective": 0.99, "threshold_ms": 250})["canarium-slo-m-latency"]
    assert 'le="0.25"' in found[0]["expr"]
    whole = rules({"name": "latency", "objective": 0.99, "threshold_ms": 1000})["canarium-slo-m-latency"]
    assert 'le="1.0"' in whole[0]["expr"]


@pytest.mark.parametrize(("window", "limits"), [("30d", ["0.5", "0.3"]), ("7d", ["0.168", "0.07"])])
def test_burn_rates_follow_objective_and_window(window: str, limits: list[str]) -> None:
    found = rules({"name": "availability", "objective": 0.95, "window": window})["canarium-slo-m-availability"]
    page = next(rule for rule in found if rule.get("alert") and rule["labels"]["severity"] == "page")
    assert re.findall(r"> ([0-9.]+) and on", page["expr"]) == limits


def test_alerts_say_what_they_mean_of_their_own_window() -> None:
    """A ticket at a rate under 1 would be sent while the objective is kept; at 1 it is another share of the budget."""
    found = rules({"name": "availability", "objective": 0.999, "window": "7d"})["canarium-slo-m-availability"]
    alerts = {rule["labels"]["speed"]: rule for rule in found if rule.get("alert") == "CanariumErrorBudgetBurn"}
    assert "2% of the budget in 1h or 5% of the budget in 6h" in alerts["fast"]["annotations"]["description"]
    assert "14% of the budget in 1d or 43% of the budget in 3d" in alerts["slow"]["annotations"]["description"]
    assert re.findall(r"> ([0-9.]+) and on", alerts["slow"]["expr"]) == ["0.001", "0.001"]


def test_a_model_without_objectives_has_no_rules() -> None:
    assert rules() == {}


# ---------------------------------------------------------------- Grafana


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((DEPLOYMENTS / "grafana" / "canarium.json").read_text(encoding="utf-8"))
    return document


def test_the_committed_dashboard_is_the_generated_one() -> None:
    assert dashboard() == grafana.build(), "run python -m deployments.grafana.generate"


def test_the_dashboard_asks_for_its_data_source() -> None:
    variables = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == "${datasource}"


def test_panels_fill_rows_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len(taken) == 24 * (1 + max(y for _, y in taken))


def test_what_may_be_negative_is_not_cut_off() -> None:
    free = {
        panel["title"]
        for panel in dashboard()["panels"]
        if "min" not in panel.get("fieldConfig", {}).get("defaults", {"min": 0})
    }
    assert free == {"Evidence and threshold", "Signal to quantization noise", "Error budget remaining"}


def test_of_several_monitors_the_worst_is_shown() -> None:
    """One that is silent behind one that is not; the lower end of the one that knows least."""
    asked = {panel["title"]: [target["expr"] for target in panel.get("targets", [])] for panel in dashboard()["panels"]}
    assert asked["Monitor heartbeat"] == ["time() - min(canarium_monitor_heartbeat_timestamp_seconds)"]
    ends = [expr for found in asked.values() for expr in found if re.search("_(lower|upper){", expr)]
    assert {(expr.split()[0], "_lower{" in expr) for expr in ends} == {("min", True), ("max", False)}


def test_prometheus_parses_every_query_of_the_dashboard(tmp_path: Path) -> None:
    records = [
        {"record": f"query:{index}", "expr": grafana.concrete(expr, "moderation", "5m")}
        for index, expr in enumerate(grafana.expressions())
    ]
    assert all("$" not in record["expr"] for record in records)
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": records}]}), encoding="utf-8")
    run("prometheus", "promtool", "check", "rules", file)


# ---------------------------------------------------------------- Docker


def instructions() -> list[tuple[str, str]]:
    text = (DEPLOYMENTS / "docker" / "Dockerfile").read_text(encoding="utf-8")
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def last(name: str) -> str:
    return instructions_of(name)[-1]


def instructions_of(name: str) -> list[str]:
    return [value for instruction, value in instructions() if instruction == name]


def test_the_image_runs_as_nobody_special_on_the_four_ports() -> None:
    assert last("USER") == "10001:10001"
    assert last("EXPOSE").split() == ["8000", "8001", "8002", "8003"]
    assert "/v2/health/ready" in last("HEALTHCHECK")
    assert last("STOPSIGNAL") == "SIGTERM"
    assert json.loads(last("ENTRYPOINT")) == ["tini", "--"]
    values = yaml.safe_load((ROOT / "helm" / "canarium" / "values.yaml").read_text(encoding="utf-8"))
    assert values["podSecurityContext"]["runAsUser"] == 10001


def test_the_images_example_gives_what_an_instance_with_tokens_needs() -> None:
    from serving.config import parse_config

    text = (DEPLOYMENTS / "docker" / "Dockerfile").read_text(encoding="utf-8")
    comment = [line.removeprefix("#").removeprefix("   ") for line in text.split("\n\n")[0].splitlines()]
    said = yaml.safe_load("\n".join(line for line in comment if re.match(r"(server|auth|state|registry): \{", line)))
    models = {"m": {"baseline": "a", "variants": {"a": {"artifact": "m/a:1"}}}}
    config = parse_config({"apiVersion": "canarium/v1", "models": models, **said})
    command = " ".join(comment).replace("\\", " ")
    mounted = re.findall(r" -v (\S+?):(/[^\s:]+)", command)
    assert ("./auth", str(Path(config.auth.tokens_file or "").parent)) in mounted  # the file itself changes by a rename
    assert {config.state.dir, config.registry.dir, json.loads(last("CMD"))[-1]} <= {inside for _, inside in mounted}
    assert " -e CANARIUM_MONITOR_TOKEN " in command
    assert f"chown {last('USER')} auth/tokens" in command
    environment = dict(part.split("=", 1) for part in instructions_of("ENV")[-1].split())
    assert environment["CANARIUM_STATE_DIR"] == config.state.dir == last("VOLUME")


def test_the_images_command_is_one_that_canarium_has() -> None:
    from serving.cli import canarium

    program, command, option, _ = json.loads(last("CMD"))
    assert program == "canarium"
    assert option in [name for parameter in canarium.commands[command].params for name in parameter.opts]


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    allowed = {
        line[1:].rstrip("/")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    copied = [
        source.rstrip("/")
        for instruction, value in instructions()
        if instruction == "COPY" and not value.startswith("--from")
        for source in value.split()[:-1]
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(copied) <= allowed
    assert {"pyproject.toml", project["readme"], *project["license-files"]} <= set(copied)
    assert all((ROOT / source).exists() for source in copied if source != project["readme"])


def test_the_image_takes_every_version_from_the_project_file() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert len([line for line in dependencies if line.startswith("torch==")]) == 1
    installs = " ".join(value for instruction, value in instructions() if instruction == "RUN")
    assert "==" not in installs.replace("'^torch=='", "")
