"""How a replayed rollout looks to people."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from serving.commands.render import ROLLOUT_STYLE, VERDICT_STYLE, plain_table

Json = dict[str, Any]

_ENDINGS = {
    "succeeded": "have succeeded",
    "under_way": "still be under way",
    "rolled_back": "have been rolled back",
    "killed": "have been killed",
}


def replay_view(document: Json) -> RenderableType:
    """The recording in a line, the moves, the guards, and how it ended."""
    recording, outcome = document["recording"], str(document["outcome"])
    head = (
        f"{document['model']}/{document['variant']} by {document['policy']}, over {recording['records']} records of "
        f"{recording['files']} file{'s' if recording['files'] != 1 else ''}, "
        f"{recording['from']} to {recording['to']} ({recording['seconds']:.1f} s)"
    )
    gaps = [
        f"{recording[name]} records {text}"
        for name, text in (("lost", "were overwritten before"), ("corrupt", "are damaged"))
        if recording[name]
    ]
    end = Text(f"it would {_ENDINGS[outcome]}", style=ROLLOUT_STYLE.get(outcome, "yellow"))
    end.append(f": {document['waiting'] or document['why']}", style="default")
    legend = "The traffic is what was recorded: weights are taken as given, gates count the recorded answers."
    return Group(
        Text(head, style="bold"),
        *(Text(f"WARNING {gap}", style="yellow") for gap in gaps),
        _moves(document["moves"], document["steps"]),
        Text(""),
        _guards(document["guards"]),
        Text(""),
        end,
        Text(legend, style="dim"),
    )


def _moves(moves: list[Json], steps: int) -> Table:
    table = plain_table("after>", "at", "from", "to", "step>", "answers>", "pairs>", "suspect>", "why")
    for move in moves:
        to = move["to"] + (f" ({move['hold']})" if move["hold"] else "")
        table.add_row(
            f"{move['after_s']:.1f} s",
            str(move["at"]),
            str(move["from"]),
            Text(to, style=ROLLOUT_STYLE.get(str(move["to"]), "")),
            f"{min(move['step'] + 1, steps)}/{steps}",
            str(move["live_answers"]),
            str(move["pairs"]),
            f"{move['suspect_answers']:.0f}",
            str(move["why"]),
        )
    return table


def _guards(guards: list[Json]) -> Table:
    """A line for each trip, with what was known then; for a guard without one, its last verdict."""
    table = plain_table("guard", "needed", "verdict", "tripped>", "action", "answers>", "pairs>", "suspect>", "why")
    for guard in guards:
        word = str(guard["verdict"])
        lead = (
            str(guard["guard"]),
            "pass" if guard["required"] else "",
            Text(word, style=VERDICT_STYLE.get(word, "dim")),
        )
        for trip in guard["trips"]:
            table.add_row(
                *lead,
                f"{trip['after_s']:.1f} s",
                str(trip["action"]),
                str(trip["live_answers"]),
                str(trip["pairs"]),
                f"{trip['suspect_answers']:.0f}",
                str(trip["sentence"]),
            )
        if not guard["trips"]:
            table.add_row(*lead, "", "", "", "", "", str(guard["sentence"]))
    return table
