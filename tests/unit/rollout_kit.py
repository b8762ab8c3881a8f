"""What the tests of rollouts share: a short policy, a rollout anywhere on its way, and what is known of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from serving.core.freeze import Window
from serving.core.rollout import AllBut, Effect, Rollout, TakeOut, Weight
from serving.core.rollout_decide import Facts, Guard
from serving.core.rollout_policy import Policy, parse_policy

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND  # Tuesday 2023-11-14 22:13:20 UTC
#: Open at NOW, and at any other time.
ALWAYS = Window("0 0 * * *", "1d")

_SHORT = {
    "steps": [
        {"shadow": {"percent": 100, "min_requests": 10, "min_duration": "10s", "max_duration": "10m"}},
        {"set_weight": 1},
        {"bake": {"until": "time", "min_requests": 5, "min_duration": "10s", "max_duration": "10m"}},
        {"approve": {"role": "operator"}},
        {"set_weight": 50},
        {"bake": {"min_requests": 10, "min_duration": "10s", "max_duration": "10m"}},
    ],
    "limits": {"max_weight": 60, "max_suspect_responses": 100, "max_duration": "2d"},
    "monitor": {"duration": "30s", "min_requests": 10},
    "retry": {"max_attempts": 1, "cooldown": "60s", "backoff": 3},
}
POLICY: dict[str, Policy] = {
    "short": parse_policy(_SHORT),
    "shadow-only": parse_policy({"steps": [{"shadow": {"percent": 100, "min_requests": 10, "max_duration": "10m"}}]}),
}


def rollout(**changes: Any) -> Rollout:
    """A rollout of int8 by the short policy, pending unless told otherwise."""
    given: dict[str, Any] = {
        "id": "int8-1", "model": "moderation", "variant": "int8", "policy": POLICY["short"], "policy_name": "file",
        "started_by": "ann", "created_ns": NOW, "step_ns": NOW, "changed_ns": NOW,
    }  # fmt: skip
    return Rollout(**(given | changes))


def frozen(given: Rollout, on: bool = True) -> Rollout:
    """The same under a freeze window that is always open, or under none."""
    policy = msgspec.structs.replace(given.policy, freeze=(ALWAYS,) if on else ())
    return msgspec.structs.replace(given, policy=policy)


def passing() -> dict[str, Guard]:
    """Every guard that the short policy requires, passed."""
    return {name: Guard(name, "pass", sentence=f"{name} is fine") for name in ("errors", "latency", "agreement")}


def facts(**changes: Any) -> Facts:
    """A candidate about which everything is known and well."""
    given: dict[str, Any] = {
        "fresh": True, "guards": passing(), "silent_s": 0.5, "workers": 1, "live": 1000, "pairs": 1000,
        "confirmed": True,
    }  # fmt: skip
    return Facts(**(given | changes))


def weight_of(effects: Iterable[Effect], weight: int, room: int) -> int:
    """Basis points of live traffic after effects."""
    for effect in effects:
        if isinstance(effect, Weight):
            weight = effect.share
        elif isinstance(effect, AllBut):
            weight = min(room, 10_000 - effect.holdback)
        elif isinstance(effect, TakeOut):
            weight = 0
    return weight
