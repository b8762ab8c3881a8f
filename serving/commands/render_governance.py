"""How a gate's verdicts look on a terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from serving.governance.gate import Verdict
from serving.governance.policy import Policy

_STYLES = {"pass": "green", "fail": "red", "skip": "dim"}


def gate_table(ref: str, policy: Policy, verdicts: list[Verdict]) -> Table:
    """One line a rule."""
    table = Table(title=f"{ref} by policy {policy.name} (tier {policy.tier})", title_justify="left")
    for column in ("rule", "verdict", "found", "why"):
        table.add_column(column, overflow="fold")
    for one in verdicts:
        found = "–" if one.found is None else f"{one.found:.4g}"
        table.add_row(one.rule, Text(one.verdict, style=_STYLES[one.verdict]), found, one.why)
    return table
