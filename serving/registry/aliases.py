"""Aliases: names such as `production` for a revision of a variant, and who moved them when and why.

ROOT/aliases.jsonl is both the history and the present: an alias names what its last line says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from serving.errors import RegistryError
from serving.registry.journal import Journal
from serving.registry.names import check_alias, listed

if TYPE_CHECKING:
    from serving.registry.store import Registry


class Change(msgspec.Struct, frozen=True, rename={"old": "from", "new": "to"}):
    """One line: an alias was set (`old` None), moved, or removed (`new` None)."""

    at: str
    by: str
    model: str
    variant: str
    alias: str
    old: int | None
    new: int | None
    reason: str


class Aliases:
    """The aliases of a registry. Reading needs no lock and sees a change whole or not at all."""

    def __init__(self, root: Path) -> None:
        self.journal = Journal(root / "aliases.jsonl")

    def history(self, model: str | None = None, variant: str | None = None) -> Sequence[Change]:
        """Every change, oldest first; of one model or variant only. Raises `RegistryError` if a line cannot be read."""
        try:
            changes = [msgspec.convert(line, Change) for line in self.journal.lines()]
        except msgspec.ValidationError as error:
            raise RegistryError(f"{self.journal.path}: not an alias log: {error}; restore it from a copy") from error
        return [one for one in changes if model in (None, one.model) and variant in (None, one.variant)]

    def of(self, model: str, variant: str) -> dict[str, int]:
        """Alias -> revision of one variant."""
        return self.all().get((model, variant), {})

    def all(self) -> dict[tuple[str, str], dict[str, int]]:
        """(model, variant) -> alias -> revision."""
        found: dict[tuple[str, str], dict[str, int]] = {}
        for change in self.history():
            named = found.setdefault((change.model, change.variant), {})
            named.pop(change.alias, None)
            if change.new is not None:
                named[change.alias] = change.new
        return found


def set_alias(registry: Registry, variant: tuple[str, str], alias: str, which: str, *, by: str, reason: str) -> Change:
    """Let an alias name a revision. One that names it already stays as it is, without a line in the log.

    Args:
        variant: model and variant.
        which: a revision, `latest`, or another alias of the same variant.
        by: who does it.
        reason: why.

    Returns:
        What changed; `old` equals `new` if nothing did.

    Raises:
        RegistryError: an unusable name, no such revision.
    """
    model, name = variant
    check_alias(alias)
    with registry.writing(new=False):
        new = registry.resolve(f"{model}/{name}:{which}").revision
        change = Change(
            registry.now(), by, model, name, alias, registry.aliases.of(model, name).get(alias), new, reason
        )
        if change.old != new:
            registry.aliases.journal.append(msgspec.to_builtins(change))
    return change


def remove_alias(registry: Registry, variant: tuple[str, str], alias: str, *, by: str, reason: str) -> Change:
    """Take an alias away; its history stays. Raises `RegistryError` if there is none."""
    model, name = variant
    with registry.writing(new=False):
        named = registry.aliases.of(model, name)
        if alias not in named:
            raise RegistryError(f"{model}/{name} has no alias {alias!r} (it has: {listed(named)})")
        change = Change(registry.now(), by, model, name, alias, named[alias], None, reason)
        registry.aliases.journal.append(msgspec.to_builtins(change))
    return change
