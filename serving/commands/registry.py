"""The model registry: `registry list | show | diff | alias | gc | verify | export | import`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.commands.common import (
    ERROR,
    OK,
    actor,
    console,
    emit_json,
    json_option,
    read_config,
    registry_option,
    said,
)

if TYPE_CHECKING:
    from serving.registry.store import Registry

where = registry_option("--registry", "--dir")


@click.group()
def registry() -> None:
    """Look into the model registry, name what is in it, keep it whole.

    REF is MODEL/VARIANT[:REVISION]; in place of the revision an alias, or `latest`, which is the same as nothing.
    """


@registry.command("list")
@where
@json_option
def list_(registry_dir: Path, as_json: bool) -> int:
    """Every artifact, oldest first."""
    from serving.commands.render_registry import artifacts_table, plain

    store = _open(registry_dir)
    manifests = store.list()
    if as_json:
        emit_json([plain(manifest) for manifest in manifests])
        return OK
    console().print(artifacts_table(manifests, store.aliases.all()))
    return OK


@registry.command()
@click.argument("ref")
@where
def show(ref: str, registry_dir: Path) -> int:
    """The manifest of REF as JSON."""
    from serving.commands.render_registry import plain

    emit_json(plain(_open(registry_dir).resolve(ref)))
    return OK


@registry.command()
@click.argument("a", metavar="REF")
@click.argument("b", metavar="REF")
@where
@json_option
def diff(a: str, b: str, registry_dir: Path, as_json: bool) -> int:
    """What differs between two artifacts.

    Files, the fields of the manifest, and the numbers of both evaluations beside each other.
    """
    from serving.commands.render_registry import difference_tables
    from serving.registry.diff import difference

    store = _open(registry_dir)
    found = difference(store.resolve(a), store.resolve(b))
    if as_json:
        emit_json(_builtins(found))
        return OK
    click.echo(f"{found.a} and {found.b} have {'the same' if found.same_content else 'different'} content")
    for table in difference_tables(found):
        console().print(table)
    return OK


@registry.command()
@click.argument("variant", metavar="[MODEL/VARIANT]", required=False)
@click.argument("name", required=False)
@click.argument("revision", required=False)
@click.option("--remove", is_flag=True, help="Take the alias away; its history stays.")
@click.option("--reason", help="Why; kept in the alias log. Needed to change something.")
@where
@json_option
def alias(
    variant: str | None,
    name: str | None,
    revision: str | None,
    remove: bool,
    reason: str | None,
    registry_dir: Path,
    as_json: bool,
) -> int:
    """Let NAME mean REVISION of MODEL/VARIANT, or show what names mean.

    REVISION may be another alias or `latest`. Without it, what the names mean and who changed that.
    """
    from serving.registry.aliases import remove_alias, set_alias
    from serving.registry.names import parse_variant

    store = _open(registry_dir)
    chosen = parse_variant(variant) if variant else None
    if revision is None and not remove:
        return _show_aliases(store, chosen, name, as_json)
    if chosen is None or name is None or (remove and revision is not None):
        raise click.UsageError("to remove an alias give MODEL/VARIANT NAME --remove, without a revision")
    if reason is None:
        raise click.UsageError("changing an alias needs --reason; it is kept in the alias log")
    if remove:
        change = remove_alias(store, chosen, name, by=actor(), reason=said(reason))
    else:
        change = set_alias(store, chosen, name, str(revision), by=actor(), reason=said(reason))
    if as_json:
        emit_json(_builtins(change))
        return OK
    ref = f"{change.model}/{change.variant}:{change.alias}"
    was = "nothing" if change.old is None else f"revision {change.old}"
    if change.new is None:
        click.echo(f"{ref} is removed; it named {was}")
    elif change.new == change.old:
        click.echo(f"{ref} names {was} already")
    else:
        click.echo(f"{ref} names revision {change.new} now; before, {was}")
    return OK


def _show_aliases(store: Registry, variant: tuple[str, str] | None, name: str | None, as_json: bool) -> int:
    from serving.commands.render_registry import aliases_table, history_table

    model, inner = variant or (None, None)
    history = [one for one in store.aliases.history(model, inner) if name in (None, one.alias)]
    named = {
        key: {alias: revision for alias, revision in aliases.items() if name in (None, alias)}
        for key, aliases in store.aliases.all().items()
        if variant in (None, key)
    }
    if as_json:
        now = [
            {"model": model, "variant": inner, "alias": alias, "revision": revision}
            for (model, inner), aliases in sorted(named.items())
            for alias, revision in sorted(aliases.items())
        ]
        emit_json({"aliases": now, "history": _builtins(history)})
        return OK
    if not history:
        click.echo("there are no aliases; set one with `canarium registry alias MODEL/VARIANT NAME REVISION`")
        return OK
    console().print(aliases_table(named))
    console().print(history_table(history))
    return OK


@registry.command()
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    metavar="N",
    help="Remove revisions older than the newest N of each variant as well, but for those that an alias or --config "
    "names and those that a kept one was made from.",
)
@click.option(
    "--config",
    "configs",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A configuration whose artifacts stay, and those that its instance was started with. May be repeated.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
@where
@json_option
def gc(keep: int | None, configs: tuple[Path, ...], dry_run: bool, registry_dir: Path, as_json: bool) -> int:
    """Remove what nothing refers to: files, unfinished writes and, with --keep, old revisions."""
    from serving.artifacts import in_use
    from serving.registry.collect import collect

    store = _open(registry_dir)
    used = {ref for path in configs for ref in in_use(read_config(path, ()), store)}
    found = collect(store, keep=keep, used=used, dry_run=dry_run)
    revisions = [manifest.ref for manifest in found.revisions]
    paths = [str(path) for path in (*found.blobs, *found.trees, *found.temporary)]
    if as_json:
        emit_json({"dry_run": dry_run, "revisions": revisions, "files": paths, "bytes": found.bytes})
        return OK
    for what in [*revisions, *paths]:
        click.echo(what)
    counts = f"{len(revisions)} revisions, {len(found.blobs)} blobs, {len(found.trees)} trees, "
    counts += f"{len(found.temporary)} unfinished: {found.bytes:,} bytes"
    click.echo(f"would remove {counts}" if dry_run else f"removed {counts}")
    return OK


@registry.command()
@click.option("--repair", is_flag=True, help="Make good what can be without loss, then check.")
@where
@json_option
def verify(repair: bool, registry_dir: Path, as_json: bool) -> int:
    """Check every digest, manifest, tree, alias and log line.

    Faults go to standard error, one a line, and give exit code 1. What is only left over is said and harms nobody.
    """
    from serving.registry import fsck
    from serving.registry.repair import repair as make_good

    store = _open(registry_dir)
    repaired = make_good(store) if repair else []
    report = fsck.verify(store)
    if as_json:
        findings = [{"fault": one.fault, "ref": one.ref, "what": one.what} for one in report.findings]
        emit_json({"artifacts": report.artifacts, "whole": report.whole, "findings": findings, "repaired": repaired})
    else:
        for line in repaired:
            click.echo(f"repaired: {line}")
        for finding in report.findings:
            click.echo(
                f"canarium: {finding.what}" if finding.fault else f"left over: {finding.what}", err=finding.fault
            )
        click.echo(f"{report.whole} of {report.artifacts} artifacts are whole; {len(report.faults)} faults")
    return ERROR if report.faults else OK


@registry.command()
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@click.option(
    "--to",
    "folder",
    required=True,
    type=click.Path(path_type=Path),
    help="A new folder; its parents are made.",
)
@where
@json_option
def export(refs: tuple[str, ...], folder: Path, registry_dir: Path, as_json: bool) -> int:
    """Write artifacts to a folder, as an OCI image layout.

    The same artifacts give the same bytes. `canarium registry import` reads it.
    """
    from serving.registry.export import export as write

    manifests = write(_open(registry_dir), refs, folder)
    if as_json:
        emit_json([{"ref": manifest.ref, "digest": manifest.digest} for manifest in manifests])
        return OK
    for manifest in manifests:
        click.echo(f"{manifest.ref}: {manifest.size_bytes:,} bytes")
    click.echo(f"{len(manifests)} artifacts in {folder}")
    return OK


@registry.command("import")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@where
@json_option
def import_(folder: Path, registry_dir: Path, as_json: bool) -> int:
    """Register every artifact of FOLDER, an OCI image layout that `canarium registry export` wrote.

    Each gets the next revision of its variant, unless the same content is registered already.
    """
    from serving.registry.importing import import_layout
    from serving.registry.store import Registry

    done = import_layout(Registry(registry_dir), folder)
    if as_json:
        emit_json([{"ref": manifest.ref, "new": new, "digest": manifest.digest} for manifest, new in done])
        return OK
    for manifest, new in done:
        click.echo(f"{manifest.ref}: {'registered' if new else 'has the same content already'}")
    return OK


def _open(directory: Path) -> Registry:
    from serving.errors import RegistryError
    from serving.registry.store import Registry

    if not directory.is_dir():
        raise RegistryError(f"{directory}: there is no registry here; make one with `canarium build RECIPE`")
    return Registry(directory)


def _builtins(value: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(value)


COMMANDS = (registry,)
