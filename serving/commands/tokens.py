"""Who may call: `token create`, `token list`, `token revoke`, on the tokens file of this machine."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import click

from serving.clock import SystemClock
from serving.commands.common import OK, Command, console, emit_json, file_option, json_option, read_config
from serving.roles import MONITOR, ROLES

SECONDS = {"h": 3600, "d": 86400, "w": 7 * 86400}


def file_options(command: Command) -> Command:
    """`--tokens-file` and `--file`, one of which names the tokens file."""
    command = click.option(
        "--tokens-file",
        envvar="CANARIUM_TOKENS_FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="The tokens file.",
    )(command)
    return file_option("config", "Configuration file whose auth.tokens_file is meant.")(command)


@click.group()
def token() -> None:
    """Make, list and revoke the bearer tokens of the tokens file. Running servers follow within seconds."""


@token.command()
@click.argument("name")
@click.option("--role", required=True, type=click.Choice([*ROLES, MONITOR]), help="What its holder may do.")
@click.option(
    "--expires", metavar="WHEN", help="A time span such as 12h, 90d or 4w, or a day such as 2030-01-31 (UTC)."
)
@file_options
@json_option
def create(
    name: str, role: str, expires: str | None, tokens_file: Path | None, config: Path | None, as_json: bool
) -> int:
    """Make a token for NAME and print it, this once: only its hash is kept.

    The token alone goes to standard output, so `> alice.token` keeps it (mind your umask).
    """
    from serving.control.tokens import Token, add, hashed, new_secret

    path = _path(tokens_file, config)
    if not re.fullmatch(r"[A-Za-z0-9._@-]{1,64}", name):
        raise click.BadParameter("up to 64 letters, digits and . _ @ -", param_hint="NAME")
    secret = new_secret()
    made = Token(name, role, hashed(secret), _expiry(expires, SystemClock().wall_ns() // 1_000_000_000))
    add(path, made)
    if as_json:
        emit_json({"name": name, "role": role, "token": secret, "expires": made.expiry or None, "file": str(path)})
        return OK
    until = f" until {made.expiry}" if made.expiry else ""
    click.echo(f"{name} is {role}{until}; the token is shown this once, {path} keeps its hash", err=True)
    click.echo(secret)
    return OK


@token.command("list")
@file_options
@json_option
def list_tokens(tokens_file: Path | None, config: Path | None, as_json: bool) -> int:
    """Who has a token, with which role and until when. Tokens themselves are kept nowhere."""
    from serving.control.tokens import read

    path, now_s = _path(tokens_file, config), SystemClock().wall_ns() / 1e9
    found = [
        {"name": one.name, "role": one.role, "expires": one.expiry or None, "expired": one.expired(now_s)}
        for one in read(path)
    ]
    if as_json:
        emit_json(found)
        return OK
    from serving.commands.render import plain_table

    table = plain_table("name", "role", "expires")
    for one in found:
        when = one["expires"] or "never"
        table.add_row(str(one["name"]), str(one["role"]), f"{when} (expired)" if one["expired"] else str(when))
    console().print(table)
    return OK


@token.command()
@click.argument("name")
@file_options
def revoke(name: str, tokens_file: Path | None, config: Path | None) -> int:
    """Take the token of NAME out of the file."""
    from serving.control.tokens import remove

    path = _path(tokens_file, config)
    remove(path, name)
    click.echo(f"{name} is revoked; running servers refuse its token within seconds")
    return OK


def _path(tokens_file: Path | None, config: Path | None) -> Path:
    if tokens_file is None and config is not None:
        named = read_config(config, ()).auth.tokens_file
        tokens_file = Path(named) if named else None
    if tokens_file is None:
        raise click.UsageError("name the tokens file: --tokens-file, or --file with a configuration that has one")
    return tokens_file.resolve()


def _expiry(text: str | None, now_s: int) -> int | None:
    """Seconds since the Unix epoch. Raises `click.BadParameter` if it is no time, or is past."""
    if text is None:
        return None
    if span := re.fullmatch(r"([1-9][0-9]{0,4})([hdw])", text):
        return now_s + int(span[1]) * SECONDS[span[2]]
    try:
        day = int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is neither a time span such as 90d nor a day such as 2030-01-31", param_hint="--expires"
        ) from None
    if day <= now_s:
        raise click.BadParameter(f"{text} is past", param_hint="--expires")
    return day


COMMANDS = (token,)
