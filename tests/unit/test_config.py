"""Every mistake in a configuration is refused with its path, what was given and what is allowed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from serving import yaml12
from serving.build.kinds import load_recipe
from serving.commands.rollout import read_policy
from serving.config import Config, load_config, parse_config
from serving.errors import ConfigError
from serving.governance.policy import load_policy

ROOT = Path(__file__).parents[2]

VALID: dict[str, Any] = {
    "apiVersion": "canarium/v1",
    "models": {
        "moderation": {
            "baseline": "teacher",
            "variants": {
                "teacher": {"artifact": "moderation/teacher:1"},
                "int8": {"artifact": "moderation/int8:1"},
                "distilled": {"artifact": "moderation/distilled:latest"},
            },
        }
    },
}

DATABASE_URL = "postgresql+psycopg://USER:${PASSWORD}@HOST/DATABASE"
NO_PASSWORD = (
    "state.database: a password has no place in this file: write ${NAME} for an environment variable, "
    "or use PGPASSFILE or CANARIUM_DATABASE_URL"
)


def with_value(path: str, value: Any) -> dict[str, Any]:
    """VALID with `value` at a path of keys joined by '/'; a leading '+' stands for models/moderation."""
    document = copy.deepcopy(VALID)
    *parents, last = path.replace("+", "models/moderation/").split("/")
    node = document
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    return document


LATENCY = {"name": "latency", "objective": 0.99, "threshold_ms": 100}
AVAILABILITY = {"name": "availability", "objective": 0.999}

MISTAKES: list[tuple[str, Any, str]] = [
    ("apiVersion", "canarium/v2", "apiVersion: 'canarium/v2' is not 'canarium/v1'"),
    ("extra", 1, "extra: unknown key"),
    # server
    ("server/hots", "x", "server.hots: unknown key"),
    ("server", None, "server: expected a mapping, got None"),
    ("server", [], "server: expected a mapping, got []"),
    ("server/http_port", 0, "server.http_port: 0 is under 1"),
    ("server/http_port", 70_000, "server.http_port: 70000 is over 65535"),
    ("server/http_port", "8000", "server.http_port: '8000': input should be a valid integer"),
    ("server/http_port", True, "server.http_port: True: input should be a valid integer"),
    (
        "server/http_port",
        8001,
        "server: http_port, grpc_port, monitor_port and control_port must differ, got [8001, 8001, 8002, 8003]",
    ),
    (
        "server/host",
        "0.0.0.0",
        "server.host: 0.0.0.0 is reachable from other machines, which needs auth.mode: tokens; "
        "use 127.0.0.1 or configure authentication",
    ),
    ("server/gateways", 0, "server.gateways: 0 is under 1"),
    ("server/max_body_mib", 2048, "server.max_body_mib: 2048 is over 1024"),
    # state, auth
    ("state/database", "mysql", f"state.database: expected 'sqlite' or a URL such as {DATABASE_URL}"),
    ("state/database", "mysql://u:s3cret@h/d", f"state.database: expected 'sqlite' or a URL such as {DATABASE_URL}"),
    ("state/database", "postgresql://u:s3cret@[h/d", f"state.database: is not a URL such as {DATABASE_URL}"),
    ("state/database", "postgresql://h", f"state.database: names no database: expected {DATABASE_URL}"),
    ("state/database", "postgresql://u:s3cret@h/d", NO_PASSWORD),
    ("state/database", "postgresql://u:${A}s3cret@h/d", NO_PASSWORD),
    ("state/database", "postgresql://u@h/d?password=s3cret", NO_PASSWORD),
    ("auth/mode", "oidc", "auth.mode: 'oidc' is not 'none' or 'tokens'"),
    ("auth/mode", "tokens", "auth: tokens_file is required when mode is 'tokens'"),
    # models
    ("models", {}, "models: needs at least one entry"),
    ("models", None, "models: expected a mapping, got None"),
    (
        "models/Bad_Name",
        VALID["models"]["moderation"],
        "models.Bad_Name: use lower-case letters, digits and '-', at most 40",
    ),
    ("+baseline", "x", "models.moderation.baseline: 'x' is not among the variants (distilled, int8, teacher)"),
    ("+teacher", "x", "models.moderation.teacher: 'x' is not among the variants (distilled, int8, teacher)"),
    ("+variants", {}, "models.moderation.variants: needs at least one entry"),
    (
        "+variants/Bad",
        {"artifact": "m/x:1"},
        "models.moderation.variants.Bad: use lower-case letters, digits and '-', at most 40",
    ),
    ("+variants/int8", {}, "models.moderation.variants.int8.artifact: is required"),
    (
        "+variants/int8/artifact",
        "int8",
        "models.moderation.variants.int8.artifact: 'int8' is not MODEL/VARIANT:REVISION, such as moderation/int8:1",
    ),
    (
        "+variants/int8/artifact",
        "m/int8:0",
        "models.moderation.variants.int8.artifact: 'm/int8:0' is not MODEL/VARIANT:REVISION, such as moderation/int8:1",
    ),
    ("+variants/int8/runtime", "tf", "models.moderation.variants.int8.runtime: 'tf' is not 'onnxruntime' or 'torch'"),
    (
        "+variants/int8/placement",
        "gpu",
        "models.moderation.variants.int8.placement: 'gpu' is not 'isolated' or 'colocated'",
    ),
    ("+variants/int8/max_batch", 0, "models.moderation.variants.int8.max_batch: 0 is under 1"),
    (
        "+variants/int8/max_batch",
        2.5,
        "models.moderation.variants.int8.max_batch: 2.5: input should be a valid integer",
    ),
    ("+variants/int8/threads", 0, "models.moderation.variants.int8.threads: 0 is under 1"),
    ("+variants/int8/hang_timeout_s", 0, "models.moderation.variants.int8.hang_timeout_s: 0 must be over 0"),
    # routing
    ("+routing/weights/int8", 105, "models.moderation.routing.weights.int8: 105 is over 100"),
    ("+routing/weights/int8", -1, "models.moderation.routing.weights.int8: -1 is under 0"),
    ("+routing/weights/int8", "5", "models.moderation.routing.weights.int8: '5': input should be a valid number"),
    ("+routing/weights/int8", True, "models.moderation.routing.weights.int8: True: input should be a valid number"),
    ("+routing/weights/int8", float("nan"), "models.moderation.routing.weights.int8: nan must be a finite number"),
    (
        "+routing/weights/teacher",
        5,
        "models.moderation.routing.weights.teacher: is the baseline, which gets what the others leave",
    ),
    (
        "+routing/weights/int4",
        5,
        "models.moderation.routing.weights.int4: is not among the variants (distilled, int8, teacher)",
    ),
    (
        "+routing/weights",
        {"int8": 60, "distilled": 60},
        "models.moderation.routing.weights: the weights add up to 120, over 100",
    ),
    ("+routing/shadow/int8", 500, "models.moderation.routing.shadow.int8: 500 is over 100"),
    (
        "+routing/shadow/nope",
        5,
        "models.moderation.routing.shadow.nope: is not among the variants (distilled, int8, teacher)",
    ),
    (
        "+routing/shadow/teacher",
        5,
        "models.moderation.routing.shadow.teacher: is the baseline, which gets what the others leave",
    ),
    ("+routing/reference_percent", 101, "models.moderation.routing.reference_percent: 101 is over 100"),
    (
        "+routing/sticky_key",
        "cookie",
        "models.moderation.routing.sticky_key: 'cookie' is neither 'request_id' nor 'header:NAME'",
    ),
    (
        "+routing/fallback/on",
        ["boom"],
        "models.moderation.routing.fallback.on.0: 'boom' is not 'error', 'timeout' or 'invalid_output'",
    ),
    ("+routing/fallback/budget_ms", 0, "models.moderation.routing.fallback.budget_ms: 0 is under 1"),
    ("+routing/queue/max_rows", 0, "models.moderation.routing.queue.max_rows: 0 is under 1"),
    ("+routing/queue/max_rowz", 5, "models.moderation.routing.queue.max_rowz: unknown key"),
    # objectives, guards, capacity
    (
        "+slo",
        [{"name": "latency", "objective": 0.99}],
        "models.moderation.slo.0: threshold_ms is required for a latency SLO",
    ),
    (
        "+slo",
        [{**AVAILABILITY, "threshold_ms": 5}],
        "models.moderation.slo.0: threshold_ms has no meaning for an availability SLO",
    ),
    ("+slo", [LATENCY, {**AVAILABILITY, "objective": 99}], "models.moderation.slo.1.objective: 99 must be under 1"),
    ("+slo", [LATENCY, LATENCY], "models.moderation.slo: each name may occur once"),
    (
        "+slo",
        [{**LATENCY, "window": "1h"}],
        "models.moderation.slo.0.window: '1h': string should match pattern '^[1-9][0-9]*d$'",
    ),
    (
        "+slo",
        [{**AVAILABILITY, "window": "31d"}],
        "models.moderation.slo.0.window: 31d is over 30d: the monitor looks no further back",
    ),
    (
        "+slo",
        [{**LATENCY, "name": "speed"}],
        "models.moderation.slo.0.name: 'speed' is not 'latency' or 'availability'",
    ),
    ("+guards/false_rollback", 0, "models.moderation.guards.false_rollback: 0 must be over 0"),
    ("+guards/monitor_loss", "x", "models.moderation.guards.monitor_loss: 'x' is not 'baseline' or 'hold'"),
    ("+guards/invalid_output/limit", 0, "models.moderation.guards.invalid_output.limit: 0 is under 1"),
    ("+guards/errors/ratio", 0.5, "models.moderation.guards.errors.ratio: 0.5 is under 1"),
    ("+guards/latency/quantile", 0.4, "models.moderation.guards.latency.quantile: 0.4 must be over 0.5"),
    ("+guards/agreement/gross_factor", 1, "models.moderation.guards.agreement.gross_factor: 1 must be over 1"),
    ("+guards/harm/budget", 1, "models.moderation.guards.harm.budget: 1 must be under 1"),
]


@pytest.mark.parametrize(("path", "value", "message"), MISTAKES, ids=[f"{path}={value}" for path, value, _ in MISTAKES])
def test_a_mistake_is_refused_with_its_path(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(with_value(path, value))
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")], ids=str)
@pytest.mark.parametrize(
    "path",
    [
        "guards/monitor_loss_s",
        "guards/latency/margin_ms",
        "guards/agreement/gross_factor",
        "guards/interference/margin",
        "slo/0/threshold_ms",
        "kpis/revenue/range/1",
        "routing/queue/max_wait_ms",
    ],
)
def test_a_number_that_is_not_finite_is_refused_with_its_path(path: str, value: float) -> None:
    """Processes get the configuration as JSON, which has no word for one: none of them could start."""
    document = with_value("+slo", [dict(LATENCY)])
    node: Any = document["models"]["moderation"]
    node["kpis"] = {"revenue": {"range": [0.0, 1.0], "margin": 0.1}}
    *parents, last = [int(part) if part.isdecimal() else part for part in path.split("/")]
    for parent in parents:
        node = node[parent] if isinstance(node, list) else node.setdefault(parent, {})
    node[last] = value
    with pytest.raises(ConfigError) as caught:
        parse_config(document)
    assert str(caught.value) == f"models.moderation.{path.replace('/', '.')}: {value} must be a finite number"


def test_every_mistake_is_named_at_once() -> None:
    document = with_value("+routing/weights/int8", 105)
    document["server"] = {"http_port": 0}
    document["typo"] = 1
    with pytest.raises(ConfigError) as caught:
        parse_config(document)
    assert set(str(caught.value).splitlines()) == {
        "models.moderation.routing.weights.int8: 105 is over 100",
        "server.http_port: 0 is under 1",
        "typo: unknown key",
    }


@pytest.mark.parametrize(
    ("field", "message"), [("apiVersion", "apiVersion: is required"), ("models", "models: is required")]
)
def test_what_is_required_is_named(field: str, message: str) -> None:
    document = {name: value for name, value in VALID.items() if name != field}
    with pytest.raises(ConfigError, match=f"^{message}$"):
        parse_config(document)


def test_the_smallest_configuration_has_safe_defaults() -> None:
    config = parse_config(copy.deepcopy(VALID))
    assert (config.server.host, config.auth.mode) == ("127.0.0.1", "none")
    model = config.models["moderation"]
    assert (model.routing.weights, model.routing.shadow, model.guards.monitor_loss) == ({}, {}, "baseline")
    assert model.variants["int8"].placement == "isolated"


def test_all_of_the_traffic_may_go_to_candidates() -> None:
    config = parse_config(with_value("+routing/weights", {"int8": 99.5, "distilled": 0.5}))
    assert sum(config.models["moderation"].routing.weights.values()) == 100


def test_another_address_is_fine_with_authentication() -> None:
    document = with_value("server/host", "0.0.0.0")
    document["auth"] = {"mode": "tokens", "tokens_file": "tokens"}
    assert parse_config(document).server.host == "0.0.0.0"


def test_a_configuration_cannot_be_changed() -> None:
    config = parse_config(copy.deepcopy(VALID))
    with pytest.raises(ValidationError, match="frozen"):
        config.server.http_port = 1  # type: ignore[misc]


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("False", False), ("on", "on"), ("no", "no"), ("trueish", "trueish"), ("5", 5), ("~", None)],
)
def test_words_that_are_booleans_in_yaml_1_1_only_are_words(text: str, value: object) -> None:
    assert yaml12.load(text) == value


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("d: 2024-13-45", "no usable timestamp: month must be in 1..12\n.*line 1, column 4"),
        ("d: !!int ''", "no usable int: "),
        ("d: " + "1" * 5000, "no usable int: Exceeds the limit"),
        ('d: "a\\0b"', r"'a\\x00b' holds the null character or half of a surrogate pair\n.*line 1, column 4"),
        ('labels: [ham, "sp\\ud800am"]', r"'sp\\ud800am' holds the null character or half"),
        ('"\\ud800": 1', r"'\\ud800' holds the null character or half"),
        ("d: !!binary YQBi", "could not determine a constructor for the tag"),
        ("d: " + "[" * 3000, "it is nested too deeply"),
    ],
)
@pytest.mark.parametrize("read", [load_config, load_recipe, load_policy, read_policy])
def test_what_no_setting_can_be_is_an_error_of_the_file(
    tmp_path: Path, read: Callable[[Any], Any], text: str, fault: str
) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"file\.yaml: not valid YAML: {fault}"):
        read(path)


def test_merge_keys_still_work() -> None:
    assert yaml12.load("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}")["b"] == {"x": 1, "y": 3}


TEXT = """
apiVersion: canarium/v1
models:
  moderation:
    baseline: teacher
    variants:
      teacher: {artifact: "moderation/teacher:1"}
      int8: {artifact: "moderation/int8:1"}
    routing:
      fallback: {on: [error, timeout]}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "canarium.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_on_is_a_key_and_not_the_boolean_of_yaml_1_1(file: Path) -> None:
    assert load_config(file).models["moderation"].routing.fallback.on == ("error", "timeout")


def test_overrides_are_laid_over_the_file(file: Path) -> None:
    config = load_config(file, ("server.http_port=9000", "models.moderation.routing.weights.int8=7.5"))
    assert config.server.http_port == 9000
    assert config.models["moderation"].routing.weights == {"int8": 7.5}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("server.http_port", "--set server.http_port: expected dotted.key=value"),
        ("apiVersion.x=1", "--set apiVersion.x=1: apiVersion is not a mapping"),
        ("server.http_port=[", "--set server.http_port=[: '[' is not valid YAML"),
        ("models.moderation.routing.weights.int8=105", "models.moderation.routing.weights.int8: 105 is over 100"),
        (
            "models.moderation.guards.monitor_loss_s=.inf",
            "models.moderation.guards.monitor_loss_s: inf must be a finite number",
        ),
    ],
)
def test_a_bad_override_is_named(file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(file, (override,))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [", "not valid YAML"),
        ("", "expected a mapping with apiVersion and models, got NoneType"),
        ("- 1", "expected a mapping with apiVersion and models, got list"),
        (TEXT + "      weights: {int8: 5, int8: 50}\n", "the key 'int8' occurs twice"),
        (TEXT + "apiVersion: canarium/v1\n", "the key 'apiVersion' occurs twice"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_an_unusable_file_is_named(file: Path, text: str, message: str) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)


def test_a_file_that_is_not_text_or_not_there_is_named(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"canarium\.yaml: not valid YAML"):
        load_config(file)
    with pytest.raises(ConfigError, match="No such file or directory"):
        load_config(file.with_name("absent.yaml"))


def shipped() -> list[Path]:
    return sorted((ROOT / "deployments").rglob("canarium*.yaml"))


@pytest.mark.parametrize("path", shipped(), ids=lambda path: str(path.relative_to(ROOT)))
def test_shipped_configurations_are_valid(path: Path) -> None:
    assert isinstance(load_config(path), Config)


def test_variants_of_all_models_are_counted_together_and_a_gateway_counts_64_at_most() -> None:
    def document(count: int) -> dict[str, Any]:
        names = [f"v{number}" for number in range(count)]
        halves = {"a": names[: count // 2], "b": names[count // 2 :]}
        models = {
            model: {"baseline": half[0], "variants": {name: {"artifact": f"{model}/{name}:1"} for name in half}}
            for model, half in halves.items()
        }
        return {"apiVersion": "canarium/v1", "models": models}

    assert len(parse_config(document(64)).models["b"].variants) == 32
    with pytest.raises(ConfigError) as caught:
        parse_config(document(65))
    assert str(caught.value) == (
        "models: 65 variants of all models together, a gateway counts 64 at most; "
        "take some out or serve some models by another deployment"
    )
