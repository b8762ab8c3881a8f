"""Names for revisions: `registry alias`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from serving.commands.common import (
    OK,
    actor,
    builtins_of,
    console,
    emit_json,
    json_option,
    open_registry,
    registry_folder,
    said,
)

if TYPE_CHECKING:
    from serving.registry.store import Registry


@click.command()
@click.argument("variant", metavar="[MODEL/VARIANT]", required=False)
@click.argument("name", required=False)
@click.argument("revision", required=False)
@click.option("--remove", is_flag=True, help="Take the alias away; its history stays.")
@click.option("--reason", help="Why; kept in the alias log. Needed to change something.")
@registry_folder
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

    store = open_registry(registry_dir)
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
        emit_json(builtins_of(change))
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
        emit_json({"aliases": now, "history": builtins_of(history)})
        return OK
    if not history:
        click.echo("there are no aliases; set one with `canarium registry alias MODEL/VARIANT NAME REVISION`")
        return OK
    console().print(aliases_table(named))
    console().print(history_table(history))
    return OK
