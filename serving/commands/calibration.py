"""Whether confidence is worth what it says: `calibration`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.commands.common import OK, admin, console, control_options, emit_json, json_option

if TYPE_CHECKING:
    from rich.table import Table

Json = dict[str, Any]
_BAR = 20


@click.command()
@click.argument("model")
@click.option("--variant", help="This variant only.")
@control_options
@json_option
def calibration(model: str, variant: str | None, control: str, token_file: Path | None, as_json: bool) -> int:
    """How calibrated the variants of MODEL are: by labels, and by the teacher where there are none.

    The error (ECE) is told without what chance alone would show of it. A temperature is only suggested, never applied.
    """
    with admin(control, token_file) as client:
        found = client.calibration(model)
    if variant is not None:
        for part in ("reports", "coverage"):
            found[part] = [item for item in found[part] if item["variant"] == variant]
    if as_json:
        emit_json(found)
        return OK
    if not found["reports"]:
        click.echo("no answer with a probability has been labelled, or scored by the teacher, yet")
    for report in found["reports"]:
        console().print(_table(report))
        for line in _lines(report):
            click.echo(line)
    for item in found["coverage"]:
        click.echo(_coverage(item))
    return OK


def _table(report: Json) -> Table:
    from rich.table import Table

    by = "right by label" if report["reference"] == "labels" else "by the teacher"
    table = Table(title=f"{report['variant']}, {by}: {report['answers']} answers", title_justify="left")
    for heading in ("confidence", "answers", "mean", by, "95 %", "at build"):
        table.add_column(heading, justify="right")
    table.add_column("from 0 to 1", justify="left")
    for row in report["bins"]:
        expected = row["expected"]
        table.add_row(
            f"{row['low']:.3f}-{row['high']:.3f}",
            str(row["answers"]),
            f"{row['confidence']:.3f}",
            f"{row['outcome']:.3f}",
            f"{row['outcome_low']:.3f}-{row['outcome_high']:.3f}",
            "" if expected is None else f"{expected:.3f}",
            "#" * round(row["outcome"] * _BAR),
        )
    return table


def _lines(report: Json) -> list[str]:
    lines = [
        f"  calibration error {report['ece_debiased']:.4f} (95 % {report['ece_low']:.4f} to {report['ece_high']:.4f}); "
        f"plain ECE {report['ece']:.4f}, of which chance alone explains {report['ece_if_perfect']:.4f}"
    ]
    if brier := report["brier"]:
        lines.append(
            f"  Brier score {brier['score']:.4f} = reliability {brier['reliability']:.4f} "
            f"- resolution {brier['resolution']:.4f} + uncertainty {brier['uncertainty']:.4f} "
            f"+ rest {brier['rest']:.4f}"
        )
    for row in report["classes"]:
        lines.append(
            f"  {row['label']}: {row['answers']} answers, {row['confidence']:.3f} sure, "
            f"{row['outcome']:.3f} came of it, error {row['ece_debiased']:.4f}"
        )
    if warm := report["temperature"]:
        lines.append(
            f"  a temperature of {warm['suggested']:g} ({warm['low']:g} to {warm['high']:g}) would fit better than the "
            f"{warm['current']:g} in force; it is not applied"
        )
    return lines


def _coverage(item: Json) -> str:
    share = item["labels"] / item["answers"] if item["answers"] else 0.0
    delays = ", ".join(f"{row['labels']} within {_span(row['within_s'])}" for row in item["delays"] if row["labels"])
    return f"{item['variant']}: {item['labels']} of {item['answers']} answers labelled ({share:.1%})" + (
        f": {delays}" if delays else ""
    )


def _span(seconds: int) -> str:
    return f"{seconds // 3600} h" if seconds >= 3600 else f"{seconds // 60} min"


COMMANDS = (calibration,)
