"""Start, stop and check a deployment: `up`, `down`, `drain`, `check`."""

from __future__ import annotations

from pathlib import Path

import click

from serving.commands.common import (
    ERROR,
    FILE,
    OK,
    console,
    emit_json,
    file_option,
    json_option,
    read_config,
    set_option,
    state_dir_option,
)
from serving.commands.reports import report


@click.command()
@file_option("path", "Configuration file.", required=True)
@set_option
def up(path: Path, overrides: tuple[str, ...]) -> int:
    """Start the deployment of FILE and stay until stopped.

    Starts the gateways, the variants, the control plane and the monitor; Ctrl-C stops them all.
    """
    config = read_config(path, overrides)
    from serving.supervisor import up as start

    return start(config, path)


@click.command()
@file_option("path", "Configuration file; its state.dir says what to stop.")
@set_option
@state_dir_option
def down(path: Path | None, overrides: tuple[str, ...], state_dir: Path) -> int:
    """Stop the deployment of FILE or of a state directory."""
    if path is not None:
        state_dir = Path(read_config(path, overrides).state.dir)
    elif overrides:
        raise click.UsageError("--set needs --file: it overrides keys of that file")
    from serving.supervisor import down as stop

    ended = stop(state_dir)
    click.echo(f"{state_dir}: {f'ended {ended} processes' if ended else 'nothing was running'}")
    return OK


@click.command()
@file_option("path", "Configuration file; its state.dir says which node's gateways are meant.")
@state_dir_option
@click.option(
    "--within", metavar="SECONDS", default=45.0, show_default=True, type=click.FloatRange(0), help="How long to wait."
)
def drain(path: Path | None, state_dir: Path, within: float) -> int:
    """Let the gateways of this node finish and leave, before the node itself goes (`ray stop`).

    They are not ready any more, take connections for another 10 s while others notice, then answer what they were
    asked. They come back only by being started again.
    """
    import time

    from serving.gateway import drain as signal
    from serving.paths import Paths

    file = Paths.of(read_config(path, ()).state.dir if path is not None else state_dir).drain_file
    if not file.exists() or signal.finished(file):
        click.echo("no gateway takes requests here")
        return OK
    signal.ask(file)
    deadline = time.monotonic() + within
    while not signal.finished(file):
        if time.monotonic() >= deadline:
            click.echo(f"gateways still have requests after {within:g} s", err=True)
            return ERROR
        time.sleep(0.1)
    click.echo("drained")
    return OK


@click.group(invoke_without_command=True)
@file_option("path", "Configuration file.")
@set_option
@click.pass_context
def monitor(context: click.Context, path: Path | None, overrides: tuple[str, ...]) -> None:
    """Run the monitor of the deployment of FILE alone, as a sidecar container does.

    `canarium up` starts it by itself. CANARIUM_CONTROL is the control plane's address if it is on
    another machine, CANARIUM_MONITOR_TOKEN the token to use there.
    """
    import os
    import sys

    import msgspec

    from serving.loading import Loader
    from serving.monitor_settings import monitor_settings
    from serving.paths import Paths, write_private
    from serving.registry.store import Registry

    if context.invoked_subcommand is not None:
        return
    if path is None:
        raise click.UsageError("Missing option '-f' / '--file'.")
    config = read_config(path, overrides).absolute()
    # What is served in place of an artifact that may not run here is what is to be watched.
    config, _ = Loader(config, Registry(config.registry.dir)).fitted(config)
    paths = Paths.of(config.state.dir)
    paths.create()
    settings = paths.run_dir / "monitor.json"
    write_private(settings, msgspec.json.encode(monitor_settings(config)))
    os.execv(sys.executable, [sys.executable, "-m", "monitoring.sidecar", "--config", str(settings)])


@click.command()
@click.argument("path", metavar="FILE", type=FILE)
@set_option
@json_option
def check(path: Path, overrides: tuple[str, ...], as_json: bool) -> int:
    """Validate a configuration file, and the policies that it names; start nothing."""
    from serving.governance.admission import required_policies

    config = read_config(path, overrides)
    policies = required_policies(config)
    if as_json:
        emit_json(config.model_dump(mode="json"))
        return OK
    out = console()
    out.print(f"{path}: valid", style="green")
    for name, model in config.models.items():
        weights = ", ".join(f"{variant} {share:g} %" for variant, share in model.routing.weights.items() if share)
        out.print(f"  {name}: baseline {model.baseline}, variants {', '.join(model.variants)}")
        out.print(f"    starts with {weights or 'everything on the baseline'}")
        if name in policies:
            out.print(f"    must be approved under policy {policies[name].name} ({config.governance.mode})")
    return OK


monitor.add_command(report)

COMMANDS = (up, down, drain, monitor, check)
