"""The monitor's configuration: one JSON file that `canarium up` writes from the checked YAML."""

from __future__ import annotations

from pathlib import Path

import msgspec

from monitoring.detectors.kpi import KpiTarget


class SloTarget(msgspec.Struct, frozen=True):
    """One objective over a rolling window; `threshold_ms` for latency only."""

    name: str
    objective: float
    threshold_ms: float | None = None
    window_s: float = 30 * 86_400.0


class InvalidOutputSettings(msgspec.Struct, frozen=True):
    limit: int = 3


class ErrorsSettings(msgspec.Struct, frozen=True):
    ratio: float = 1.25


class LatencySettings(msgspec.Struct, frozen=True):
    quantile: float = 0.99
    margin: float = 0.25
    margin_ms: float = 5.0


class AgreementSettings(msgspec.Struct, frozen=True):
    margin: float = 0.02
    limit: float | None = None
    gross_factor: float = 3.0


class HarmSettings(msgspec.Struct, frozen=True):
    budget: float = 0.03


class CalibrationSettings(msgspec.Struct, frozen=True):
    margin: float = 0.02


class InterferenceSettings(msgspec.Struct, frozen=True):
    margin: float = 1.0
    margin_ms: float = 5.0
    spells: float = 0.5


class SaturationSettings(msgspec.Struct, frozen=True):
    """`every_s` 0: nobody audits."""

    every_s: float = 1.0
    factor: float = 5.0
    floor: float = 0.01


class OodSettings(msgspec.Struct, frozen=True):
    """`every_s` 0: nobody looks at embeddings."""

    margin: float = 0.02
    every_s: float = 0.0


class SlicesSettings(msgspec.Struct, frozen=True):
    factor: float = 3.0


class GuardSettings(msgspec.Struct, frozen=True):
    """The guards of one model (see the `guards` section of the configuration file)."""

    false_rollback: float = 0.01
    false_promotion: float = 0.05
    monitor_loss: str = "baseline"
    monitor_loss_s: float = 60.0
    invalid_output: InvalidOutputSettings = InvalidOutputSettings()
    errors: ErrorsSettings = ErrorsSettings()
    latency: LatencySettings = LatencySettings()
    agreement: AgreementSettings = AgreementSettings()
    harm: HarmSettings = HarmSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    slices: SlicesSettings = SlicesSettings()
    saturation: SaturationSettings = SaturationSettings()
    interference: InterferenceSettings = InterferenceSettings()
    ood: OodSettings = OodSettings()
    dry_run: tuple[str, ...] = ()  # guards that only observe


class ReliabilityMap(msgspec.Struct, frozen=True):
    """How sure a variant was when it was built, and how often it was right then; frozen. One entry a bin.

    A bin holds the rows whose probability of the named class lies between two edges (the upper one excluded); all
    have about as many rows.

    Args:
        edges: ascending; one fewer than there are bins.
        rows: rows of the bin.
        confidence: mean probability of the class that was named.
        frequency: share of rows on which that class was the true one.
        teacher: mean probability that the teacher gave to that class; None: there was no teacher.
        teacher_sd: standard deviation, within the bin, of the teacher's probability less the variant's own.
    """

    edges: tuple[float, ...]
    rows: tuple[int, ...]
    confidence: tuple[float, ...]
    frequency: tuple[float, ...]
    teacher: tuple[float, ...] | None = None
    teacher_sd: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Raises `ValueError` if the parts do not fit together."""
        bins = len(self.rows)
        for name in ("confidence", "frequency", "teacher", "teacher_sd"):
            part = getattr(self, name)
            if part is not None and len(part) != bins:
                raise ValueError(f"{name}: {len(part)} entries for {bins} bins")
        if len(self.edges) != bins - 1 or list(self.edges) != sorted(self.edges):
            raise ValueError(f"edges: expected {bins - 1} ascending, got {list(self.edges)}")


class DriftSettings(msgspec.Struct, frozen=True):
    """Drift reports of one model, and how long its sampled rows are kept; `every_s` 0: on demand only."""

    sampled: bool = False
    every_s: float = 3600.0
    window_s: float = 86_400.0
    min_rows: int = 200
    least_distance: float = 0.1
    false_alarm: float = 0.001
    timeout_s: float = 300.0
    keep_reports: int = 24
    keep_rows_s: float = 259_200.0
    keep_rows_bytes: int = 64 << 20


class GoldenSettings(msgspec.Struct, frozen=True):
    """Golden rows of one model; `every_s` 0: never. `file`: rows in place of those of the artifacts."""

    every_s: float = 0.0
    file: str = ""
    floor: float = 0.0
    flips_max: float = 0.02


class MonitorVariant(msgspec.Struct, frozen=True):
    """What the manifest says of a variant.

    Args:
        reference_disagreement: share of test rows on which it differs from the teacher, if measured.
        reliability: how calibrated it was when it was built, if measured.
        saturation: share of its activations outside their ranges on held-out rows, 0 if that was not measured; None: it
            is no static INT8, which has no ranges.
        energy_threshold: energy that 1 % of the held-out rows exceeded; None: that is not known.
        embeddings: distances of its embeddings can be measured.
        temperature: by which its logits are divided.
        reference, golden: the files with features of held-out rows and with golden rows; "": there is none.
        same_isa: it was built on a processor with the instruction sets of this one.
    """

    version: int = 0
    reference_disagreement: float | None = None
    reliability: ReliabilityMap | None = None
    temperature: float = 1.0
    saturation: float | None = None
    energy_threshold: float | None = None
    embeddings: bool = False
    reference: str = ""
    golden: str = ""
    same_isa: bool = False


class MonitorModel(msgspec.Struct, frozen=True):
    baseline: str
    teacher: str
    variants: dict[str, MonitorVariant]
    slo: list[SloTarget] = []
    guards: GuardSettings = GuardSettings()
    labels: list[str] = []
    slices: tuple[str, ...] = ()  # names of the declared slices, in the order of their bits
    kpis: list[KpiTarget] = []
    drift: DriftSettings = DriftSettings()
    golden: GoldenSettings = GoldenSettings()

    def golden_file(self, variant: str) -> str:
        """The golden rows that a variant is asked; "" if there are none. Raises `KeyError` for an unknown one."""
        return self.golden.file or self.variants[variant].golden


#: Environment variable with the token by which the monitor speaks to the control plane.
TOKEN_VARIABLE = "CANARIUM_MONITOR_TOKEN"


class MonitorConfig(msgspec.Struct, frozen=True):
    """All that the monitor is told; paths may be relative to its working directory."""

    instance: str
    spool_dir: str
    state_dir: str
    word_path: str
    control_url: str
    models: dict[str, MonitorModel]
    host: str = "127.0.0.1"
    port: int = 8002
    token: str | None = None
    payload_dir: str = ""
    inference_url: str = ""
    poll_ms: int = 50
    commit_s: float = 2.0


def with_token(config: MonitorConfig, text: str) -> MonitorConfig:
    """The configuration with a token from `TOKEN_VARIABLE`, which ends in a newline where a Secret was made of a file.

    Raises `ValueError` if no header can carry it: a client that tries to quotes it in its errors, which are logged.
    """
    token = text.strip()
    if not (token.isascii() and token.isprintable()):
        raise ValueError(
            f"{TOKEN_VARIABLE}: expected one line of printable ASCII, as `canarium token create` prints it"
        )
    return msgspec.structs.replace(config, token=token) if token else config


def load(path: str | Path) -> MonitorConfig:
    """Read the file. Raises `ValueError` with one line that names the file and the path of the fault."""
    try:
        config = msgspec.json.decode(Path(path).read_bytes(), type=MonitorConfig)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {error}") from error
    for name, model in config.models.items():
        for field, variant in (("baseline", model.baseline), ("teacher", model.teacher)):
            if variant not in model.variants:
                raise ValueError(f"{path}: models.{name}.{field}: {variant!r} is not among the variants")
    if config.poll_ms < 1:
        raise ValueError(f"{path}: poll_ms: {config.poll_ms} is under 1")
    return config
