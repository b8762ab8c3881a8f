"""The model registry: `registry list | show | diff | alias | gc | verify | export | import`."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path
from typing import TYPE_CHECKING

import click

from serving.commands.aliases import alias
from serving.commands.common import (
    ERROR,
    OK,
    builtins_of,
    console,
    emit_json,
    json_option,
    open_registry,
    read_config,
    registry_folder,
)

if TYPE_CHECKING:
    from serving.registry.store import Registry


@click.group()
def registry() -> None:
    """Look into the model registry, name what is in it, keep it whole.

    REF is MODEL/VARIANT[:REVISION]; in place of the revision an alias, or `latest`, which is the same as nothing.
    """


@registry.command("list")
@registry_folder
@json_option
def list_(registry_dir: Path, as_json: bool) -> int:
    """Every artifact, oldest first."""
    from serving.commands.render_registry import approved_under, artifacts_table, plain

    store = open_registry(registry_dir)
    manifests = store.list()
    if as_json:
        emit_json([plain(manifest) for manifest in manifests])
        return OK
    approved = approved_under(store.approvals.all(), manifests)
    console().print(artifacts_table(manifests, store.aliases.all(), approved))
    return OK


@registry.command()
@click.argument("ref")
@registry_folder
def show(ref: str, registry_dir: Path) -> int:
    """The manifest of REF as JSON."""
    from serving.commands.render_registry import plain

    emit_json(plain(open_registry(registry_dir).resolve(ref)))
    return OK


@registry.command()
@click.argument("a", metavar="REF")
@click.argument("b", metavar="REF")
@registry_folder
@json_option
def diff(a: str, b: str, registry_dir: Path, as_json: bool) -> int:
    """What differs between two artifacts.

    Files, the fields of the manifest, and the numbers of both evaluations beside each other.
    """
    from serving.commands.render_registry import difference_tables
    from serving.registry.diff import difference

    store = open_registry(registry_dir)
    found = difference(store.resolve(a), store.resolve(b))
    if as_json:
        emit_json(builtins_of(found))
        return OK
    click.echo(f"{found.a} and {found.b} have {'the same' if found.same_content else 'different'} content")
    for table in difference_tables(found):
        console().print(table)
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
@click.option(
    "--forget",
    multiple=True,
    metavar="REF",
    help="A revision whose manifest is gone and will not come back; its files go as well. May be repeated.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
@registry_folder
@json_option
def gc(
    keep: int | None,
    configs: tuple[Path, ...],
    forget: tuple[str, ...],
    dry_run: bool,
    registry_dir: Path,
    as_json: bool,
) -> int:
    """Remove what nothing refers to.

    Blobs and trees that no manifest names, what processes that died have left and, with --keep, old revisions.
    """
    from serving.artifacts import in_use
    from serving.registry.collect import collect

    store = open_registry(registry_dir)
    used = {ref for path in configs for ref in in_use(read_config(path, ()), store)}
    found = collect(store, keep=keep, used=used, forget=forget, dry_run=dry_run)
    revisions = [manifest.ref for manifest in found.revisions]
    paths = [str(path) for path in (*found.blobs, *found.trees, *found.temporary)]
    if as_json:
        emit_json({"dry_run": dry_run, "revisions": revisions, "files": paths, "bytes": found.bytes})
        return OK
    for what in [*revisions, *paths]:
        click.echo(what)
    parts: dict[str, Sized] = {
        "revision": found.revisions,
        "blob": found.blobs,
        "tree": found.trees,
        "left-over": found.temporary,
    }
    counts = ", ".join(_count(len(part), what) for what, part in parts.items())
    click.echo(f"{'would remove' if dry_run else 'removed'} {counts}: {found.bytes:,} bytes")
    return OK


@registry.command()
@click.option("--repair", is_flag=True, help="Make good what can be without loss, then check.")
@registry_folder
@json_option
def verify(repair: bool, registry_dir: Path, as_json: bool) -> int:
    """Check every digest, manifest, tree, alias and log line.

    Faults go to standard error, one a line, and give exit code 1. What is only left over is said and harms nobody.
    """
    from serving.registry import fsck
    from serving.registry.repair import repair as make_good

    store = open_registry(registry_dir)
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
        click.echo(f"{report.whole} of {report.artifacts} artifacts are whole; {_count(len(report.faults), 'fault')}")
    return ERROR if report.faults else OK


@registry.command()
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path),
    help="A new folder; its parents are made.",
)
@click.option("--mlflow", "uri", metavar="URI", help="In place of --to: an MLflow tracking server or store.")
@registry_folder
@json_option
def export(refs: tuple[str, ...], folder: Path | None, uri: str | None, registry_dir: Path, as_json: bool) -> int:
    """Write artifacts to a folder, as an OCI image layout, or log them to MLflow.

    The same artifacts give the same bytes. `canarium registry import` reads it. In MLflow each artifact is a run of the
    experiment named for its model; that needs the extra `mlflow`, and nothing is ever read back from there.
    """
    if (folder is None) is (uri is None):
        raise click.UsageError("give either --to FOLDER or --mlflow URI")
    if folder is None:
        return _to_mlflow(open_registry(registry_dir), refs, str(uri), as_json)
    from serving.registry.export import export as write

    manifests = write(open_registry(registry_dir), refs, folder)
    if as_json:
        emit_json([{"ref": manifest.ref, "digest": manifest.digest} for manifest in manifests])
        return OK
    for manifest in manifests:
        click.echo(f"{manifest.ref}: {manifest.size_bytes:,} bytes")
    click.echo(f"{_count(len(manifests), 'artifact')} in {folder}")
    return OK


@registry.command("import")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@registry_folder
@json_option
def import_(folder: Path, registry_dir: Path, as_json: bool) -> int:
    """Register what FOLDER holds.

    It is an OCI image layout that `canarium registry export` wrote. Each artifact gets the next revision of its
    variant, unless the same content is registered already and its approvals are of that as well.
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


def _to_mlflow(store: Registry, refs: tuple[str, ...], uri: str, as_json: bool) -> int:
    from serving.exports.mlflow import log_artifacts

    logged = log_artifacts(store, refs, uri)
    if as_json:
        emit_json([{"ref": one.manifest.ref, "run": one.run, "new": one.new} for one in logged])
        return OK
    for one in logged:
        click.echo(f"{one.manifest.ref}: run {one.run}{'' if one.new else ' is there already'}")
    return OK


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


registry.add_command(alias)

COMMANDS = (registry,)
