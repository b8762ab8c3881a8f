"""How status, verdicts and audit rows look to people."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Json = dict[str, Any]

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
    killed = f"   KILLED (kill {view.get('kill_seq')})" if view.get("killed") else ""
    table = plain_table("variant", "role", "weight>", "shadow>", "version>", "artifact", "state")
    table.title = f"{view['model']}   epoch {view.get('epoch')}{killed}"
    for variant in view.get("variants", []):
        state, style = _state(variant)
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


def _state(variant: Json) -> tuple[str, str]:
    rolled_back = variant.get("rolled_back")
    if rolled_back:
        return f"rolled back: {rolled_back.get('reason', '')}", "red"
    if variant.get("vetoed"):
        return "vetoed", "red"
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
    for view in status.get("models", []):
        parts += [Text(""), model_table(view)]
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
