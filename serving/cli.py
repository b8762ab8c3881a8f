"""The `canarium` command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from serving.commands import (
    calibration,
    cards,
    events,
    governance,
    inspect,
    lifecycle,
    models,
    registry,
    rollout,
    simulate,
    slo,
    state,
    tokens,
    traffic,
)
from serving.commands.common import ERROR, OK, REFUSED, UNREACHABLE, printable
from serving.errors import CanariumError

if TYPE_CHECKING:
    import httpx

EXIT_CODES = """\b
Exit codes:
  0  done
  1  an error, said on standard error in one line
  2  wrong usage
  3  the server cannot be reached
  4  the server refused: not permitted, or in conflict with the present state
"""

INTERRUPTED = 130


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="canarium")
def canarium() -> None:
    """Serve a trusted model beside its cheaper variants, watch them, and put everything back when evidence turns."""


for module in (
    lifecycle,
    traffic,
    rollout,
    inspect,
    calibration,
    models,
    registry,
    governance,
    cards,
    slo,
    tokens,
    state,
    events,
):
    for command in module.COMMANDS:
        canarium.add_command(command)
rollout.rollout.add_command(simulate.simulate)


def main(arguments: Sequence[str] | None = None, *, transport: httpx.BaseTransport | None = None) -> int:
    """Run one command and return its exit code. `transport` replaces the network, for tests."""
    try:
        result = canarium.main(args=arguments, prog_name="canarium", standalone_mode=False, obj=transport)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:  # `canarium audit | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except CanariumError as error:
        return _report(error)
    except OSError as error:
        _say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return ERROR
    except Exception as error:
        if os.environ.get("CANARIUM_DEBUG"):
            raise
        _say(f"internal error: {type(error).__name__}: {error} (CANARIUM_DEBUG=1 shows where)")
        return ERROR
    return result if isinstance(result, int) else OK


def _report(error: CanariumError) -> int:
    from serving.client import Refused, Unreachable

    for line in printable(str(error)).splitlines():
        _say(line)
    return UNREACHABLE if isinstance(error, Unreachable) else REFUSED if isinstance(error, Refused) else ERROR


def _say(line: str) -> None:
    click.echo(printable(f"canarium: {line}"), err=True)


if __name__ == "__main__":
    sys.exit(main())
