"""What is known of a rollout now, and how it looks to a reader of the admin API."""

from __future__ import annotations

from typing import Any

import msgspec

from serving.control.audit import iso
from serving.control.gateways import Gateways
from serving.control.monitor_link import MonitorLink
from serving.control.rollouts import hindrance, room
from serving.core.commands import ALL, ControlState
from serving.core.killswitch import OFF
from serving.core.rollout import Rollout
from serving.core.rollout_decide import Facts, decide, promotion_lacks
from serving.core.routing import weights as shares_of


def facts_of(state: ControlState, rollout: Rollout, monitor: MonitorLink, gateways: Gateways) -> Facts:
    """The facts by which a rollout is decided: the monitor's, the gateways', and the other candidates' share."""
    table = state.tables.get(rollout.model)
    return msgspec.structs.replace(
        monitor.facts(rollout.model, rollout.variant, rollout.baseline, rollout.rev),
        confirmed=gateways.confirmed(rollout.rev),
        room=room(state, table, rollout) if table is not None else 0,
        hindered="" if rollout.live else hindrance(state, rollout),
        killed=any(state.kills.get(name, OFF).on for name in (rollout.model, ALL)),
    )


def rollout_view(state: ControlState, rollout: Rollout, facts: Facts, now_ns: int) -> dict[str, Any]:
    """One rollout as the API shows it. `step` counts from 0; `steps` is that of its policy; percentages are 0..100."""
    decision = decide(rollout, facts, now_ns)
    table = state.tables.get(rollout.model)
    known = table is not None and rollout.variant in table.variants
    return {
        "id": rollout.id,
        "model": rollout.model,
        "variant": rollout.variant,
        "baseline": rollout.baseline,
        "policy": rollout.policy_name,
        "state": str(rollout.state),
        "hold": str(rollout.hold) if rollout.hold else None,
        "held": str(rollout.held) if rollout.held else None,
        "live": rollout.live,
        "step": rollout.at,
        "steps": [_step(step) for step in rollout.policy.steps],
        "weight": shares_of(table)[rollout.variant] / 100 if table is not None and known else 0.0,
        "shadow": table.shadow.get(rollout.variant, 0) / 100 if table is not None else 0.0,
        "why": rollout.why,
        "waiting": decision.why if rollout.live or decision.why == facts.hindered else "",
        "attempt": rollout.attempt,
        "required": list(rollout.policy.required),
        "waived": list(rollout.waived),
        "promotion_lacks": promotion_lacks(rollout, facts) if rollout.live else [],
        "verdicts": [_verdict(facts, guard, rollout) for guard in _guards(facts, rollout)] if rollout.live else [],
        "live_answers": facts.live,
        "pairs": facts.pairs,
        "suspect_answers": facts.suspect,
        "started_by": rollout.started_by,
        "created_at": iso(rollout.created_ns),
        "changed_at": iso(rollout.changed_ns),
    }


def _step(step: Any) -> dict[str, Any]:
    return {name: value for name, value in msgspec.to_builtins(step).items() if value is not None}


def _guards(facts: Facts, rollout: Rollout) -> list[str]:
    return list(dict.fromkeys((*rollout.policy.required, *facts.guards)))


def _verdict(facts: Facts, name: str, rollout: Rollout) -> dict[str, Any]:
    guard = facts.guards.get(name)
    return {
        "guard": name,
        "required": name in rollout.required,
        "verdict": guard.verdict if guard else "no_data",
        "action": guard.action if guard else "none",
        "dry_run": guard.dry_run if guard else False,
        "sentence": guard.sentence if guard else "no verdict since the latest change of traffic",
    }
