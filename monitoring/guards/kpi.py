"""`kpi`: business numbers that come back as feedback."""

from __future__ import annotations

from typing import Self

from monitoring.config import MonitorModel
from monitoring.detectors.kpi import Kpi
from monitoring.event import Event
from monitoring.guards.base import Guard, Names
from monitoring.returns import Returned
from serving.contract import kpi_key


class KpiGuard(Guard[Kpi]):
    name = "kpi"

    def __init__(self, detector: Kpi) -> None:
        super().__init__(detector)
        self._names = {kpi_key(name): name for name in detector.compared}

    @classmethod
    def build(cls, model: MonitorModel, variant: str) -> Self | None:
        """None where no KPI is declared."""
        if not model.kpis:
            return None
        return cls(Kpi(model.kpis, pass_alpha=model.guards.false_promotion))

    def returned(self, event: Event, found: Returned, from_candidate: bool) -> bool:
        name = self._names.get(found.kpi)
        if name is not None:
            self.detector.observe(name, from_candidate, found.value, found.asked.unit)
        return False

    def finding(self, names: Names) -> str:
        worst = self.detector.worst
        if worst is None:
            return f"{names.variant} and the baseline have no value of {', '.join(self.detector.compared)} yet"
        return (
            f"{names.variant}: {worst.target.name} is {worst.mean(1):.4g} ({worst.counts[1]} users) and "
            f"{worst.mean(0):.4g} ({worst.counts[0]} users) for the baseline, "
            f"{'over' if self.detector.failed else 'held to'} the margin of {worst.target.margin:g}"
        )
