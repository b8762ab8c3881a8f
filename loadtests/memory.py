"""Does memory stay where it is? Two answers:

    python -m loadtests.memory cycles --count 500      variants loaded and unloaded again
    python -m loadtests.memory soak --minutes 30       an instance under mixed load

Exit code 1 if it does not.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
import uvloop

from deployments.quickstart import running
from deployments.quickstart.running import DATA, Quickstart
from loadtests import soak as soaking
from loadtests.cycles import KINDS, Cycles
from loadtests.payloads import read_rows
from loadtests.rss import Resident, growth
from serving.config import load_config
from serving.paths import Paths
from serving.processes import free_ports


@click.group()
def main() -> None:
    """Measure resident memory over time."""


@main.command()
@click.option("--count", type=click.IntRange(min=1), default=500, show_default=True)
@click.option("--every", type=click.IntRange(min=1), default=25, show_default=True, help="Read the memory so often.")
@click.option("--warm-up", type=click.IntRange(min=0), default=50, show_default=True, help="Cycles not judged.")
@click.option(
    "--kind", "names", multiple=True, type=click.Choice([kind.name for kind in KINDS]), help="Only these; all by turns."
)
def cycles(count: int, every: int, warm_up: int, names: tuple[str, ...]) -> None:
    """Load and unload the quickstart's variants in this process, as a gateway does."""
    kinds = [kind for kind in KINDS if not names or kind.name in names]
    readings: list[tuple[int, Resident]] = []

    def told(number: int, memory: Resident) -> None:
        readings.append((number, memory))
        click.echo(f"| {number} | {memory.total:.1f} | {memory.own:.1f} |")

    click.echo("| cycles | resident MiB | of it own |\n|---:|---:|---:|")
    with tempfile.TemporaryDirectory(prefix="canarium-cycles-") as folder:
        uvloop.run(
            Cycles(Path(load_config(running.CONFIG).registry.dir), Path(folder), read_rows(DATA)).run(
                count, kinds, every, told
            )
        )
    judged = [memory.total for number, memory in readings if number >= warm_up]
    change = growth(judged)
    click.echo(f"\nsince cycle {warm_up}: {change:+.1%}, limit {soaking.LIMIT:.0%}")
    sys.exit(change > soaking.LIMIT)


@main.command()
@click.option("--minutes", type=click.IntRange(min=1), default=30, show_default=True)
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), default=40.0, show_default=True, help="Per second."
)
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write all readings here.")
def soak(minutes: int, rate: float, path: Path | None) -> None:
    """Start the quickstart on free ports and load it with everything at once."""
    with tempfile.TemporaryDirectory(prefix="canarium-soak-") as folder:
        names = ("http", "grpc", "monitor", "control")
        ports = [f"server.{name}_port={port}" for name, port in zip(names, free_ports(4), strict=True)]
        state = Path(folder) / "state"
        overrides = (*soaking.TRAFFIC, *ports, f"state.dir={state}")
        with Quickstart(overrides, say=lambda line: click.echo(line, err=True)) as server:
            rows = read_rows(DATA)
            result = uvloop.run(
                soaking.soak(server.http_url, "moderation", rows, Paths.of(state).instance, minutes=minutes, rate=rate)
            )
    if path is not None:
        soaking.save(result, path)
    click.echo(soaking.table(result))
    if result.recorder is not None:
        answers = {" ".join(key): histogram.count for key, histogram in result.recorder.by_answer.items()}
        click.echo(f"\n{dict(result.recorder.codes)}, {result.left} clients that left, answers {answers}")
    wrong = soaking.grown(result)
    click.echo(f"it grows: {', '.join(wrong)}" if wrong else "flat")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
