"""Cards and bills of materials: `card`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from serving.commands.common import FILE, OK, admin, control_options, open_registry, read_config, registry_folder

if TYPE_CHECKING:
    from serving.cards.in_force import Asked
    from serving.config import Config
    from serving.governance.policy import Policy
    from serving.registry.approvals import Signed
    from serving.registry.manifest import Manifest
    from serving.registry.store import Registry


@click.command()
@click.argument("ref", required=False)
@click.option(
    "--system", type=FILE, metavar="FILE", help="In place of REF: the whole deployment of this configuration."
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["markdown", "html", "cyclonedx"]),
    default="markdown",
    show_default=True,
    help="`cyclonedx` is a bill of materials (ML-BOM 1.6, JSON).",
)
@click.option("--policy", metavar="POLICY", help="Judge the evidence by this policy in the card of REF.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file, not to the terminal."
)
@click.option(
    "--live",
    is_flag=True,
    help="With --system: ask the control plane (--control) for the shares, kills and rollouts that are in force.",
)
@control_options
@registry_folder
@click.pass_context
def card(
    context: click.Context,
    ref: str | None,
    system: Path | None,
    kind: str,
    policy: str | None,
    output: Path | None,
    live: bool,
    control: str,
    token_file: Path | None,
    registry_dir: Path,
) -> int:
    """Write the card of an artifact, or with --system of a deployment.

    Made from the manifests, the approvals and the configuration alone, unless --live is given. The Markdown of an
    artifact begins with the metadata of a Hugging Face model card.
    """
    if (ref is None) is (system is None):
        raise click.UsageError("give either REF or --system FILE")
    _require_live(context, live, system, kind)
    if system is not None:
        if policy is not None:
            raise click.UsageError("--policy goes with REF; a configuration names its own (governance.policy)")
        text = _system(read_config(system, ()), system.stem, kind, _ask(control, token_file) if live else None)
    else:
        from serving.governance.policy import load_policy

        store = open_registry(registry_dir)
        text = _model(store, store.checked(str(ref)), load_policy(policy) if policy else None, kind)
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
    return OK


def _require_live(context: click.Context, live: bool, system: Path | None, kind: str) -> None:
    """Raises `click.UsageError` if what is asked of a control plane has no place in what is made."""
    if live and system is None:
        raise click.UsageError("--live goes with --system FILE: it is about a deployment")
    if live and kind == "cyclonedx":
        raise click.UsageError("--live goes with markdown and html: a bill of materials has no place for shares")
    given = click.core.ParameterSource.COMMANDLINE
    if not live and given in map(context.get_parameter_source, ("control", "token_file")):
        raise click.UsageError("--control and --token-file go with --live")


def _ask(control: str, token_file: Path | None) -> Asked:
    """What is in force now. Raises `ClientError`."""
    from serving.cards.in_force import Asked
    from serving.clock import SystemClock
    from serving.control.audit import iso

    at = iso(SystemClock().wall_ns())
    with admin(control, token_file) as client:
        return Asked(client.status(), client.url, at)


def _model(store: Registry, manifest: Manifest, policy: Policy | None, kind: str) -> str:
    from serving.cards.model import body, model_card

    if kind == "cyclonedx":
        from serving.cards.bom import bill, encoded

        return encoded(bill([manifest]))
    approvals = [_said(one, manifest) for one in store.approvals.of(manifest)]
    if kind == "markdown":
        return model_card(manifest, policy=policy, approvals=approvals)
    from serving.cards.html import page

    return page(manifest.ref, body(manifest, policy=policy, approvals=approvals))


def _said(signed: Signed, manifest: Manifest) -> str:
    """A sentence on one approval; whether it counts depends on a configuration."""
    from serving.registry.approvals import faults

    if fault := faults(signed, manifest):
        return f"Void: {fault}."
    approval = signed.opened()[0].predicate
    return (
        f"{approval.approver} as {approval.role} on {approval.approved_at} under policy {approval.policy}: "
        f"{approval.reason} (key {signed.key})"
    )


def _system(config: Config, name: str, kind: str, asked: Asked | None) -> str:
    from serving.artifacts import pinned
    from serving.cards.system import Part, system_card
    from serving.governance.admission import Admission
    from serving.loading import Loader
    from serving.registry.store import Registry
    from serving.serve_env import NOTE

    store = Registry(config.registry.dir)
    # What this host would serve in place of an artifact that may not run here is what the card is about.
    config, exchanged = Loader(config, store).fitted(pinned(config, store))
    manifests = {
        model: {variant: store.checked(given.artifact) for variant, given in settings.variants.items()}
        for model, settings in config.models.items()
    }
    title = config.card.name or name
    if kind == "cyclonedx":
        from serving.cards.bom import bill, encoded

        for note in exchanged:
            click.echo(f"{NOTE}{note}", err=True)
        return encoded(bill([one for variants in manifests.values() for one in variants.values()], name=title))
    admission = Admission(config, store)
    parts = {
        model: {variant: Part(one, admission.refusal(model, variant, one)) for variant, one in variants.items()}
        for model, variants in manifests.items()
    }
    text = system_card(config, parts, title, exchanged=exchanged, asked=asked)
    if kind == "markdown":
        return text
    from serving.cards.html import page

    return page(title, text)


COMMANDS = (card,)
