"""What the commands share: options, exit codes, output, and access to the server."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    import httpx
    from rich.console import Console

    from serving.client import AdminClient, InferenceClient
    from serving.config import Config
    from serving.registry.store import Registry

OK, ERROR, USAGE, UNREACHABLE, REFUSED = range(5)

Command = TypeVar("Command", bound=Callable[..., Any])

#: A file that must be there.
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
reason_option = click.option("--reason", required=True, help="Why; kept in the audit log.")
state_dir_option = click.option(
    "--state-dir",
    envvar="CANARIUM_STATE_DIR",
    default=".canarium",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="State directory of the deployment (state.dir in its file).",
)


def file_option(
    name: str, text: str, *, required: bool = False, default: str | None = None
) -> Callable[[Command], Command]:
    """`-f`, `--file`: a file that must be there, given to the command as `name`."""
    return click.option(
        *("-f", "--file", name), type=FILE, required=required, default=default, show_default=bool(default), help=text
    )


def registry_option(*names: str) -> Callable[[Command], Command]:
    """The option that says where the registry is, under these names."""
    return click.option(
        *names,
        "registry_dir",
        envvar="CANARIUM_REGISTRY",
        default=".canarium/registry",
        show_default=True,
        type=click.Path(file_okay=False, path_type=Path),
        help="Directory of the model registry.",
    )


registry_folder = registry_option("--registry", "--dir")
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key of the file."
)


def control_options(command: Command) -> Command:
    """`--control` and `--token-file`, for every command that talks to the control plane."""
    command = click.option(
        "--control",
        envvar="CANARIUM_CONTROL",
        default="http://127.0.0.1:8003",
        show_default=True,
        help="Address of the control plane.",
    )(command)
    return token_option(command)


def inference_options(command: Command) -> Command:
    """`--url` and `--token-file`, for the commands that talk to the inference endpoint."""
    command = click.option(
        "--url",
        envvar="CANARIUM_URL",
        default="http://127.0.0.1:8000",
        show_default=True,
        help="HTTP address of the inference server.",
    )(command)
    return token_option(command)


def token_option(command: Command) -> Command:
    return click.option(
        "--token-file",
        type=FILE,
        help="File with the bearer token (or the token itself in $CANARIUM_TOKEN).",
    )(command)


def admin(control: str, token_file: Path | None, *, timeout_s: float = 10.0) -> AdminClient:
    """A client of the control plane, named in the audit log as the user of this machine."""
    from serving.client import AdminClient

    return AdminClient(control, token=_token(token_file), timeout_s=timeout_s, actor=actor(), transport=_transport())


def actor() -> str:
    """How the audit log names the user of this machine."""
    return f"cli:{_user()}"


def inference(url: str, token_file: Path | None) -> InferenceClient:
    from serving.client import InferenceClient

    return InferenceClient(url, token=_token(token_file), timeout_s=30.0, transport=_transport())


def read_config(path: Path, overrides: tuple[str, ...]) -> Config:
    from serving.config import load_config

    return load_config(path, overrides)


def open_registry(directory: Path) -> Registry:
    """A registry that must be there. Raises `RegistryError`."""
    from serving.errors import RegistryError
    from serving.registry.store import Registry

    if not directory.is_dir():
        raise RegistryError(f"{directory}: there is no registry here; make one with `canarium build RECIPE`")
    return Registry(directory)


def console() -> Console:
    """Where tables go. Piped output is not cut at 80 columns."""
    from serving.commands.screen import Screen

    found = Screen()
    return found if found.is_terminal else Screen(width=200)


def printable(text: str) -> str:
    """A text of others without what terminals act on: every control character but tab and line feed."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)


def emit_json(value: Any) -> None:
    click.echo(json_text(value, indent=2))


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON with every control character escaped: JSON itself asks that of the first 32 only, terminals obey more."""
    import json

    text = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
    return re.sub(r"[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)


def builtins_of(value: Any) -> Any:
    """Structs as dictionaries, for `emit_json`."""
    import msgspec

    return msgspec.to_builtins(value)


def percentages(pairs: tuple[str, ...], what: str) -> dict[str, float]:
    """`("int8=10", "distilled=2.5%")` as a mapping. Raises `click.BadParameter` naming the pair."""
    found: dict[str, float] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        try:
            value = float(text.removesuffix("%"))
        except ValueError:
            sign = ""
        if not sign or not name:
            raise click.BadParameter(f"{pair!r} is not VARIANT=PERCENT, such as int8=10", param_hint=what)
        if not 0 <= value <= 100:
            raise click.BadParameter(f"{pair}: a percentage is between 0 and 100", param_hint=what)
        if name in found:
            raise click.BadParameter(f"{name} is given twice", param_hint=what)
        found[name] = value
    return found


def said(reason: str) -> str:
    """The reason, which must say something."""
    if not reason.strip():
        raise click.BadParameter("say why in a few words; it is kept in the audit log", param_hint="--reason")
    return reason.strip()


def _token(token_file: Path | None) -> str | None:
    if token_file is not None:
        return token_file.read_text(encoding="utf-8", errors="replace")
    return os.environ.get("CANARIUM_TOKEN")


def _transport() -> httpx.BaseTransport | None:
    context = click.get_current_context(silent=True)
    return None if context is None else context.obj


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without an entry in /etc/passwd
        return f"uid {os.getuid()}"
