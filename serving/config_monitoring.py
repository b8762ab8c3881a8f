"""What a configuration says about watching a model: guards, KPIs, slices, sampled features, drift, golden rows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict, field_validator, model_validator

from serving.config_section import Percent, Section
from serving.contract import GUARDS


class InvalidOutputGuard(Section):
    limit: Annotated[int, Strict(), Field(ge=1)] = 3


class ErrorsGuard(Section):
    """`ratio` is the tolerated ratio r of the candidate's error odds to the baseline's."""

    ratio: Annotated[float, Strict(), Field(ge=1)] = 1.25


class LatencyGuard(Section):
    """Tail race over the baseline's running `quantile`; `margin` is the tolerated excess."""

    quantile: Annotated[float, Strict(), Field(gt=0.5, lt=1)] = 0.99
    margin: Annotated[float, Strict(), Field(ge=0)] = 0.25
    margin_ms: Annotated[float, Strict(), Field(ge=0)] = 5.0


class AgreementGuard(Section):
    """Top-1 flips against the teacher: limit = reference disagreement + margin, gross = limit x factor."""

    margin: Annotated[float, Strict(), Field(ge=0, le=1)] = 0.02
    limit: Annotated[float, Strict(), Field(gt=0, lt=1)] | None = None
    gross_factor: Annotated[float, Strict(), Field(gt=1)] = 3.0


class HarmGuard(Section):
    """Labelled flips (teacher right, candidate wrong) per labelled pair."""

    budget: Annotated[float, Strict(), Field(gt=0, lt=1)] = 0.03


class CalibrationGuard(Section):
    """Confidence against what it was worth when the variant was built; `margin` is the tolerated difference."""

    margin: Annotated[float, Strict(), Field(gt=0, lt=1)] = 0.02


class InterferenceGuard(Section):
    """The baseline's latency while a candidate has traffic, against its own before."""

    margin: Annotated[float, Strict(), Field(ge=0)] = 1.0
    margin_ms: Annotated[float, Strict(), Field(ge=0)] = 5.0
    spells: Annotated[float, Strict(), Field(gt=0, lt=1)] = 0.5


class SaturationGuard(Section):
    """Activations outside the ranges of a static INT8 variant, on at most one row every `every_s` of each worker.

    The limit is `factor` times what was measured when it was built, and at least `floor`. 0 seconds: never.
    """

    every_s: Annotated[float, Strict(), Field(ge=0, le=3600)] = 1.0
    factor: Annotated[float, Strict(), Field(ge=1)] = 5.0
    floor: Annotated[float, Strict(), Field(gt=0, lt=1)] = 0.01


class OodGuard(Section):
    """Answers whose energy 1 % of the held-out rows exceeded; `margin` more of them are tolerated.

    The same for the distance of embeddings, of at most one row every `every_s` of each worker. 0 seconds: never.
    """

    margin: Annotated[float, Strict(), Field(gt=0, lt=0.9)] = 0.02
    every_s: Annotated[float, Strict(), Field(ge=0, le=3600)] = 0.0


class SlicesGuard(Section):
    """Declared slices by themselves; `factor` times the limit of `agreement` is tolerated in each."""

    factor: Annotated[float, Strict(), Field(ge=1)] = 3.0


class GuardsConfig(Section):
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
    saturation: SaturationGuard = SaturationGuard()
    interference: InterferenceGuard = InterferenceGuard()
    ood: OodGuard = OodGuard()
    #: Guards that only observe.
    dry_run: tuple[str, ...] = ()

    @field_validator("dry_run")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in names if name not in GUARDS]:
            raise ValueError(f"unknown guard {unknown[0]!r}, expected some of {', '.join(GUARDS)}")
        return names


class KpiConfig(Section):
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


class SliceConfig(Section):
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


class PayloadsConfig(Section):
    """Derived features of sampled live requests, kept for drift reports; at 0 percent nothing is kept."""

    percent: Percent = 0
    keep_hours: Annotated[float, Strict(), Field(gt=0, le=8760)] = 72.0
    keep_mib: Annotated[int, Strict(), Field(ge=1, le=65_536)] = 64


class DriftConfig(Section):
    """Reports that compare those features with what the build measured; 0 minutes: on demand only."""

    every_minutes: Annotated[float, Strict(), Field(ge=0, le=10_080)] = 60.0
    window_hours: Annotated[float, Strict(), Field(gt=0, le=8760)] = 24.0
    min_rows: Annotated[int, Strict(), Field(ge=30, le=100_000)] = 200
    least_distance: Annotated[float, Strict(), Field(gt=0, le=10)] = 0.1
    false_alarm: Annotated[float, Strict(), Field(ge=0.0005, lt=1)] = 0.001
    timeout_s: Annotated[float, Strict(), Field(gt=0, le=3600)] = 300.0
    keep_reports: Annotated[int, Strict(), Field(ge=1, le=10_000)] = 24


class GoldenConfig(Section):
    """Rows with known answers that every variant in use is asked again and again; 0 minutes: never."""

    every_minutes: Annotated[float, Strict(), Field(ge=0, le=10_080)] = 0
    file: str | None = None
    floor: Annotated[float, Strict(), Field(ge=0, le=1)] = 0
    flips_max: Annotated[float, Strict(), Field(ge=0, le=1)] = 0.02
