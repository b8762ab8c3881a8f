"""`make bench`: the load generator against the quickstart, and one table.

    python -m loadtests.bench [--url http://127.0.0.1:8000] [--seconds 20]

Without --url a quickstart server is started and stopped again. Three measurements: an open loop at a
moderate rate through routing, and closed loops with 1 and 16 connections.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import uvloop

from deployments.quickstart.running import DATA, Quickstart
from loadtests.command import measure, summary, table
from serving.errors import CanariumError

#: A closed loop waits for its answers, however long: on a slow machine 16 connections are already too many for the
#: quickstart's latency objective, and some would be refused.
PATIENT = ("models.moderation.routing.queue.max_wait_ms=1000",)


@click.command()
@click.option("--url", help="A running server (http://host:port); starts the quickstart if not given.")
@click.option("--model", default="moderation", show_default=True)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=100.0,
    show_default=True,
    help="Open loop, per second.",
)
@click.option("--seconds", type=click.FloatRange(min=1), default=20.0, show_default=True, help="Of each measurement.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers here.")
def main(url: str | None, model: str, rate: float, seconds: float, json_path: Path | None) -> None:
    """Measure and print latencies; exit code 1 if any request failed."""
    cases: list[tuple[str, dict[str, Any]]] = [
        (f"open loop, {rate:g} requests/s (Poisson)", {"rate": rate}),
        ("closed loop, 1 connection", {"connections": 1}),
        ("closed loop, 16 connections", {"connections": 16}),
    ]
    found: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "seconds": seconds, "measurements": {}}
    failures = 0
    try:
        with nullcontext() if url else Quickstart(PATIENT, say=lambda line: click.echo(line, err=True)) as quickstart:
            target = url or quickstart.http_url  # type: ignore[union-attr]
            for name, options in cases:
                recorder = uvloop.run(measure(target, model=model, path=DATA, seconds=seconds, **options))
                click.echo(f"\n{name}\n{table(recorder)}")
                found["measurements"][name] = summary(recorder)
                failures += recorder.failures + recorder.unsent
    except (CanariumError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    if json_path is not None:
        json_path.write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
