"""What a running control plane says of a deployment: the shares, latches and rollouts that a system card cannot know.

All of it is read as the admin API gives it (`/admin/v1/status`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from serving.cards.facts import code, escaped, plain, table
from serving.config import Config, ModelConfig

Json = Mapping[str, Any]


class Asked(NamedTuple):
    """An answer of a control plane.

    Attributes:
        status: the whole of it.
        url: whose it is.
        at: when it was asked for, ISO 8601.
    """

    status: Json
    url: str
    at: str


def in_force(config: Config, asked: Asked) -> list[str]:
    """The card's section: what is in force, and where that is not what the configuration says."""
    status = asked.status
    known = {str(view["model"]): view for view in status.get("models", [])}
    lines = ["## In force", ""]
    lines.append(f"As the control plane at {asked.url} said at {asked.at}, revision {status.get('rev')}.")
    latch = status.get("kill_switch") or {}
    if latch.get("on"):
        mark = escaped(_marked(latch, "kill"))
        lines += ["", f"**The kill-switch of all models is on** (kill {latch.get('kill_seq')}{mark})."]
    for model, settings in config.models.items():
        lines += ["", f"### In force: {code(model)}"]
        lines += _model(known[model], settings) if model in known else ["", "**The control plane does not know it.**"]
    if others := [code(name) for name in known if name not in config.models]:
        lines += ["", f"**It serves models that are not in this configuration: {', '.join(others)}.**"]
    return [*lines, ""]


def _model(view: Json, settings: ModelConfig) -> list[str]:
    killed, baseline = bool(view.get("killed")), str(view.get("baseline"))
    shares = _shares(view, killed, baseline)
    rows = [
        (
            code(variant["name"]),
            _artifact(variant, settings),
            f"{shares[variant['name']]:g} %",
            f"{0 if killed or variant.get('vetoed') else variant.get('shadow') or 0:g} %",
            _standing(variant, baseline),
        )
        for variant in view.get("variants", [])
    ]
    lines = table(("variant", "artifact", "answers", "copied in shadow", ""), rows)
    if missing := [code(name) for name in settings.variants if name not in shares]:
        lines += [f"**The control plane does not know {', '.join(missing)}.**", ""]
    unlike = "" if baseline == settings.baseline else f" (the file says {settings.baseline})"
    scored = view.get("reference_percent", 0)
    lines += [
        f"- Baseline: {escaped(plain(baseline))}{unlike}",
        f"- Scored again by {escaped(plain(view.get('teacher')))}: {scored:g} % of candidates' answers",
        f"- {_kill(view, baseline) if killed else 'Kill: none'}",
    ]
    rollouts = [_rollout(one) for one in view.get("rollouts", []) if one.get("live")]
    if not rollouts:
        return [*lines, "- Rollouts under way: none"]
    return [*lines, "- Rollouts under way:", *table(("rollout", "of", "policy", "state", "step", "why"), rollouts)]


def _kill(view: Json, baseline: str) -> str:
    by_all = view.get("killed_by") == "kill-switch"
    of = "the kill-switch of all models" if by_all else f"kill {view.get('kill_seq')}"
    return f"**Killed** ({of}{escaped(_marked(view, 'kill'))}): {escaped(plain(baseline))} answers everything"


def _shares(view: Json, killed: bool, baseline: str) -> dict[str, float]:
    """Percent of the answers by variant: kills and vetoes hand a candidate's share to the baseline."""
    found = {
        str(one["name"]): 0.0 if killed or one.get("vetoed") else float(one.get("weight") or 0)
        for one in view.get("variants", [])
    }
    if baseline in found:
        found[baseline] = max(0.0, 100 - sum(share for name, share in found.items() if name != baseline))
    return found


def _artifact(variant: Json, settings: ModelConfig) -> str:
    """What is served, and what the file means where that is something else."""
    served, given = str(variant.get("artifact")), settings.variants.get(str(variant["name"]))
    if given is None:
        return f"{served} (not in the file)"
    return served if served == given.artifact else f"{served} (the file means {given.artifact} now)"


def _standing(variant: Json, baseline: str) -> str:
    if variant.get("rolled_back"):
        return f"rolled back{_marked(variant, 'rolled_back')}"
    if variant.get("vetoed"):
        return "vetoed"
    return "baseline" if variant["name"] == baseline else "candidate"


def _marked(view: Json, key: str) -> str:
    """When, by whom and why, to follow a word."""
    mark = view.get(key)
    return f" at {mark.get('at')} by {mark.get('actor')}: {plain(mark.get('reason'))}" if mark else ""


def _rollout(view: Json) -> tuple[str, ...]:
    hold = f" ({view['hold']})" if view.get("hold") else ""
    return (
        code(view["id"]),
        str(view["variant"]),
        str(view["policy"]),
        f"{view['state']}{hold}",
        f"{min(view['step'] + 1, len(view['steps']))} of {len(view['steps'])}",
        str(view.get("waiting") or view.get("why", "")),
    )
