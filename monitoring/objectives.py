"""Good and bad events of each objective, counted from the lossless aggregates."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from monitoring import slo
from monitoring.config import MonitorModel, SloTarget
from monitoring.ingest import Key, Totals
from monitoring.verdicts import Verdict, iso
from serving.contract import C_LIVE_ERROR, C_LIVE_OK, C_STATUS, STATUS_CODES

#: The whole model, whatever variant answered, in labels and keys.
ALL = "*"
SERVED = tuple(C_STATUS + STATUS_CODES.index(code) for code in (200, 429, 500, 503, 504))
REFUSED = SERVED[1:]


class SloStatus(msgspec.Struct, frozen=True):
    """One objective of one variant (or `ALL`) now."""

    name: str
    variant: str
    objective: float
    threshold_ms: float | None
    ratio: float | None  # share of good events over the objective's window; None without events
    budget_remaining: float
    burn_rates: dict[str, float]
    alerts: list[slo.Alert]


class Objectives:
    """Histories of every objective of one model."""

    def __init__(self, model: MonitorModel, state: dict[str, slo.HistoryState] | None = None) -> None:
        self._targets = {target.name: target for target in model.slo}
        self._histories = {key: self._history(key, stored) for key, stored in (state or {}).items()}

    def _history(self, key: str, stored: slo.HistoryState | None = None) -> slo.History:
        target = self._targets.get(key.partition("/")[0])
        return slo.History(stored, target.threshold_ms if target is not None else None)

    def add(self, now_s: float, variants: dict[str, Totals]) -> None:
        """Take a sample of every counter; `variants` are the model's totals by variant name."""
        for target in self._targets.values():
            for variant, items in [(ALL, list(variants.values())), *((name, [it]) for name, it in variants.items())]:
                total, bad = count(target, items, whole=variant == ALL)
                key = f"{target.name}/{variant}"
                if key not in self._histories:
                    self._histories[key] = self._history(key)
                self._histories[key].add(now_s, total, bad)

    def status(self) -> list[SloStatus]:
        """Where every objective stands, the whole model first."""
        result = []
        for key in sorted(self._histories):
            name, _, variant = key.partition("/")
            target = self._targets.get(name)
            if target is not None:
                result.append(_status(target, variant, self._histories[key]))
        return result

    def state(self) -> dict[str, slo.HistoryState]:
        return {key: history.state() for key, history in self._histories.items()}


def count(target: SloTarget, items: Iterable[Totals], *, whole: bool) -> tuple[int, int]:
    """(events, bad events) ever.

    Latency: live answers over the threshold. Availability of the whole model: what clients got,
    refusals for want of capacity included, client errors and pinned requests (golden rows are such) not.
    Availability of one variant: live requests routed to it by who was to blame, also those that the
    baseline answered in its place.
    """
    total = bad = 0
    for item in items:
        if target.name == "latency":
            threshold = target.threshold_ms or math.inf
            total += sum(item.latency.values())
            bad += sum(number for bound, number in item.latency.items() if bound > threshold)
        elif whole:
            total += sum(int(item.cells[cell]) for cell in SERVED)
            bad += sum(int(item.cells[cell]) for cell in REFUSED)
        else:
            bad += int(item.cells[C_LIVE_ERROR])
            total += int(item.cells[C_LIVE_OK]) + int(item.cells[C_LIVE_ERROR])
    return total, bad


def by_model(totals: dict[Key, Totals], model: str) -> dict[str, Totals]:
    """The totals of one model, by variant."""
    return {variant: item for (name, variant), item in totals.items() if name == model}


def slo_verdict(status: SloStatus, at_ns: int) -> Verdict:
    """An objective's burn as a verdict (guard `latency_slo` or `availability_slo`): an alert that rolls nobody back."""
    goal = f"{status.objective * 100:g} %"
    if status.threshold_ms is not None:
        goal += f" under {status.threshold_ms:g} ms"
    whose = "the model" if status.variant == ALL else status.variant
    if status.ratio is None:
        word, sentence = "no_data", f"{whose} has no events for its {status.name} objective of {goal} yet"
    elif status.alerts:
        worst = status.alerts[0]
        word = "fail"
        sentence = (
            f"{whose} burns its {status.name} budget ({goal}) {worst.long_burn:.1f} times too fast over "
            f"{worst.long_s / 3600:g} h and {worst.short_burn:.1f} times over {worst.short_s / 60:g} min, "
            f"over {worst.factor:g}: {worst.severity}"
        )
    elif status.budget_remaining < 0:
        word = "inconclusive"
        sentence = (
            f"{whose} has missed its {status.name} objective of {goal}: {status.ratio * 100:.3f} % good, the error "
            f"budget is overdrawn by {-status.budget_remaining * 100:.0f} %; it burns no faster than it may now"
        )
    else:
        word = "pass"
        sentence = (
            f"{whose} keeps its {status.name} objective of {goal}: {status.ratio * 100:.3f} % good, "
            f"{status.budget_remaining * 100:.0f} % of the error budget left"
        )
    return Verdict(
        guard=f"{status.name}_slo",
        variant=status.variant,
        verdict=word,
        action="alert" if word == "fail" else "none",
        sentence=sentence,
        at=iso(at_ns),
        statistic={
            "objective": status.objective,
            "budget_remaining": round(status.budget_remaining, 6),
            "burn_rates": {window: round(rate, 4) for window, rate in status.burn_rates.items()},
        },
    )


def _status(target: SloTarget, variant: str, history: slo.History) -> SloStatus:
    return SloStatus(
        name=target.name,
        variant=variant,
        objective=target.objective,
        threshold_ms=target.threshold_ms,
        ratio=slo.objective_ratio(history, target.window_s),
        budget_remaining=slo.budget_remaining(history, target.objective, target.window_s),
        burn_rates={name: slo.burn_rate(history, target.objective, span) for name, span in slo.WINDOWS.items()},
        alerts=slo.alerts(history, target.objective, target.window_s),
    )
