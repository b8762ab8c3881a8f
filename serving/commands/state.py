"""The control plane's database as a whole: `state backup`, `state restore`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from serving.clock import SystemClock
from serving.commands.common import (
    OK,
    Command,
    actor,
    emit_json,
    file_option,
    json_option,
    read_config,
    reason_option,
    said,
    state_dir_option,
)

if TYPE_CHECKING:
    from serving.control.database import Database


def where_options(command: Command) -> Command:
    """`--state-dir`, or `--file` with a configuration that says where the state is."""
    return state_dir_option(file_option("config", "Configuration file; its state section says what is meant.")(command))


@click.group()
def state() -> None:
    """Keep and put back the control plane's state: tables, latches and the audit log."""


@state.command()
@click.argument("target", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@where_options
@json_option
def backup(target: Path, state_dir: Path, config: Path | None, as_json: bool) -> int:
    """Copy the state to FILE, a new one, while it is in use if need be; then check the copy."""
    from serving.control.backup import backup as copy

    database, _ = _where(state_dir, config)
    made = copy(database, target)
    if as_json:
        import msgspec

        emit_json(msgspec.to_builtins(made))
    else:
        click.echo(f"{made.path}: {made.entries} audit entries, verified; the last is {made.head[:16]}…")
    return OK


@state.command()
@click.argument("source", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@where_options
@reason_option
@json_option
def restore(source: Path, state_dir: Path, config: Path | None, reason: str, as_json: bool) -> int:
    """Put the copy FILE in place of the state of an instance that is stopped.

    The copy is checked first, what it replaces is kept beside it, and the audit log tells of it.
    """
    from serving.control.backup import restore as put_back

    database, folder = _where(state_dir, config)
    done = put_back(database, source, folder, actor=actor(), reason=said(reason), now_ns=SystemClock().wall_ns())
    if as_json:
        import msgspec

        emit_json(msgspec.to_builtins(done))
        return OK
    click.echo(f"{done.path}: restored, {done.entries} audit entries, verified")
    if done.aside:
        click.echo(f"what it replaced is {done.aside}")
    return OK


def _where(state_dir: Path, config: Path | None) -> tuple[Database, Path]:
    """The database that is meant, and the state directory."""
    from serving.control.database import Database

    setting = "sqlite"
    if config is not None:
        found = read_config(config, ()).state
        setting, state_dir = found.database, Path(found.dir)
    return Database.of(setting, state_dir.resolve()), state_dir


COMMANDS = (state,)
