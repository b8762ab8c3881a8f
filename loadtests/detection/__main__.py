"""The detection benchmark: does a guard cry wolf, how soon does it see harm, and what would others have seen?

    python -m loadtests.detection [--quick] [--write]       (make bench-detection, make bench-detection QUICK=1)

Seeded: the same numbers every time, whatever else the machine does. Exit code 1 if a promise is not kept: on every null
but label-delay selection the upper 95 % limit of false alarms is within the budget, and the median delay of `agreement`
and `errors` at twice what they tolerate is at most 1.3 times the least that any test needs.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from loadtests.detection import design, report
from loadtests.detection.bounds import speeds
from loadtests.detection.family import HEALTHY, Recorded, record
from loadtests.detection.measure import calibrate, false_alarms, measure
from loadtests.detection.plots import draw

RESULTS = Path(__file__).resolve().parents[1] / "RESULTS.md"
KEPT = Path(".bench")


def _family(recorded: Recorded) -> list[str]:
    lines = [f"Disagreement of the healthy candidate in its manifest (validation split): {recorded.differs:.1%}.", ""]
    return [*lines, *(f"- **{name}**: {fact}" for name, fact in recorded.facts.items())]


@click.command()
@click.option("--quick", is_flag=True, help="Minutes: fewer runs, and only harms of middle size.")
@click.option("--write", is_flag=True, help="Write tables and plots to loadtests/RESULTS.md, not only to .bench.")
@click.option("--processes", type=click.IntRange(min=1), default=2, show_default=True)
def main(quick: bool, write: bool, processes: int) -> None:
    """Simulate, compare, and judge."""
    size, started = (design.QUICK if quick else design.FULL), time.monotonic()

    def say(text: str) -> None:
        click.echo(f"[{time.monotonic() - started:5.0f} s] {text}", err=True)

    say("training, quantizing and damaging the models")
    recorded = record()
    say(f"healthy: {recorded.facts[HEALTHY]}")
    say("false alarms")
    nulls = []
    for row in false_alarms(recorded, size, processes):
        nulls.append(row)
        say(f"  {row[0]}: {row[2]['any']} of {row[1]:,}")
    say("delays beside the bound")
    swift = speeds(recorded, size, processes)
    say("thresholds of the comparators")
    thresholds, wrong = calibrate(recorded, size, processes)
    found = []
    for one in measure(recorded, size, thresholds, processes):
        found.append(one)
        first = one.guards[one.cell.guards[0]]
        say(f"  {one.cell.harm} {one.cell.size} {one.cell.factor}: {report.cell_of(first)}")

    null_lines, missed = report.null_table(nulls, size.requests)
    speed_lines, late = report.speed_table(swift)
    harm_lines, slower = report.harm_table(one for one in found if one.cell.compare)
    factors = [one for one in found if not one.cell.compare]
    missed += late
    command = "make bench-detection" + (" QUICK=1" if quick else "")
    KEPT.mkdir(exist_ok=True)
    folder = RESULTS.parent / "plots" if write else KEPT
    folder.mkdir(exist_ok=True)
    plots = draw(found, folder)
    lines = [
        report.HEADING, "", report.preface(command, size), "",
        "### False alarms", "", *null_lines, "",
        "### Delay beside the bound", "", *speed_lines, "",
        "### Harms, and what others see of them", "", report.matched(size, wrong), "", *harm_lines, "",
        report.ahead(slower), "",
        *([f"![{path.stem}](plots/{path.name})" for path in plots] if write else []), "",
    ]  # fmt: skip
    if factors:
        lines += ["### One factor at a time", "", *report.factor_table(factors), ""]
    lines += ["### The models", "", *_family(recorded), ""]
    section = "\n".join(lines)
    click.echo(section)
    (KEPT / "detection.md").write_text(section)
    if write:
        report.write_section(RESULTS, section)
    say("done")
    click.echo("\nnot kept: " + "; ".join(missed) if missed else "\nevery promise is kept")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
