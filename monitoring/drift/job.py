"""What a report process is told, and what it leaves. Imported by the monitor as well, so it needs nothing heavy."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from monitoring.config import MonitorConfig

#: Exit statuses of the report process.
DONE, FAILED, NO_LIBRARY, BUSY = 0, 1, 3, 4
REPORTS = "reports"
#: A report's files: `STAMP.json`, written last, and `STAMP.html`.
STAMP = re.compile(r"\d{8}T\d{6}Z")


class Job(msgspec.Struct, frozen=True):
    """One report. Times are milliseconds since the epoch; `reference` is "" if the build left none."""

    model: str
    variant: str
    version: int  # of the artifact whose reference it is, and whose rows are read
    reference: str
    payloads: str  # the folder of the model's sampled rows
    out: str  # the folder of this variant's reports
    since_ms: int
    until_ms: int
    min_rows: int = 200
    least_distance: float = 0.1
    false_alarm: float = 0.001


class Column(msgspec.Struct, frozen=True):
    """One feature: how far it is from the reference, and from where on that counts as drifted."""

    name: str
    method: str  # wasserstein | jensenshannon
    score: float
    threshold: float

    @property
    def drifted(self) -> bool:
        return self.score >= self.threshold


class Summary(msgspec.Struct, frozen=True):
    """A finished report. `verdict` is pass, fail or no_data; `html` is "" if there was nothing to show."""

    model: str
    variant: str
    stamp: str
    since_ms: int
    until_ms: int
    rows: int
    reference_rows: int
    verdict: str
    sentence: str
    columns: list[Column] = []
    left_out: list[str] = []  # features that one side does not have
    html: str = ""
    version: int = 0  # of the artifact; 0: made by an earlier release, of one that is not known

    @property
    def share(self) -> float | None:
        """Share of the columns that have drifted; None if nothing was compared."""
        return sum(column.drifted for column in self.columns) / len(self.columns) if self.columns else None


def job_of(config: MonitorConfig, model: str, variant: str, now_ms: int) -> Job:
    """The report on a variant over the configured window. Raises `KeyError` for an unknown model or variant."""
    settings = config.models[model]
    drift = settings.drift
    return Job(
        model=model,
        variant=variant,
        version=settings.variants[variant].version,
        reference=settings.variants[variant].reference,
        payloads=str(Path(config.payload_dir) / model),
        out=str(Path(config.state_dir) / REPORTS / model / variant),
        since_ms=now_ms - int(drift.window_s * 1000),
        until_ms=now_ms,
        min_rows=drift.min_rows,
        least_distance=drift.least_distance,
        false_alarm=drift.false_alarm,
    )


def stamp_of(at_ms: int) -> str:
    """Names a report by its time, UTC, to the second."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
