"""Look at a deployment: `status`, `audit`, `doctor`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.commands.common import (
    ERROR,
    OK,
    admin,
    console,
    control_options,
    emit_json,
    file_option,
    json_option,
    json_text,
    read_config,
    state_dir_option,
)
from serving.errors import ConfigError

if TYPE_CHECKING:
    from serving.client import AdminClient

Json = dict[str, Any]
WATCH_EVERY_S = 1.0


@click.command()
@click.option("--watch", is_flag=True, help="Stay and refresh every second until Ctrl-C.")
@control_options
@json_option
def status(watch: bool, control: str, token_file: Path | None, as_json: bool) -> int:
    """Who answers what, and what the guards say."""
    from serving.commands.render import status_view

    with admin(control, token_file) as client:
        if as_json:
            emit_json(_with_verdicts(client))
            while watch:
                time.sleep(WATCH_EVERY_S)
                emit_json(_with_verdicts(client))
            return OK
        view = _with_verdicts(client)
        if not watch:
            console().print(status_view(view, view["verdicts"]))
            return OK
        from rich.live import Live

        with Live(status_view(view, view["verdicts"]), console=console(), screen=False, auto_refresh=False) as live:
            while True:
                time.sleep(WATCH_EVERY_S)
                view = _with_verdicts(client)
                live.update(status_view(view, view["verdicts"]), refresh=True)


def _with_verdicts(client: AdminClient) -> Json:
    """The status with each model's verdicts added under `verdicts`; a silent monitor is no error here."""
    from serving.client import ClientError

    view = client.status()
    view["verdicts"] = {}
    for model in view.get("models", []):
        try:
            view["verdicts"][model["model"]] = client.verdicts(model["model"])
        except ClientError as error:
            view["verdicts"][model["model"]] = {"verdicts": [], "stale": True, "error": str(error)}
    return view


@click.command()
@click.argument("model", required=False, metavar="[MODEL|verify|export]")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000), help="Newest rows to show.")
@click.option(
    "--from", "exported", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Verify this export."
)
@control_options
@json_option
def audit(
    model: str | None, limit: int, exported: Path | None, control: str, token_file: Path | None, as_json: bool
) -> int:
    """The audit log, newest first.

    It holds every change and every automatic decision. `audit verify` checks its hash chain, there or in an
    exported file. `audit export` prints all of it as JSON lines, oldest first.
    """
    if exported is not None:
        if model != "verify":
            raise click.UsageError("--from goes with `audit verify`")
        return _verify(_check_file(exported), as_json)
    with admin(control, token_file) as client:
        if model == "verify":
            return _verify(client.audit_verify(), as_json)
        if model == "export":
            for entry in client.audit_export():
                click.echo(json_text(entry))
            return OK
        entries = client.audit(model, limit=limit)
    if as_json:
        emit_json(entries)
        return OK
    from serving.commands.render import audit_table

    console().print(audit_table(entries))
    return OK


def _check_file(path: Path) -> Json:
    """The chain of an export, as the server says it of its own. Raises `ConfigError` naming the line."""
    import msgspec

    from serving.control.audit import GENESIS, AuditEntry, ChainCheck
    from serving.decoding import UNREADABLE

    check, last = ChainCheck(), None
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                last = msgspec.json.decode(line, type=AuditEntry)
            except UNREADABLE as error:
                raise ConfigError(f"{path} line {number}: is no audit row: {error}") from None
            check.feed([last])
    found = check.finish(last.seq, last.hash) if last is not None else check.finish(0, GENESIS)
    return msgspec.to_builtins(found)  # type: ignore[no-any-return]


def _verify(answer: Json, as_json: bool) -> int:
    whole = answer.get("ok") is True
    if as_json:
        emit_json(answer)
    elif whole:
        click.echo(f"the audit log is whole: {answer.get('entries')} entries")
    else:
        click.echo(f"canarium: the audit log was altered: entry {answer.get('first_bad')} does not match", err=True)
    return OK if whole else ERROR


@click.command()
@file_option("path", "Use its ports.")
@state_dir_option
@json_option
def doctor(path: Path | None, state_dir: Path, as_json: bool) -> int:
    """Check this machine, list listening ports.

    Says whether this machine can run Canarium, and what a running deployment listens on.
    """
    from serving.commands import examine

    config = read_config(path, ()) if path is not None else None
    report = examine.report(config, Path(config.state.dir) if config is not None else state_dir)
    if as_json:
        emit_json(report)
    else:
        console().print(examine.render(report))
    return OK if report["ok"] else ERROR


COMMANDS = (status, audit, doctor)
