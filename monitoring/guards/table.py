"""All guards of a candidate, in the order in which they are shown. Here a new one is registered. Pure."""

from __future__ import annotations

from typing import Any

from monitoring.config import MonitorModel
from monitoring.guards.agreement import AgreementGuard
from monitoring.guards.base import Guard
from monitoring.guards.calibration import CalibrationGuard
from monitoring.guards.embedding import EmbeddingGuard
from monitoring.guards.errors import ErrorsGuard
from monitoring.guards.harm import HarmGuard
from monitoring.guards.interference import InterferenceGuard
from monitoring.guards.invalid_output import InvalidOutputGuard
from monitoring.guards.kpi import KpiGuard
from monitoring.guards.latency import LatencyGuard
from monitoring.guards.ood import OodGuard
from monitoring.guards.saturation import SaturationGuard
from monitoring.guards.slices import SlicesGuard
from monitoring.guards.srm import SrmGuard

#: Each has a role of the same name in `serving.contract.GUARD_ROLES`.
GUARD_KINDS: tuple[type[Guard[Any]], ...] = (
    InvalidOutputGuard,
    ErrorsGuard,
    LatencyGuard,
    AgreementGuard,
    HarmGuard,
    CalibrationGuard,
    SlicesGuard,
    SaturationGuard,
    InterferenceGuard,
    SrmGuard,
    KpiGuard,
    OodGuard,
    EmbeddingGuard,
)


def guards_of(model: MonitorModel, variant: str) -> dict[str, Guard[Any]]:
    """The guards of one candidate, by name."""
    built = ((kind.name, kind.build(model, variant)) for kind in GUARD_KINDS)
    return {name: guard for name, guard in built if guard is not None}
