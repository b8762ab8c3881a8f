"""Staged rollouts: `rollout start | plan | show | list | pause | resume | promote | abort | approve | retry`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.commands.common import (
    OK,
    Command,
    admin,
    console,
    control_options,
    emit_json,
    file_option,
    json_option,
    reason_option,
    said,
)
from serving.errors import ConfigError

if TYPE_CHECKING:
    from serving.client import AdminClient

#: `serving.core.rollout_policy.DEFAULT`, named here too because to import that takes longer than most commands.
DEFAULT_POLICY = "careful"

#: Each: what is asked of a rollout, its help, the help of its --override.
ACTIONS: tuple[tuple[str, str, str | None], ...] = (
    ("pause", "Stop advancing; weights stay as they are.", None),
    ("resume", "Go on from where it was paused.", "Although a guard pauses it."),
    (
        "promote",
        "Skip the steps that are left.",
        "Although a required guard has not passed, something holds the ramp, or headroom lacks.",
    ),
    ("abort", "End it: the candidate loses its traffic.", None),
    ("approve", "Let it past the approval that it waits for.", "Although a guard pauses it."),
    ("retry", "Start it again after its cooldown, with new users and new evidence.", None),
)


def policy_options(command: Command) -> Command:
    """`--policy` and `-f`, one of which may name the policy; `careful` without them."""
    command = file_option("path", "A rollout file of your own, in place of a built-in policy.")(command)
    policies = f"A built-in policy: careful, fast or shadow-only.  [default: {DEFAULT_POLICY}]"
    return click.option("--policy", "name", metavar="NAME", help=policies)(command)


@click.group()
def rollout() -> None:
    """Give a variant traffic step by step, on evidence.

    TARGET is the id of a rollout (see `canarium rollout list`), or a model with one that is under way.
    """


@rollout.command()
@click.argument("model")
@click.argument("variant")
@policy_options
@click.option("--reason", default="started by hand", show_default=True, help="Why; kept in the audit log.")
@control_options
@json_option
def start(
    model: str,
    variant: str,
    name: str | None,
    path: Path | None,
    reason: str,
    control: str,
    token_file: Path | None,
    as_json: bool,
) -> int:
    """Start a rollout of VARIANT.

    `canarium rollout start moderation int8 --policy fast`; follow it with `canarium rollout show moderation`. Without
    --policy and -f the policy is careful: hours a step, and a human before half of the traffic.
    """
    with admin(control, token_file) as client:
        view = client.start_rollout(model, variant, _chosen(name, path), reason=said(reason))
    if as_json:
        emit_json(view)
        return OK
    click.echo(
        f"rollout {view['id']} of {variant} by the policy {view['policy']}{_unasked(name, path)} is {view['state']}"
    )
    for warning in view.get("warnings", []):
        click.echo(f"WARNING {warning}", err=True)
    click.echo(f"follow it with: canarium rollout show {view['id']}")
    return OK


@rollout.command()
@click.argument("model")
@click.argument("variant")
@policy_options
@control_options
@json_option
def plan(
    model: str,
    variant: str,
    name: str | None,
    path: Path | None,
    control: str,
    token_file: Path | None,
    as_json: bool,
) -> int:
    """What a rollout would take at the present traffic.

    Answers and time that each step needs to pass, and to find a candidate that is 1.5, 2 or 4 times worse than its
    agreement limit, with the answers unlike the teacher's that are given until then. Nothing is started.
    """
    with admin(control, token_file) as client:
        found = client.plan_rollout(model, variant, _chosen(name, path))
    if as_json:
        emit_json(found)
        return OK
    from serving.commands.render import rollout_plan

    console().print(rollout_plan(found))
    return OK


@rollout.command()
@click.argument("target")
@control_options
@json_option
def show(target: str, control: str, token_file: Path | None, as_json: bool) -> int:
    """Where a rollout stands, what it waits for, and what the guards say."""
    with admin(control, token_file) as client:
        view = find(client, target)
    if as_json:
        emit_json(view)
        return OK
    from serving.commands.render import rollout_panel

    console().print(rollout_panel(view))
    return OK


@rollout.command("list")
@click.argument("model", required=False)
@control_options
@json_option
def list_(model: str | None, control: str, token_file: Path | None, as_json: bool) -> int:
    """Rollouts of MODEL, or of all models, the latest first."""
    with admin(control, token_file) as client:
        views = client.rollouts(model)
    if as_json:
        emit_json(views)
        return OK
    from serving.commands.render import rollout_table

    console().print(rollout_table(views))
    return OK


def _ask(action: str, text: str, override_help: str | None) -> click.Command:
    @click.argument("target")
    @reason_option
    @control_options
    @json_option
    def ask(
        target: str, reason: str, control: str, token_file: Path | None, as_json: bool, override: bool = False
    ) -> int:
        with admin(control, token_file) as client:
            view = client.ask_rollout(find(client, target)["id"], action, reason=said(reason), override=override)
        if as_json:
            emit_json(view)
            return OK
        click.echo(f"rollout {view['id']} of {view['variant']} is {state_of(view)}")
        return OK

    command: Callable[..., Any] = ask
    if override_help is not None:
        command = click.option("--override", is_flag=True, help=override_help)(command)
    return click.command(action, help=text)(command)


for _action, _text, _override in ACTIONS:
    rollout.add_command(_ask(_action, _text, _override))


def _chosen(name: str | None, path: Path | None) -> str | dict[str, Any]:
    """The policy that is meant. Raises `click.UsageError` if two are named, `ConfigError` for a bad file."""
    one_policy(name, path)
    return read_policy(path) if path is not None else name or DEFAULT_POLICY


def one_policy(name: str | None, path: Path | None) -> None:
    """Raises `click.UsageError` if both name a policy."""
    if name is not None and path is not None:
        raise click.UsageError("name one of --policy and -f, not both")


def _unasked(name: str | None, path: Path | None) -> str:
    """Says that nobody chose the policy, if so."""
    return " (the default; --policy or -f names another)" if name is None and path is None else ""


def state_of(view: dict[str, Any]) -> str:
    """The state, with the reason of a pause."""
    return f"{view['state']} ({view['hold']})" if view.get("hold") else str(view["state"])


def find(client: AdminClient, target: str) -> dict[str, Any]:
    """The rollout that TARGET means: by its id, else the one of a model that is under way, else its latest.

    Raises:
        ClientError: there is none, or the model has several under way.
    """
    from serving.client import ClientError

    views = client.rollouts()
    named = [view for view in views if view["id"] == target]
    of_model = [view for view in views if view["model"] == target]
    live = [view for view in of_model if view["live"]]
    if len(live) > 1 and not named:
        raise ClientError(f"{target} has several rollouts under way, name one: {', '.join(v['id'] for v in live)}")
    found = named or live or of_model
    if not found:
        known = ", ".join(view["id"] for view in views) or "none yet"
        raise ClientError(f"no rollout {target!r}, nor one of a model of that name; there are: {known}")
    return found[0]


def read_policy(path: Path) -> dict[str, Any]:
    """A rollout file, checked. Raises `ConfigError` naming every fault with its path."""
    import yaml

    from serving import yaml12
    from serving.core.rollout_policy import parse_policy

    try:
        document = yaml12.load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    try:
        parse_policy(document)
    except ConfigError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None
    checked: dict[str, Any] = document
    return checked


COMMANDS = (rollout,)
