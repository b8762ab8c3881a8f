"""The rollouts of the stand-in control plane: one that waits for an approval, and what becomes of it when asked."""

from __future__ import annotations

import time
from typing import Any

Json = dict[str, Any]


def new(model: str, variant: str, policy: str, number: int) -> Json:
    """A rollout that waits for an approval, as the control plane shows it."""
    steps: list[Json] = [{"shadow": {"percent": 100.0}}, {"set_weight": 20.0}, {"approve": {"role": "operator"}}]
    view: Json = {"id": f"{variant}-{number}", "model": model, "variant": variant, "baseline": "teacher"}
    view |= {"policy": policy, "state": "paused", "hold": "approval", "held": "ramping", "live": True, "attempt": 1}
    view |= {"step": 2, "steps": [*steps, {"set_weight": 50.0}], "weight": 20.0, "shadow": 0.0, "waived": []}
    needed = {"required": True, "action": "none", "sentence": "errors: 0 of 900 requests"}
    view |= {"verdicts": [{"guard": "errors", "verdict": "inconclusive", **needed}]}
    view |= {"promotion_lacks": ["errors, inconclusive (errors: 0 of 900 requests)"]}
    view |= {"waiting": "waits for the approval of an operator", "why": "20 % has held"}
    return view | {"changed_at": time.time() - 90}


def braked(rollout: Json, *waived: str) -> Json:
    """The same with two guards that pause it, of which some are set aside."""
    fails = {"verdict": "fail", "required": False, "action": "pause"}
    verdicts = [{"guard": name, "sentence": f"{name} is beyond its limit", **fails} for name in ("ood", "slices")]
    return rollout | {"verdicts": [*rollout["verdicts"], *verdicts], "waived": list(waived)}


def later(rollout: Json) -> Json:
    """The same at its next approval."""
    steps = [*rollout["steps"], {"approve": {"role": "operator"}}, {"set_weight": 75.0}]
    return rollout | {"step": 4, "steps": steps, "weight": 50.0, "why": "50 % has held"}


#: What a rollout becomes by what is asked of it.
ROLLOUT_STATES = {
    "pause": ("paused", "manual"), "resume": ("ramping", None), "approve": ("ramping", None),
    "promote": ("promoting", None), "abort": ("rolled_back", None), "retry": ("pending", None),
}  # fmt: skip


def change(models: dict[str, Json], path: str, reason: str, body: Json) -> tuple[Json, str]:
    """A mutation below `rollouts`: the rollout afterwards, and the word for it in the trail."""
    id_, _, action = path.removeprefix("rollouts").removeprefix("/").partition(":")
    if not action:
        rollouts = models[body["model"]]["rollouts"]
        rollouts.append(new(body["model"], body["variant"], body["policy"], 8))
        return rollouts[-1], "create"
    rollout = next(one for model in models.values() for one in model["rollouts"] if one["id"] == id_)
    state, hold = ROLLOUT_STATES[action]
    rollout |= {"state": state, "hold": hold, "why": reason, "waiting": "", "live": state != "rolled_back"}
    return rollout, action
