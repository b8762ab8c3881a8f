"""The command line of the load generator and its table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import uvloop

from loadtests.openloop import ClosedLoop, OpenLoop, Recorder
from loadtests.payloads import infer_requests, read_rows
from loadtests.percentiles import QUANTILES, label

COLUMNS = ("count", *(label(q) for q in QUANTILES), "max")


@click.command()
@click.argument("url")
@click.option("--model", required=True, help="Model to ask.")
@click.option(
    "--data", "path", required=True, type=click.Path(exists=True, path_type=Path), help="jsonl[.gz] or folder."
)
@click.option("--split", default="test", show_default=True, help="Rows of this split of the data.")
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), default=100.0, show_default=True, help="Per second."
)
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True)
@click.option("--constant", is_flag=True, help="Constant gaps instead of Poisson arrivals.")
@click.option("--connections", type=click.IntRange(min=1), help="Closed loop with so many connections instead.")
@click.option("--max-inflight", type=click.IntRange(min=1), default=512, show_default=True)
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True)
@click.option("--users", type=click.IntRange(min=1), default=5000, show_default=True, help="Distinct sticky users.")
@click.option("--warmup", type=click.FloatRange(min=0), default=2.0, show_default=True, help="Seconds not counted.")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="More request headers.")
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def command(url: str, headers: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Load URL (http://host:port) with texts and print latencies from the scheduled send time."""
    pairs = tuple((name, value) for name, _, value in (header.partition("=") for header in headers))
    try:
        recorder = uvloop.run(measure(url, headers=pairs, **options))
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    click.echo(json.dumps(summary(recorder), indent=2) if as_json else table(recorder))
    sys.exit(0 if recorder.failures == 0 and recorder.unsent == 0 else 1)


async def measure(
    url: str,
    *,
    model: str,
    path: Path,
    split: str = "test",
    rate: float = 100.0,
    seconds: float = 30.0,
    constant: bool = False,
    connections: int | None = None,
    max_inflight: int = 512,
    timeout_s: float = 10.0,
    users: int = 5000,
    warmup: float = 2.0,
    headers: tuple[tuple[str, str], ...] = (),
    seed: int = 0,
) -> Recorder:
    """One measurement after a warm-up of the same kind that is not counted."""
    rows = read_rows(path, split)

    async def once(duration: float, prefix: str) -> Recorder:
        requests = infer_requests(model, rows, users=users, seed=seed, prefix=prefix, headers=headers)
        generator = (
            ClosedLoop(url, requests, connections, seconds=duration, timeout_s=timeout_s)
            if connections
            else OpenLoop(
                url,
                requests,
                rate,
                poisson=not constant,
                seconds=duration,
                max_inflight=max_inflight,
                timeout_s=timeout_s,
                seed=seed,
            )
        )
        generator.start()
        await generator.wait()
        return await generator.stop()

    if warmup:
        await once(warmup, "warm")
    return await once(seconds, "load")


def summary(recorder: Recorder) -> dict[str, Any]:
    """Everything recorded, durations in milliseconds."""
    return {
        "seconds": round(recorder.seconds, 3),
        "rate": round(recorder.rate, 2),
        "latency_ms": recorder.all.milliseconds(),
        "answers": [
            {"variant": variant, "reason": reason, "latency_ms": histogram.milliseconds()}
            for (variant, reason), histogram in sorted(recorder.by_answer.items())
        ],
        "codes": dict(sorted(recorder.codes.items())),
        "failures": recorder.failures,
        "unsent": recorder.unsent,
    }


def table(recorder: Recorder) -> str:
    """The same for people, in plain text."""
    rows = [("answered by", "reason", *(f"{name} ms" if name != "count" else name for name in COLUMNS))]
    for (variant, reason), histogram in (*sorted(recorder.by_answer.items()), (("all", ""), recorder.all)):
        row = histogram.milliseconds()
        rows.append((variant, reason, *(_cell(row[name]) for name in COLUMNS)))
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if at < 2 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    codes = ", ".join(f"{code}: {count}" for code, count in sorted(recorder.codes.items())) or "no answers"
    lines += [
        "",
        f"{recorder.rate:.1f} answers/s over {recorder.seconds:.1f} s; codes {codes}; failures {recorder.failures}; "
        f"not sent (too much in flight) {recorder.unsent}",
    ]
    return "\n".join(lines)


def _cell(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def main() -> None:
    command(prog_name="python -m loadtests.openloop")
