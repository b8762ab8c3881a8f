"""How status, verdicts and audit rows look to people."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Json = dict[str, Any]

ROLLOUT_STYLE = {"succeeded": "green", "rolled_back": "red", "rolling_back": "red", "killed": "bold red"}
#: `serving.core.rollout_plan.MANY`, named here too because to import that takes longer than most commands.
MANY = 10**9
VERDICT_STYLE = {"pass": "green", "fail": "bold red", "degraded": "yellow"}


def plain_table(*columns: str, title: str | None = None) -> Table:
    """A table without boxes; columns that end in `>` are aligned to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(
            column.removesuffix(">"), justify="right" if column.endswith(">") else "left", header_style="dim"
        )
    return table


def model_table(view: Json) -> Table:
    """One model: who answers what share of its traffic."""
    table = plain_table("variant", "role", "weight>", "shadow>", "version>", "artifact", "state")
    table.title = f"{view['model']}   epoch {view.get('epoch')}{_killed(view)}"
    for variant in view.get("variants", []):
        state, style = _state(variant, bool(view.get("killed")))
        role = variant.get("role", "")
        table.add_row(
            Text(str(variant["name"]), style="bold" if role == "baseline" else ""),
            role,
            f"{variant.get('weight', 0):g} %",
            f"{variant['shadow']:g} %" if variant.get("shadow") else "",
            str(variant.get("version", "")),
            str(variant.get("artifact", "")),
            Text(state, style=style),
        )
    return table


def _killed(view: Json) -> str:
    """By which kill; the model's own has the number that its re-arm takes."""
    if not view.get("killed"):
        return ""
    by_all = view.get("killed_by") == "kill-switch"
    return "   KILLED by the kill-switch of all models" if by_all else f"   KILLED (kill {view.get('kill_seq')})"


def _state(variant: Json, killed: bool) -> tuple[str, str]:
    rolled_back = variant.get("rolled_back")
    if rolled_back:
        return f"rolled back: {rolled_back.get('reason', '')}", "red"
    if variant.get("vetoed"):
        return "vetoed", "red"
    if killed and variant.get("role") != "baseline" and (variant.get("weight") or variant.get("shadow")):
        return "killed", "bold red"
    # A share of the traffic, not health: whether it has workers is for /v2/…/ready and `canarium_workers` to say.
    return ("in traffic", "green") if variant.get("weight") else ("idle", "dim")


def verdict_table(verdicts: list[Json]) -> Table:
    """The guards' present opinions, with their sentences."""
    table = plain_table("guard", "variant", "verdict", "action", "why")
    for verdict in verdicts:
        word = str(verdict.get("verdict", ""))
        action = str(verdict.get("action", ""))
        table.add_row(
            str(verdict.get("guard", "")),
            str(verdict.get("variant", "")),
            Text(word, style=VERDICT_STYLE.get(word, "dim")),
            "" if action == "none" else action,
            str(verdict.get("sentence", "")),
        )
    return table


def status_view(status: Json, verdicts: dict[str, Json]) -> RenderableType:
    """The whole of `canarium status`: the instance in one line, then model by model."""
    monitor, control = status.get("monitor", {}), status.get("control", {})
    age = monitor.get("heartbeat_age_s")
    alive = f"alive, {age:.1f} s ago" if monitor.get("alive") and age is not None else "SILENT"
    gateways = status.get("gateways", [])
    urls = status.get("urls", {})
    parts: list[RenderableType] = [
        Text.assemble(
            (f"canarium {status.get('version', '?')}", "bold"),
            f"   rev {status.get('rev')}   gateways {len(gateways)}",
            f"   monitor {alive} ({monitor.get('mode', '?')})   database {control.get('database', '?')}",
        ),
        Text("   ".join(f"{name} {url}" for name, url in urls.items()), style="dim"),
    ]
    if fault := status.get("auth", {}).get("fault"):
        parts.append(Text(f"tokens: {fault}", style="bold red"))
    latch = status.get("kill_switch", {})
    if latch.get("on"):
        seq, mark = latch.get("kill_seq"), latch.get("kill") or {}
        whose = f" by {mark.get('actor')}: {mark.get('reason')}" if mark else ""
        parts.append(Text(f"ALL MODELS KILLED (kill {seq}){whose}", style="bold red"))
        parts.append(Text(f"re-arm with: canarium rearm --all --kill-seq {seq} --reason WHY", style="red"))
    for view in status.get("models", []):
        parts += [Text(""), model_table(view)]
        headroom = view.get("rollback_headroom_ratio")
        if headroom is not None:
            style = "bold red" if headroom < 1 else "dim"
            parts.append(
                Text(f"alone, {view.get('baseline')} could carry {headroom:.2f}× of the present traffic", style)
            )
        if view.get("rollouts"):
            parts += [Text("rollouts", style="dim"), rollout_table(view["rollouts"])]
        answer = verdicts.get(view["model"])
        if answer and answer.get("verdicts"):
            stale = "  (stale: the monitor is silent)" if answer.get("stale") else ""
            parts += [Text(f"guards{stale}", style="dim"), verdict_table(answer["verdicts"])]
    return Group(*parts)


def audit_table(entries: list[Json]) -> Table:
    """Audit rows as given (newest first)."""
    table = plain_table("seq>", "at", "actor", "action", "model", "variant", "reason")
    for entry in entries:
        names = ("seq", "at", "actor", "action", "model", "variant", "reason")
        table.add_row(*("" if entry.get(name) is None else str(entry[name]) for name in names))
    return table


def rollout_table(views: list[Json]) -> Table:
    """Rollouts, one a line."""
    table = plain_table("id", "model", "variant", "policy", "state", "step>", "weight>", "why")
    for view in views:
        state, style = _rollout_state(view)
        table.add_row(
            str(view["id"]),
            str(view["model"]),
            str(view["variant"]),
            str(view["policy"]),
            Text(state, style=style),
            _step_of(view),
            f"{view['weight']:g} %",
            str((view["live"] and view.get("waiting")) or view.get("why", "")),
        )
    return table


def rollout_panel(view: Json) -> RenderableType:
    """One rollout: where it stands, what it waits for, its steps and its guards."""
    state, style = _rollout_state(view)
    head = Text.assemble(
        (f"{view['id']}   {view['model']}/{view['variant']}   ", "bold"),
        (state, style),
        f"   step {_step_of(view)}   weight {view['weight']:g} %   shadow {view['shadow']:g} %"
        f"   policy {view['policy']}   attempt {view['attempt']}",
    )
    parts: list[RenderableType] = [head, Text(f"because: {view['why']}")]
    if view.get("waiting"):
        parts.append(Text(f"next:    {view['waiting']}"))
    steps = plain_table("", "step", "")
    for at, step in enumerate(view["steps"]):
        mark = "→" if view["live"] and at == view["step"] else "✓" if at < view["step"] else ""
        ((name, settings),) = step.items()
        told = ", ".join(f"{k} {v}" for k, v in settings.items()) if isinstance(settings, dict) else f"{settings:g} %"
        steps.add_row(mark, name, told)
    parts.append(steps)
    if view.get("verdicts"):
        guards = plain_table("guard", "needed", "verdict", "why")
        for verdict in view["verdicts"]:
            word = str(verdict["verdict"])
            guards.add_row(
                str(verdict["guard"]),
                "pass" if verdict["required"] else "",
                Text(word, style=VERDICT_STYLE.get(word, "dim")),
                str(verdict["sentence"]),
            )
        parts.append(guards)
    return Group(*parts)


def _rollout_state(view: Json) -> tuple[str, str]:
    state = str(view["state"])
    style = {"succeeded": "green", "rolled_back": "red", "rolling_back": "red", "killed": "bold red"}.get(
        state, "yellow"
    )
    return (f"{state} ({view['hold']})" if view.get("hold") else state), style


def _step_of(view: Json) -> str:
    """Which step of how many, counted from 1; the promotion is after the last."""
    return f"{min(view['step'] + 1, len(view['steps']))}/{len(view['steps'])}"


def rollout_plan(found: Json) -> RenderableType:
    """What a rollout would take: one line a step."""
    table = plain_table("step>", "answers/s>", "takes>", "passes>", "1.5x>", "2x>", "4x>")
    for step in found["steps"]:
        passes = [f"{guard} {_count(need['observations'])}" for guard, need in step["passes"].items()]
        worse = [_detection(need) for need in step["detects"].values()]
        table.add_row(str(step["step"] + 1), f"{step['rate']:.3g}", _span(step["seconds"]), ", ".join(passes), *worse)
    assumed = found["assumed"]
    head = (
        f"{found['model']}/{found['variant']} by {found['policy']} at {assumed['rate']:.3g} requests/s, "
        f"agreement limit {assumed['agreement'] * 100:.1f} %, error limit {assumed['errors'] * 100:.2f} %"
    )
    legend = (
        "passes: answers that a pass needs; 1.5x, 2x, 4x: time to find a candidate so many times over its agreement "
        "limit (answers unlike the teacher's given until then). latency is not predicted."
    )
    warnings = [Text(f"WARNING {warning}", style="yellow") for warning in found["warnings"]]
    return Group(Text(head, style="bold"), table, Text(legend, style="dim"), *warnings)


def _count(observations: int) -> str:
    return "never" if observations >= MANY else str(observations)


def _detection(need: Json) -> str:
    return "never" if need["seconds"] is None else f"{_span(need['seconds'])} ({need['suspect']:.0f})"


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    for unit, span in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * span:
            return f"{seconds / span:.1f} {unit}"
    return f"{seconds:.0f} s"
