"""The registry's tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from rich.table import Table
from rich.text import Text

from serving.commands.render import plain_table
from serving.registry.aliases import Change
from serving.registry.approvals import Signed, faults
from serving.registry.diff import Difference
from serving.registry.manifest import File, Manifest

Aliases = Mapping[tuple[str, str], Mapping[str, int]]


def plain(manifest: Manifest) -> dict[str, Any]:
    """A manifest for JSON."""
    document: dict[str, Any] = msgspec.to_builtins(manifest)
    return document


def artifacts_table(
    manifests: Iterable[Manifest], aliases: Aliases | None = None, approved: Mapping[str, str] | None = None
) -> Table:
    """One artifact a line.

    Args:
        approved: reference -> under which policies, if any is.
    """
    table = plain_table("artifact", "version>", "relation", "format", "MB>", "accuracy>", "created")
    if aliases:
        table.add_column("aliases", header_style="dim")
    if approved:
        table.add_column("approved under", header_style="dim")
    for found in manifests:
        accuracy = found.evaluation.get("accuracy")
        row = [
            found.ref,
            str(found.version),
            found.lineage.relation,
            found.format,
            f"{found.size_bytes / 1e6:.1f}",
            f"{accuracy:.4f}" if isinstance(accuracy, float) else "",
            found.created_at,
        ]
        if aliases:
            named = aliases.get((found.model, found.variant), {})
            row.append(", ".join(sorted(name for name, revision in named.items() if revision == found.revision)))
        if approved:
            row.append(approved.get(found.ref, ""))
        table.add_row(*row)
    return table


def approved_under(approvals: Iterable[Signed], manifests: Iterable[Manifest]) -> dict[str, str]:
    """Reference -> the policies under which somebody approved what is there; whether that counts is another matter."""
    there = {manifest.ref: manifest for manifest in manifests}
    found: dict[str, set[str]] = {}
    for one in approvals:
        if one.ref in there and not faults(one, there[one.ref]):
            found.setdefault(one.ref, set()).add(one.opened()[0].predicate.policy)
    return {ref: ", ".join(sorted(policies)) for ref, policies in found.items()}


def aliases_table(aliases: Aliases) -> Table:
    """What each alias names now."""
    table = plain_table("alias", "names")
    for (model, variant), named in sorted(aliases.items()):
        for name, revision in sorted(named.items()):
            table.add_row(f"{model}/{variant}:{name}", f"{model}/{variant}:{revision}")
    return table


def history_table(changes: Iterable[Change]) -> Table:
    """One change of an alias a line, oldest first."""
    table = plain_table("at", "alias", "from>", "to>", "by", "reason")
    for change in changes:
        alias = f"{change.model}/{change.variant}:{change.alias}"
        table.add_row(change.at, alias, _number(change.old), _number(change.new), Text(change.by), Text(change.reason))
    return table


def _number(revision: int | None) -> str:
    return "–" if revision is None else str(revision)


def difference_tables(found: Difference) -> list[Table]:
    """Files, other values and measurements, each where there is something to say."""
    tables = []
    if found.files:
        tables.append(table := plain_table("file", found.a, found.b, "bytes>", title="files"))
        for file in found.files:
            change = f"{file.b.bytes - file.a.bytes:+,}" if file.a and file.b else ""
            table.add_row(Text(file.name), _file(file.a), _file(file.b), change)
    if found.fields:
        tables.append(table := plain_table("field", found.a, found.b, title="manifest"))
        for field in found.fields:
            table.add_row(Text(field.path), _value(field.a), _value(field.b))
    if found.evaluation:
        tables.append(table := plain_table("number", f"{found.a}>", f"{found.b}>", "difference>", title="evaluation"))
        for one in found.evaluation:
            difference = "" if one.difference is None else f"{one.difference:+g}"
            table.add_row(Text(one.path), _value(one.a), _value(one.b), difference)
    return tables


def _file(file: File | None) -> str:
    return "–" if file is None else f"{file.sha256[:12]} {file.bytes:,} bytes"


def _value(value: Any) -> Text:
    return Text("–" if value is None else f"{value:g}" if isinstance(value, float) else str(value))
