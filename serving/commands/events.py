"""Recorded events: what commands need to read them, and `events export`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from serving.clock import SystemClock
from serving.commands.common import OK, Command, emit_json, json_option
from serving.core.freeze import SECOND_NS, seconds
from serving.errors import CanariumError

if TYPE_CHECKING:
    from monitoring.recorded import Found

EVER_NS = 1 << 63


def recorded_options(command: Command) -> Command:
    """`--from`, `--since` and `--until`: which recorded events are meant."""
    when = "A duration back from now, such as 2h, or a time, such as 2026-07-28T12:00:00Z."
    command = click.option("--until", metavar="WHEN", help=f"Records before this. {when}")(command)
    command = click.option("--since", metavar="WHEN", help=f"Records from this on. {when}")(command)
    return click.option(
        "--from",
        "sources",
        required=True,
        multiple=True,
        type=click.Path(exists=True, path_type=Path),
        help="A spool, a Parquet file or a folder of them, such as run/spool of a state directory; repeatable.",
    )(command)


def read_recorded(sources: tuple[Path, ...], model: str, since: str | None, until: str | None) -> Found:
    """The records that are meant; says on standard error which files could not be read.

    Raises:
        CanariumError: there are none.
    """
    from monitoring import recorded

    now_ns = SystemClock().wall_ns()
    try:
        found = recorded.read(
            sources, model, _moment(since, now_ns, 0, "--since"), _moment(until, now_ns, EVER_NS, "--until")
        )
    except ValueError as error:
        raise CanariumError(str(error)) from error
    for reason in found.unreadable:
        click.echo(f"canarium: left out: {reason}", err=True)
    return found


def _moment(text: str | None, now_ns: int, otherwise: int, option: str) -> int:
    """Nanoseconds since the epoch that an option means. Raises `click.BadParameter`."""
    if text is None:
        return otherwise
    try:
        return max(0, now_ns - int(seconds(text) * SECOND_NS))
    except ValueError:
        pass
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is neither a duration such as 2h nor a time such as 2026-07-28T12:00:00Z", param_hint=option
        ) from None
    return max(0, int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()) * SECOND_NS)


@click.group()
def events() -> None:
    """What the gateways recorded: one record for each request, pair and label."""


@events.command()
@click.argument("target", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--model", required=True, metavar="MODEL", help="Whose records.")
@recorded_options
@json_option
def export(
    target: Path, model: str, sources: tuple[Path, ...], since: str | None, until: str | None, as_json: bool
) -> int:
    """Write the records of a model to FILE, a new one, as Parquet.

    Spools are rings: the newest record overwrites the oldest, and a finished one is removed. What is to be kept
    has to be exported; records that several exports hold count once when they are read again.
    """
    from monitoring import parquet

    found = read_recorded(sources, model, since, until)
    try:
        parquet.write(target, found.recording)
    except parquet.MissingError as error:
        raise CanariumError(str(error)) from error
    records = len(found.recording.records)
    if as_json:
        emit_json({"path": str(target), "records": records, "files": found.files, "unreadable": found.unreadable})
        return OK
    click.echo(f"{target}: {records} records of {model} from {found.files} file{'s' if found.files != 1 else ''}")
    return OK


COMMANDS = (events,)
