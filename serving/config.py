"""The configuration file: frozen, typed, unknown keys refused, errors carry their path.

Read once, in the composition root (`cli`, `app`); everything else receives the values.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, field_validator, model_validator

from serving import yaml12
from serving.contract import GUARDS
from serving.errors import ConfigError
from serving.governance.settings import CardConfig, GovernanceConfig, SystemCardConfig

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
LOOPBACK = ("127.0.0.1", "localhost", "::1")

Percent = Annotated[float, Strict(), Field(ge=0, le=100)]
Port = Annotated[int, Strict(), Field(ge=1, le=65535)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerConfig(_Section):
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


class StateConfig(_Section):
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


class RegistryConfig(_Section):
    dir: str = ".canarium/registry"


class AuthConfig(_Section):
    """`none` is allowed on loopback only; `tokens` reads `name:role:sha256` lines."""

    mode: Literal["none", "tokens"] = "none"
    tokens_file: str | None = None
    data_plane: Literal["tokens", "open"] = "tokens"

    @model_validator(mode="after")
    def _file_given(self) -> AuthConfig:
        if self.mode == "tokens" and not self.tokens_file:
            raise ValueError("tokens_file is required when mode is 'tokens'")
        return self


class VariantConfig(_Section):
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


class OverrideConfig(_Section):
    header: str = "x-canarium-variant"
    role: Literal["viewer", "tester", "labeller", "operator", "release-manager", "admin"] = "tester"


class FallbackConfig(_Section):
    """When the baseline answers in a candidate's place, and how much time it is left."""

    on: tuple[Literal["error", "timeout", "invalid_output"], ...] = ("error", "timeout", "invalid_output")
    budget_ms: Annotated[int, Strict(), Field(ge=1, le=60_000)] = 200


class QueueConfig(_Section):
    """What waits for a variant, and for how long; `max_wait_ms` None: see `ModelConfig.queue`."""

    max_rows: Annotated[int, Strict(), Field(ge=1, le=1_000_000)] = 256
    max_queue_delay_ms: Annotated[float, Strict(), Field(ge=0, le=10_000)] = 0
    max_wait_ms: Annotated[float, Strict(), Field(gt=0, le=600_000)] | None = None
    default_timeout_ms: Annotated[int, Strict(), Field(ge=1, le=600_000)] = 1000


class RoutingConfig(_Section):
    sticky_key: str = "header:x-user-id"
    weights: dict[str, Percent] = {}
    shadow: dict[str, Percent] = {}
    reference_percent: Percent = 5
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


class CapacityConfig(_Section):
    """What is done about a baseline that could not carry all traffic alone, which a kill may ask of it."""

    #: shed: after a kill the excess is refused (503); reserve: no more is ever taken than the baseline can do (429).
    on_kill: Literal["shed", "reserve"] = "shed"


class SloConfig(_Section):
    """One service level objective over a rolling window."""

    name: Literal["latency", "availability"]
    objective: Annotated[float, Strict(), Field(gt=0, lt=1)]
    threshold_ms: Annotated[float, Strict(), Field(gt=0)] | None = None
    window: Annotated[str, Field(pattern=r"^[1-9][0-9]*d$")] = "30d"

    @model_validator(mode="after")
    def _latency_needs_threshold(self) -> SloConfig:
        if self.name == "latency" and self.threshold_ms is None:
            raise ValueError("threshold_ms is required for a latency SLO")
        if self.name == "availability" and self.threshold_ms is not None:
            raise ValueError("threshold_ms has no meaning for an availability SLO")
        return self


class InvalidOutputGuard(_Section):
    limit: Annotated[int, Strict(), Field(ge=1)] = 3


class ErrorsGuard(_Section):
    """`ratio` is the tolerated ratio r of the candidate's error odds to the baseline's."""

    ratio: Annotated[float, Strict(), Field(ge=1)] = 1.25


class LatencyGuard(_Section):
    """Tail race over the baseline's running `quantile`; `margin` is the tolerated excess."""

    quantile: Annotated[float, Strict(), Field(gt=0.5, lt=1)] = 0.99
    margin: Annotated[float, Strict(), Field(ge=0)] = 0.25
    margin_ms: Annotated[float, Strict(), Field(ge=0)] = 5.0


class AgreementGuard(_Section):
    """Top-1 flips against the teacher: limit = reference disagreement + margin, gross = limit x factor."""

    margin: Annotated[float, Strict(), Field(ge=0, le=1)] = 0.02
    limit: Annotated[float, Strict(), Field(gt=0, lt=1)] | None = None
    gross_factor: Annotated[float, Strict(), Field(gt=1)] = 3.0


class HarmGuard(_Section):
    """Labelled flips (teacher right, candidate wrong) per labelled pair."""

    budget: Annotated[float, Strict(), Field(gt=0, lt=1)] = 0.03


class CalibrationGuard(_Section):
    """Confidence against what it was worth when the variant was built; `margin` is the tolerated difference."""

    margin: Annotated[float, Strict(), Field(gt=0, lt=1)] = 0.02


class InterferenceGuard(_Section):
    """The baseline's latency while a candidate has traffic, against its own before."""

    margin: Annotated[float, Strict(), Field(ge=0)] = 1.0
    margin_ms: Annotated[float, Strict(), Field(ge=0)] = 5.0
    spells: Annotated[float, Strict(), Field(gt=0, lt=1)] = 0.5


class SlicesGuard(_Section):
    """Declared slices by themselves; `factor` times the limit of `agreement` is tolerated in each."""

    factor: Annotated[float, Strict(), Field(ge=1)] = 3.0


class GuardsConfig(_Section):
    """The statistical guards and the error budgets of their alarms and of their passes."""

    false_rollback: Annotated[float, Strict(), Field(gt=0, lt=1)] = 0.01
    #: A candidate over any required guard's limit is promoted only if that very guard passes by mistake,
    #: so each guard has the whole budget.
    false_promotion: Annotated[float, Strict(), Field(gt=0, lt=1)] = 0.05
    monitor_loss: Literal["baseline", "hold"] = "baseline"
    monitor_loss_s: Annotated[float, Strict(), Field(gt=0)] = 60.0
    invalid_output: InvalidOutputGuard = InvalidOutputGuard()
    errors: ErrorsGuard = ErrorsGuard()
    latency: LatencyGuard = LatencyGuard()
    agreement: AgreementGuard = AgreementGuard()
    harm: HarmGuard = HarmGuard()
    calibration: CalibrationGuard = CalibrationGuard()
    slices: SlicesGuard = SlicesGuard()
    interference: InterferenceGuard = InterferenceGuard()
    #: Guards that only observe.
    dry_run: tuple[str, ...] = ()

    @field_validator("dry_run")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in names if name not in GUARDS]:
            raise ValueError(f"unknown guard {unknown[0]!r}, expected some of {', '.join(GUARDS)}")
        return names


class KpiConfig(_Section):
    """A business KPI that comes back as feedback; values are clipped to `range`, `margin` is in its unit."""

    range: tuple[Annotated[float, Strict()], Annotated[float, Strict()]] = (0.0, 1.0)
    direction: Literal["higher_is_better", "lower_is_better"] = "higher_is_better"
    margin: Annotated[float, Strict(), Field(gt=0)]

    @model_validator(mode="after")
    def _margin_fits(self) -> KpiConfig:
        low, high = self.range
        if not low < high:
            raise ValueError(f"range: {low:g} is not under {high:g}")
        if self.margin >= high - low:
            raise ValueError(f"margin: {self.margin:g} is not under the width of the range, {high - low:g}")
        return self


class SliceConfig(_Section):
    """A part of the traffic: by the length of a text input, or by a header (letters' case does not matter)."""

    input: str | None = None
    min_chars: Annotated[int, Strict(), Field(ge=0)] = 0
    max_chars: Annotated[int, Strict(), Field(ge=0)] | None = None
    header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] | None = None
    prefix: Annotated[str, Field(min_length=1)] | None = None
    equals: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_rule(self) -> SliceConfig:
        if (self.input is None) == (self.header is None):
            raise ValueError("goes either by an input or by a header")
        bounds, values = self.min_chars > 0 or self.max_chars is not None, bool(self.prefix or self.equals)
        if self.input is not None and (values or not bounds):
            raise ValueError("an input is parted by min_chars and max_chars")
        if self.header is not None and (bounds or not values):
            raise ValueError("a header is parted by prefix and equals")
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ValueError(f"max_chars: {self.max_chars} is under min_chars, {self.min_chars}")
        return self


class PayloadsConfig(_Section):
    """Derived features of sampled live requests, kept for drift reports; at 0 percent nothing is kept."""

    percent: Percent = 0
    keep_hours: Annotated[float, Strict(), Field(gt=0, le=8760)] = 72.0
    keep_mib: Annotated[int, Strict(), Field(ge=1, le=65_536)] = 64


class DriftConfig(_Section):
    """Reports that compare those features with what the build measured; 0 minutes: on demand only."""

    every_minutes: Annotated[float, Strict(), Field(ge=0, le=10_080)] = 60.0
    window_hours: Annotated[float, Strict(), Field(gt=0, le=8760)] = 24.0
    min_rows: Annotated[int, Strict(), Field(ge=30, le=100_000)] = 200
    least_distance: Annotated[float, Strict(), Field(gt=0, le=10)] = 0.1
    false_alarm: Annotated[float, Strict(), Field(ge=0.0005, lt=1)] = 0.001
    timeout_s: Annotated[float, Strict(), Field(gt=0, le=3600)] = 300.0
    keep_reports: Annotated[int, Strict(), Field(ge=1, le=10_000)] = 24


class GoldenConfig(_Section):
    """Rows with known answers that every variant in use is asked again and again; 0 minutes: never."""

    every_minutes: Annotated[float, Strict(), Field(ge=0, le=10_080)] = 0
    file: str | None = None
    floor: Annotated[float, Strict(), Field(ge=0, le=1)] = 0
    flips_max: Annotated[float, Strict(), Field(ge=0, le=1)] = 0.02


class ModelConfig(_Section):
    """One model: its variants, how traffic is routed and what is watched."""

    baseline: str
    teacher: str | None = None
    variants: Annotated[dict[str, VariantConfig], Field(min_length=1)]
    routing: RoutingConfig = RoutingConfig()
    capacity: CapacityConfig = CapacityConfig()
    slo: tuple[SloConfig, ...] = ()
    guards: GuardsConfig = GuardsConfig()
    slices: Annotated[dict[str, SliceConfig], Field(max_length=20)] = {}
    #: In place of `governance.policy`.
    policy: str | None = None
    card: CardConfig = CardConfig()
    kpis: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")], KpiConfig] = {}
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


class Config(_Section):
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
            return str(Path(path).resolve())

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
        return self


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
