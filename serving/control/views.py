"""How the state looks to a reader of the admin API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.contract import RouteTable
from serving.control.audit import iso
from serving.control.seed import Facts, VariantFacts
from serving.core.commands import ALL, ControlState, Mark
from serving.core.killswitch import OFF
from serving.core.routing import weights as shares_of

_NO_FACTS: Mapping[str, VariantFacts] = {}


def model_view(state: ControlState, model: str, facts: Facts, headroom: float | None) -> dict[str, Any]:
    """One model as the API shows it; percentages are 0..100."""
    table = state.tables[model]
    own, everybody = state.kills.get(model, OFF), state.kills.get(ALL, OFF)
    return {
        "model": model,
        "epoch": table.epoch,
        "baseline": table.baseline,
        "teacher": table.teacher,
        "killed": own.on or everybody.on,
        "killed_by": "model" if own.on else "kill-switch" if everybody.on else None,
        "kill_seq": own.seq,
        "cleared_seq": own.cleared,
        "kill": mark_view(state.killed.get(model) or state.killed.get(ALL)),
        "reference_percent": table.reference_bp / 100,
        "rollback_headroom_ratio": headroom,
        "variants": [_variant(state, table, name, facts.get(model, _NO_FACTS)) for name in _in_order(table)],
    }


def _in_order(table: RouteTable) -> list[str]:
    """The variants as people expect them: the baseline first, then by version."""
    return sorted(table.variants, key=lambda name: (name != table.baseline, table.variants[name].version))


def _variant(state: ControlState, table: RouteTable, name: str, facts: Mapping[str, VariantFacts]) -> dict[str, Any]:
    entry, known, slot = table.variants[name], facts.get(name), f"{table.model}/{name}"
    return {
        "name": name,
        "version": entry.version,
        "artifact": entry.artifact,
        "placement": entry.placement,
        "runtime": entry.runtime,
        "relation": known.relation if known else None,
        "role": "baseline" if name == table.baseline else "candidate",
        "weight": shares_of(table)[name] / 100,
        "shadow": table.shadow.get(name, 0) / 100,
        "vetoed": state.vetoes.get(slot, OFF).on,
        "rolled_back": mark_view(state.rolled_back.get(slot)),
        "evaluation": known.evaluation if known else {},
    }


def mark_view(mark: Mark | None) -> dict[str, Any] | None:
    """When, by whom and why a kill or rollback happened."""
    return None if mark is None else {"at": iso(mark.at_ns), "reason": mark.reason, "actor": mark.actor}


def kill_switch_view(state: ControlState) -> dict[str, Any]:
    """The kill-switch of all models."""
    latch = state.kills.get(ALL, OFF)
    mark = mark_view(state.killed.get(ALL))
    return {"on": latch.on, "kill_seq": latch.seq, "cleared_seq": latch.cleared, "kill": mark}
