"""The configuration file: frozen, typed, unknown keys refused, errors carry their path.

Read once, in the composition root (`cli`, `app`); everything else receives the values.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

import yaml
from pydantic import Field, Strict, ValidationError, field_validator, model_validator

from serving import yaml12
from serving.config_monitoring import (
    DriftConfig,
    GoldenConfig,
    GuardsConfig,
    KpiConfig,
    PayloadsConfig,
    SliceConfig,
)
from serving.config_section import Percent, Section
from serving.contract import SERIES_MAX
from serving.errors import ConfigError
from serving.governance.policy import Policy
from serving.governance.settings import CardConfig, GovernanceConfig, SystemCardConfig

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
#: Days that the monitor's history of an objective goes back.
WINDOW_DAYS_MAX = 30
LOOPBACK = ("127.0.0.1", "localhost", "::1")

Port = Annotated[int, Strict(), Field(ge=1, le=65535)]


class ServerConfig(Section):
    """Addresses and processes."""

    host: str = "127.0.0.1"
    http_port: Port = 8000
    grpc_port: Port = 8001
    monitor_port: Port = 8002
    control_port: Port = 8003
    gateways: Annotated[int, Strict(), Field(ge=1, le=64)] = 1
    max_body_mib: Annotated[int, Strict(), Field(ge=1, le=1024)] = 64
    max_inflight_mib: Annotated[int, Strict(), Field(ge=1, le=16384)] = 256

    @property
    def reachable(self) -> str:
        """The address by which this machine reaches what listens on `host`."""
        return {"0.0.0.0": "127.0.0.1", "localhost": "127.0.0.1", "::": "::1"}.get(self.host, self.host)

    def urls(self) -> dict[str, str]:
        """Addresses of the four servers, an IPv6 address in brackets."""
        host = f"[{self.reachable}]" if ":" in self.reachable else self.reachable
        return {
            "http": f"http://{host}:{self.http_port}",
            "grpc": f"{host}:{self.grpc_port}",
            "monitor": f"http://{host}:{self.monitor_port}",
            "control": f"http://{host}:{self.control_port}",
        }

    @model_validator(mode="after")
    def _ports_differ(self) -> ServerConfig:
        ports = [self.http_port, self.grpc_port, self.monitor_port, self.control_port]
        if len(set(ports)) != len(ports):
            raise ValueError(f"http_port, grpc_port, monitor_port and control_port must differ, got {ports}")
        return self


class StateConfig(Section):
    """Where the control plane and the spools keep their files."""

    dir: str = ".canarium"
    database: str = "sqlite"

    @field_validator("database")
    @classmethod
    def _known_database(cls, value: str) -> str:
        if value != "sqlite":
            _check_database_url(value)
        return value


def _check_database_url(value: str) -> None:
    """Raises `ValueError`, without the URL: what is wrong with it may be a password."""
    form = "postgresql+psycopg://USER:${PASSWORD}@HOST/DATABASE"
    try:
        url = urlsplit(value)
    except ValueError:
        raise ValueError(f"is not a URL such as {form}") from None
    if url.scheme not in ("postgresql", "postgresql+psycopg"):
        raise ValueError(f"expected 'sqlite' or a URL such as {form}")
    if not url.path.strip("/"):
        raise ValueError(f"names no database: expected {form}")
    secrets = [url.password, *(text for key, text in parse_qsl(url.query) if key in ("password", "sslpassword"))]
    if any(secret and not re.fullmatch(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}", secret) for secret in secrets):
        raise ValueError(
            "a password has no place in this file: write ${NAME} for an environment variable, or use PGPASSFILE "
            "or CANARIUM_DATABASE_URL"
        )


class RegistryConfig(Section):
    dir: str = ".canarium/registry"


class AuthConfig(Section):
    """`none` is allowed on loopback only; `tokens` reads `name:role:sha256` lines."""

    mode: Literal["none", "tokens"] = "none"
    tokens_file: str | None = None
    data_plane: Literal["tokens", "open"] = "tokens"

    @model_validator(mode="after")
    def _file_given(self) -> AuthConfig:
        if self.mode == "tokens" and not self.tokens_file:
            raise ValueError("tokens_file is required when mode is 'tokens'")
        return self


class VariantConfig(Section):
    """One variant: which artifact, how it runs, where it lives."""

    artifact: str
    runtime: Literal["onnxruntime", "torch"] = "onnxruntime"
    placement: Literal["isolated", "colocated"] = "isolated"
    replicas: Annotated[int, Strict(), Field(ge=1, le=64)] = 1
    max_batch: Annotated[int, Strict(), Field(ge=1, le=1024)] = 16
    threads: Annotated[int, Strict(), Field(ge=1, le=256)] = 1
    hang_timeout_s: Annotated[float, Strict(), Field(gt=0, le=3600)] = 10.0
    #: auto: Unix socket on the same node, Serve handle between nodes; handle: always the handle.
    transport: Literal["auto", "handle"] = "auto"

    @field_validator("artifact")
    @classmethod
    def _artifact_ref(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+(:([1-9][0-9]*|[a-z]([a-z0-9-]{0,38}[a-z0-9])?))?", value):
            raise ValueError(f"{value!r} is not MODEL/VARIANT:REVISION, such as moderation/int8:1")
        return value


class OverrideConfig(Section):
    header: str = "x-canarium-variant"
    role: Literal["viewer", "tester", "labeller", "operator", "release-manager", "admin"] = "tester"


class FallbackConfig(Section):
    """When the baseline answers in a candidate's place, and how much time it is left."""

    on: tuple[Literal["error", "timeout", "invalid_output"], ...] = ("error", "timeout", "invalid_output")
    budget_ms: Annotated[int, Strict(), Field(ge=1, le=60_000)] = 200


class QueueConfig(Section):
    """What waits for a variant, and for how long; `max_wait_ms` None: see `ModelConfig.queue`."""

    max_rows: Annotated[int, Strict(), Field(ge=1, le=1_000_000)] = 256
    max_queue_delay_ms: Annotated[float, Strict(), Field(ge=0, le=10_000)] = 0
    max_wait_ms: Annotated[float, Strict(), Field(gt=0, le=600_000)] | None = None
    default_timeout_ms: Annotated[int, Strict(), Field(ge=1, le=600_000)] = 1000


class RoutingConfig(Section):
    sticky_key: str = "header:x-user-id"
    weights: dict[str, Percent] = Field(default_factory=dict)
    shadow: dict[str, Percent] = Field(default_factory=dict)
    reference_percent: Percent = 5
    noise_percent: Percent = 1
    override: OverrideConfig = OverrideConfig()
    fallback: FallbackConfig = FallbackConfig()
    queue: QueueConfig = QueueConfig()

    @field_validator("sticky_key")
    @classmethod
    def _sticky_source(cls, value: str) -> str:
        if value != "request_id" and not re.fullmatch(r"header:[A-Za-z0-9-]+", value):
            raise ValueError(f"{value!r} is neither 'request_id' nor 'header:NAME'")
        return value

    @field_validator("weights")
    @classmethod
    def _sum(cls, value: dict[str, float]) -> dict[str, float]:
        if sum(value.values()) > 100:
            raise ValueError(f"the weights add up to {sum(value.values()):g}, over 100")
        return value


class CapacityConfig(Section):
    """What is done about a baseline that could not carry all traffic alone, which a kill may ask of it."""

    #: shed: after a kill the excess is refused (503); reserve: no more is ever taken than the baseline can do (429).
    on_kill: Literal["shed", "reserve"] = "shed"


class SloConfig(Section):
    """One service level objective over a rolling window."""

    name: Literal["latency", "availability"]
    objective: Annotated[float, Strict(), Field(gt=0, lt=1)]
    threshold_ms: Annotated[float, Strict(), Field(gt=0)] | None = None
    window: Annotated[str, Field(pattern=r"^[1-9][0-9]*d$")] = "30d"

    @model_validator(mode="after")
    def _sound(self) -> SloConfig:
        if self.name == "latency" and self.threshold_ms is None:
            raise ValueError("threshold_ms is required for a latency SLO")
        if self.name == "availability" and self.threshold_ms is not None:
            raise ValueError("threshold_ms has no meaning for an availability SLO")
        if self.window_days > WINDOW_DAYS_MAX:
            raise ValueError(f"window: {self.window} is over {WINDOW_DAYS_MAX}d: the monitor looks no further back")
        return self

    @property
    def window_days(self) -> int:
        """The window as a number."""
        return int(self.window.removesuffix("d"))


class ModelConfig(Section):
    """One model: its variants, how traffic is routed and what is watched."""

    baseline: str
    teacher: str | None = None
    variants: Annotated[dict[str, VariantConfig], Field(min_length=1)]
    routing: RoutingConfig = RoutingConfig()
    capacity: CapacityConfig = CapacityConfig()
    slo: tuple[SloConfig, ...] = ()
    guards: GuardsConfig = GuardsConfig()
    slices: dict[str, SliceConfig] = Field(default_factory=dict, max_length=20)
    #: In place of `governance.policy`.
    policy: str | None = None
    card: CardConfig = CardConfig()
    kpis: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")], KpiConfig] = Field(default_factory=dict)
    payloads: PayloadsConfig = PayloadsConfig()
    drift: DriftConfig = DriftConfig()
    golden: GoldenConfig = GoldenConfig()

    @property
    def queue(self) -> QueueConfig:
        """`routing.queue` with `max_wait_ms` filled in.

        It is half of what a request may take altogether (the threshold of the latency SLO, or the default
        deadline): the other half is for its own batch and the way there and back.
        """
        queue = self.routing.queue
        if queue.max_wait_ms is not None:
            return queue
        whole_ms = next((slo.threshold_ms for slo in self.slo if slo.threshold_ms), queue.default_timeout_ms)
        return queue.model_copy(update={"max_wait_ms": whole_ms / 2})

    @model_validator(mode="after")
    def _names_exist(self) -> ModelConfig:
        known = ", ".join(sorted(self.variants))
        for field, name in (("baseline", self.baseline), ("teacher", self.teacher or self.baseline)):
            if name not in self.variants:
                raise ValueError(f"{field}: {name!r} is not among the variants ({known})")
        for section in ("weights", "shadow"):
            for name in getattr(self.routing, section):
                if name not in self.variants:
                    raise ValueError(f"routing.{section}.{name}: is not among the variants ({known})")
                if name == self.baseline:
                    raise ValueError(f"routing.{section}.{name}: is the baseline, which gets what the others leave")
        for name in self.variants:
            if not NAME.fullmatch(name):
                raise ValueError(f"variants.{name}: use lower-case letters, digits and '-', at most 40")
        for name in self.slices:
            if not NAME.fullmatch(name):
                raise ValueError(f"slices.{name}: use lower-case letters, digits and '-', at most 40")
        if len({slo.name for slo in self.slo}) != len(self.slo):
            raise ValueError("slo: each name may occur once")
        return self


class Config(Section):
    """A whole deployment."""

    apiVersion: Literal["canarium/v1"]
    server: ServerConfig = ServerConfig()
    state: StateConfig = StateConfig()
    registry: RegistryConfig = RegistryConfig()
    auth: AuthConfig = AuthConfig()
    governance: GovernanceConfig = GovernanceConfig()
    card: SystemCardConfig = SystemCardConfig()
    models: Annotated[dict[str, ModelConfig], Field(min_length=1)]

    def absolute(self) -> Config:
        """The same with every path absolute, for processes with another working directory."""

        def full(path: str) -> str:
            return os.path.abspath(path)  # links stay links: a mounted Secret is renewed by moving one

        def policy(given: str) -> str:
            return full(given) if "." in given or "/" in given else given  # the names of built-in ones have neither

        auth = self.auth
        if auth.tokens_file:
            auth = auth.model_copy(update={"tokens_file": full(auth.tokens_file)})
        state = self.state.model_copy(update={"dir": full(self.state.dir)})
        registry = self.registry.model_copy(update={"dir": full(self.registry.dir)})
        governance = self.governance.model_copy(update={"policy": policy(self.governance.policy)})
        models = {
            name: model.model_copy(
                update={
                    "policy": policy(model.policy) if model.policy else model.policy,
                    "golden": model.golden.model_copy(update={"file": full(model.golden.file)})
                    if model.golden.file
                    else model.golden,
                }
            )
            for name, model in self.models.items()
        }
        parts = {"state": state, "registry": registry, "auth": auth, "governance": governance, "models": models}
        return self.model_copy(update=parts)

    @model_validator(mode="after")
    def _safe(self) -> Config:
        if self.server.host not in LOOPBACK and self.auth.mode == "none":
            raise ValueError(
                f"server.host: {self.server.host} is reachable from other machines, which needs auth.mode: tokens; "
                "use 127.0.0.1 or configure authentication"
            )
        for name in self.models:
            if not NAME.fullmatch(name):
                raise ValueError(f"models.{name}: use lower-case letters, digits and '-', at most 40")
        variants = sum(len(model.variants) for model in self.models.values())
        if variants > SERIES_MAX:
            raise ValueError(
                f"models: {variants} variants of all models together, a gateway counts {SERIES_MAX} at most; "
                "take some out or serve some models by another deployment"
            )
        return self


class Started(Config):
    """A configuration as its processes receive it: with what its policies said when it was started.

    So one that is replaced later judges as the others do, whatever has become of the files.
    """

    #: Model -> policy; None: nobody has read them yet.
    policies: dict[str, Policy] | None = None


def load_config(path: str | Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read and check a configuration file.

    Args:
        path: the YAML file.
        overrides: `dotted.key=value` strings laid over the file; the value is YAML.

    Raises:
        ConfigError: the file cannot be read or used; one line a fault, each starting with its path.
    """
    try:
        document = yaml12.load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected a mapping with apiVersion and models, got {type(document).__name__}")
    for override in overrides:
        _apply_override(document, override)
    return parse_config(document)


def parse_config(document: dict[str, Any]) -> Config:
    """Check a decoded document. Raises `ConfigError` naming every faulty path."""
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise ConfigError("\n".join(_fault(item) for item in error.errors())) from None


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign:
        raise ConfigError(f"--set {override}: expected dotted.key=value")
    *parents, last = key.split(".")
    node: Any = document
    for part in parents:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override}: {part} is not a mapping")
    try:
        node[last] = yaml12.load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: {text!r} is not valid YAML: {error}") from error


def _fault(item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"] if part != "[key]")
    given, context = item.get("input"), item.get("ctx", {})
    messages = {
        "extra_forbidden": "unknown key",
        "missing": "is required",
        "less_than_equal": f"{given} is over {_number(context.get('le'))}",
        "greater_than_equal": f"{given} is under {_number(context.get('ge'))}",
        "less_than": f"{given} must be under {_number(context.get('lt'))}",
        "greater_than": f"{given} must be over {_number(context.get('gt'))}",
        "finite_number": f"{given} must be a finite number",
        "literal_error": f"{given!r} is not {context.get('expected')}",
        "model_type": f"expected a mapping, got {given!r}",
        "dict_type": f"expected a mapping, got {given!r}",
        "too_short": "needs at least one entry",
        "value_error": str(context.get("error", "")),
    }
    message = messages.get(item["type"]) or f"{given!r}: {item['msg'][0].lower()}{item['msg'][1:]}"
    if item["type"] == "value_error" and re.match(r"[a-z_]+(\.[\w-]+)*: ", message):
        return f"{path}.{message}" if path else message
    return f"{path}: {message}" if path else message


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
