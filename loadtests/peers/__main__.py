"""`make bench-peers`: Canarium and other servers with the same models, one client, one table.

    python -m loadtests.peers [--quick] [--only NAME]… [--case NAME]…

Needs a C compiler and the package index; everything it makes lies in .bench.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click

from loadtests.load import BUILD, LoadError
from loadtests.peers import cases, registry, run, table


@click.command()
@click.option("--quick", is_flag=True, help="Fewer connection counts, one round, shorter measurements.")
@click.option("--only", multiple=True, help="Servers whose names begin so; all if not given.")
@click.option("--case", "chosen", multiple=True, help="Cases whose names begin so; all if not given.")
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds over all servers.")
@click.option("--seconds", type=click.FloatRange(min=0.2), help="Of each measurement.")
@click.option("--safety/--no-safety", default=True, show_default=True, help="Measure the cost of safety as well.")
@click.option("--render", type=click.Path(exists=True, path_type=Path), help="Only print the tables of this JSON file.")
@click.option(
    "--json", "path", type=click.Path(dir_okay=False, path_type=Path), default=BUILD / "peers.json", show_default=True
)
def main(
    quick: bool,
    only: tuple[str, ...],
    chosen: tuple[str, ...],
    rounds: int | None,
    seconds: float | None,
    safety: bool,
    render: Path | None,
    path: Path,
) -> None:
    """Measure and print Markdown tables."""
    if render is not None:
        click.echo(table.render(json.loads(render.read_text())), nl=False)
        return
    effort = run.QUICK if quick else run.FULL
    if rounds is not None:
        effort = replace(effort, rounds=rounds)
    if seconds is not None:
        effort = replace(effort, plan=replace(effort.plan, seconds=seconds))
    peers, wanted = registry.named(only), cases.named(chosen)
    if not peers or not wanted:
        known = "; ".join([*(peer.name for peer in registry.PEERS), *(case.name for case in cases.CASES)])
        raise click.ClickException(f"nothing to measure; known are: {known}")
    command = " ".join(["python -m loadtests.peers", *sys.argv[1:]])
    try:
        document = run.measure(
            peers, wanted, effort, command=command, safe=safety, say=lambda line: click.echo(line, err=True), keep=path
        )
    except (LoadError, OSError, subprocess.CalledProcessError) as error:
        raise click.ClickException(str(error)) from None
    text = table.render(document)
    path.with_suffix(".md").write_text(text)
    click.echo(text, nl=False)


if __name__ == "__main__":
    main()
