"""From the checked configuration to the one file that the monitor is started with."""

from __future__ import annotations

import os

import msgspec
import numpy as np

from monitoring.config import (
    DriftSettings,
    GoldenSettings,
    GuardSettings,
    MonitorConfig,
    MonitorModel,
    MonitorVariant,
    ReliabilityMap,
    SloTarget,
)
from monitoring.detectors.kpi import KpiTarget
from monitoring.guards.ood import LEVEL
from serving.build.cpu import cpu_info
from serving.config import Config, ModelConfig
from serving.decoding import UNREADABLE
from serving.errors import RegistryError
from serving.paths import Paths
from serving.registry.manifest import EMBEDDING_FILE, GOLDEN_FILE, REFERENCE_FILE, Manifest
from serving.registry.store import Registry
from serving.registry.verified import content

DAY_S = 86_400.0
#: Of fewer held-out rows nobody can say which energy 1 % exceed.
ENERGY_ROWS = 200


class _Energies(msgspec.Struct, frozen=True):
    """The part of a reference (`monitoring.drift.rows.Reference`) that is read here."""

    columns: dict[str, list[float | str]]


def monitor_settings(config: Config) -> MonitorConfig:
    """The monitor's view of a deployment.

    On a cluster the control plane is on another node: `CANARIUM_CONTROL` is its address. The token with which the
    monitor speaks to it is no part of this: the monitor takes it from its environment.

    Raises:
        RegistryError: an artifact is not there, or what the monitor reads of it is damaged.
    """
    registry, server, paths = Registry(config.registry.dir), config.server, Paths.of(config.state.dir)
    return MonitorConfig(
        instance=paths.instance,
        spool_dir=str(paths.spool_dir),
        state_dir=str(paths.monitor_dir),
        word_path=str(paths.word_path),
        control_url=os.environ.get("CANARIUM_CONTROL") or server.urls()["control"],
        models={name: _model(model, registry) for name, model in config.models.items()},
        host=server.host,
        port=server.monitor_port,
        payload_dir=str(paths.payload_dir),
        inference_url=server.urls()["http"],
    )


def _model(model: ModelConfig, registry: Registry) -> MonitorModel:
    manifests = {name: registry.checked(variant.artifact) for name, variant in model.variants.items()}
    return MonitorModel(
        baseline=model.baseline,
        teacher=model.teacher or model.baseline,
        variants={
            name: MonitorVariant(
                manifest.version,
                manifest.evaluation.get("teacher_disagreement"),
                _reliability(manifest),
                manifest.postprocess.temperature,
                _saturation(manifest),
                _energy(registry, manifest),
                EMBEDDING_FILE in manifest.files,
                reference=_file(registry, manifest, REFERENCE_FILE),
                golden=_file(registry, manifest, GOLDEN_FILE),
                same_isa=_flags(manifest) == cpu_info()["flags"],
            )
            for name, manifest in manifests.items()
        },
        slo=[SloTarget(slo.name, slo.objective, slo.threshold_ms, slo.window_days * DAY_S) for slo in model.slo],
        guards=msgspec.convert(model.guards.model_dump(), GuardSettings),
        labels=list(manifests[model.baseline].postprocess.labels),
        slices=tuple(sorted(model.slices)),
        kpis=[
            KpiTarget(name, *kpi.range, kpi.direction == "higher_is_better", kpi.margin)
            for name, kpi in model.kpis.items()
        ],
        drift=_drift(model),
        golden=GoldenSettings(
            every_s=model.golden.every_minutes * 60,
            file=model.golden.file or "",
            floor=model.golden.floor,
            flips_max=model.golden.flips_max,
        ),
    )


def _drift(model: ModelConfig) -> DriftSettings:
    drift, payloads = model.drift, model.payloads
    return DriftSettings(
        sampled=payloads.percent > 0,
        every_s=drift.every_minutes * 60,
        window_s=drift.window_hours * 3600,
        min_rows=drift.min_rows,
        least_distance=drift.least_distance,
        false_alarm=drift.false_alarm,
        timeout_s=drift.timeout_s,
        keep_reports=drift.keep_reports,
        keep_rows_s=payloads.keep_hours * 3600,
        keep_rows_bytes=payloads.keep_mib << 20,
    )


def _reliability(manifest: Manifest) -> ReliabilityMap | None:
    """The map that the build has put into the manifest; None if it is of a build that did not."""
    stored = manifest.calibration.get("reliability")
    if stored is None:
        return None
    try:
        return msgspec.convert(stored, ReliabilityMap)
    except msgspec.ValidationError as error:
        raise RegistryError(f"{manifest.ref}: calibration.reliability: {error}") from None


def _saturation(manifest: Manifest) -> float | None:
    """The share of activations that saturated on held-out rows; 0 where nobody measured it, None where none can."""
    if not manifest.static_int8:
        return None
    measured = manifest.evaluation.get("activations") or {}
    return float(measured.get("share") or 0.0)


def _energy(registry: Registry, manifest: Manifest) -> float | None:
    """The energy that 1 % of the held-out rows exceeded; None if they are not known, or too few to tell."""
    if REFERENCE_FILE not in manifest.files:
        return None
    try:
        stored = msgspec.json.decode(content(manifest, registry.tree(manifest), REFERENCE_FILE), type=_Energies)
    except UNREADABLE:
        return None  # whoever reads it as a whole says what is wrong with it
    energies = [value for value in stored.columns.get("energy", ()) if isinstance(value, float)]
    if len(energies) < ENERGY_ROWS:
        return None
    return float(np.quantile(energies, 1.0 - LEVEL, method="higher"))


def _file(registry: Registry, manifest: Manifest, name: str) -> str:
    """Where a file of an artifact is, once verified; "" if it has none of that name, as those of earlier versions."""
    if name not in manifest.files:
        return ""
    folder = registry.tree(manifest)
    content(manifest, folder, name)
    return str(folder / name)


def _flags(manifest: Manifest) -> object:
    """The telling instruction sets of the processor that an artifact was built on; None if it does not say."""
    cpu = manifest.build.get("cpu")
    return cpu.get("flags") if isinstance(cpu, dict) else None
