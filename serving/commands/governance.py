"""Keys, gates and approvals: `key`, `gate`, `approve`."""

from __future__ import annotations

from pathlib import Path

import click

from serving.commands.common import (
    ERROR,
    FILE,
    OK,
    actor,
    builtins_of,
    console,
    emit_json,
    file_option,
    json_option,
    open_registry,
    read_config,
    registry_folder,
    said,
)

policy_option = click.option(
    "--policy", required=True, metavar="POLICY", help="`low`, `limited`, `high`, or a policy file."
)


@click.group()
def key() -> None:
    """Keys that approve artifacts (Ed25519)."""


@key.command("create")
@click.argument("path", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
def create(path: Path) -> int:
    """Make a private key, which only its owner can read, and print its public key.

    FILE must be new. The public key goes into `governance.trusted_keys` of the configuration.
    """
    from serving.governance.keys import create_key

    click.echo(create_key(path).text)
    return OK


@key.command("show")
@click.argument("path", metavar="FILE", type=FILE)
def show(path: Path) -> int:
    """Print the public key of the private key in FILE."""
    from serving.governance.keys import load_key

    click.echo(load_key(path).public.text)
    return OK


@click.command()
@click.argument("ref")
@policy_option
@file_option("config", "Configuration that says whose approvals count; without it they are not judged.")
@registry_folder
@json_option
def gate(ref: str, policy: str, config: Path | None, registry_dir: Path, as_json: bool) -> int:
    """Judge the evidence in the manifest of REF by a policy, rule by rule.

    What was not measured fails. Exit code 1 if a rule fails or, with --file, if an approval is missing.
    """
    import msgspec

    from serving.commands.render_governance import gate_table
    from serving.governance.admission import lacking, standing, trusted_keys
    from serving.governance.gate import failures, judge
    from serving.governance.policy import load_policy

    store, chosen = open_registry(registry_dir), load_policy(policy)
    manifest = store.checked(ref)
    verdicts = judge(chosen, msgspec.to_builtins(manifest))
    failed, found = failures(verdicts), None
    if config is not None:
        trusted = trusted_keys(read_config(config, ()).governance)
        found = standing(store.approvals.of(manifest), manifest, chosen, trusted)
        failed += lacking(chosen.approvals, found.counted)
    if as_json:
        approvals = None if found is None else {"counted": found.counted, "not_counted": found.void}
        document = {"ref": manifest.ref, "digest": manifest.digest, "policy": chosen.name, "tier": chosen.tier}
        emit_json(document | {"rules": builtins_of(verdicts), "approvals": approvals, "failed": failed})
        return ERROR if failed else OK
    console().print(gate_table(manifest.ref, chosen, verdicts))
    if found is not None:
        for name, role in found.counted:
            click.echo(f"approved by {name} as {role}")
        for line in found.void:
            click.echo(f"not counted: {line}")
    click.echo(f"{manifest.ref}: {'refused: ' + '; '.join(failed) if failed else f'passes policy {chosen.name!r}'}")
    return ERROR if failed else OK


@click.command()
@click.argument("ref")
@policy_option
@click.option("--key", "key_file", required=True, type=FILE, help="Private key, made by `canarium key create`.")
@click.option("--role", default="approver", show_default=True, help="In which capacity; the configuration decides.")
@click.option("--reason", required=True, help="Why; it is signed with the rest.")
@registry_folder
@json_option
def approve(ref: str, policy: str, key_file: Path, role: str, reason: str, registry_dir: Path, as_json: bool) -> int:
    """Sign that REF fulfils a policy and may be served.

    Refused if a rule of the policy fails. What is signed is the digest of the artifact, its evaluation, its calibration
    and the policy: any change voids it.
    """
    from serving.governance.approve import approve as sign
    from serving.governance.keys import load_key
    from serving.governance.policy import load_policy

    signed = sign(
        open_registry(registry_dir),
        ref,
        load_policy(policy),
        load_key(key_file),
        by=actor().removeprefix("cli:"),
        role=role,
        reason=said(reason),
    )
    if as_json:
        emit_json(builtins_of(signed))
        return OK
    statement, _ = signed.opened()
    click.echo(f"{signed.ref}: approved under policy {statement.predicate.policy!r} as {role}")
    click.echo(f"signed sha256 {statement.predicate.digests.subject} with {signed.key}")
    return OK


COMMANDS = (key, gate, approve)
