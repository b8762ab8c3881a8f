"""`canarium monitor report`: a drift report now, by the process that the monitor itself starts for one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.clock import SystemClock
from serving.commands.common import OK, console, emit_json, json_option, state_dir_option
from serving.errors import CanariumError

if TYPE_CHECKING:
    from monitoring.config import MonitorConfig
    from monitoring.drift.job import Summary


@click.command()
@click.argument("model")
@click.option("--variant", metavar="VARIANT", help="Whose requests; the baseline's if left out.")
@click.option("--open", "show", is_flag=True, help="Open the report in the browser.")
@state_dir_option
@json_option
def report(model: str, variant: str | None, show: bool, state_dir: Path, as_json: bool) -> int:
    """Compare the sampled requests of MODEL with what its build measured.

    Runs on the machine of the gateways, whether they run or not. The report is kept beside those that the monitor
    makes by itself, and served by it.
    """
    config = _settings(state_dir)
    if model not in config.models:
        raise CanariumError(f"unknown model {model!r}, expected one of {', '.join(config.models)}")
    variant = variant or config.models[model].baseline
    if variant not in config.models[model].variants:
        known = ", ".join(config.models[model].variants)
        raise CanariumError(f"unknown variant {variant!r} of {model}, expected one of {known}")
    page, summary = _make(config, model, variant)
    if as_json:
        emit_json(_builtins(summary, page))
    else:
        _print(summary, page)
    if show and page is not None:
        click.launch(page.as_uri())
    return OK


def _settings(state_dir: Path) -> MonitorConfig:
    from monitoring.config import load
    from serving.paths import Paths

    settings = Paths.of(state_dir).run_dir / "monitor.json"
    if not settings.is_file():
        raise CanariumError(f"{settings}: is not there; start the deployment once, or name its --state-dir")
    try:
        return load(settings)
    except ValueError as error:
        raise CanariumError(f"{error}; start the deployment with this version") from error


def _make(config: MonitorConfig, model: str, variant: str) -> tuple[Path | None, Summary]:
    """Run the process; gives its page, if there is one, and its summary. Raises `CanariumError`."""
    import msgspec

    from monitoring.drift import job as jobs
    from monitoring.reports import COMMAND, environment

    settings = config.models[model].drift
    job = jobs.job_of(config, model, variant, SystemClock().wall_ns() // 1_000_000)
    try:
        done = subprocess.run(
            COMMAND,
            input=msgspec.json.encode(job),
            stdout=sys.stderr,
            stderr=subprocess.PIPE,
            env=environment(),
            timeout=settings.timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CanariumError(
            f"the report took over {settings.timeout_s:g} s and was ended (models.{model}.drift.timeout_s)"
        ) from None
    if done.returncode != jobs.DONE:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise CanariumError(lines[-1] if lines else f"the report's process ended with {done.returncode}")
    summary = msgspec.json.decode(
        (Path(job.out) / f"{jobs.stamp_of(job.until_ms)}.json").read_bytes(), type=jobs.Summary
    )
    return (Path(job.out) / summary.html if summary.html else None), summary


def _builtins(summary: Summary, page: Path | None) -> dict[str, Any]:
    import msgspec

    return {**msgspec.to_builtins(summary), "path": str(page) if page is not None else None}


def _print(summary: Summary, page: Path | None) -> None:
    from rich.table import Table

    out = console()
    out.print(summary.sentence, style={"fail": "yellow", "pass": "green"}.get(summary.verdict, ""))
    if summary.columns:
        table = Table(box=None, pad_edge=False)
        for heading in ("feature", "distance", "limit", ""):
            table.add_column(heading, justify="right" if heading in ("distance", "limit") else "left")
        for column in sorted(summary.columns, key=lambda one: -one.score / one.threshold):
            word = "drifted" if column.drifted else ""
            table.add_row(column.name, f"{column.score:.3f}", f"{column.threshold:.3f}", word)
        out.print(table)
    if summary.left_out:
        out.print(f"not on both sides, so not compared: {', '.join(summary.left_out)}")
    if page is not None:
        out.print(f"{page}")
