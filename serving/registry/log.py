"""The registry's own log: which revisions were registered with which manifest, and which were removed.

What is registered is decided by the manifests; the log follows them. It is what tells a manifest that was edited or
deleted by hand from one that was not, and it keeps the numbers of removed revisions from being given again.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from serving.errors import RegistryError
from serving.registry.journal import Journal
from serving.registry.manifest import Manifest
from serving.registry.names import parse_ref

REMOVED = "removed"


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line: `digest` is the manifest's, `origin` that of the imported manifest it was made from, if it differs."""

    at: str
    ref: str
    version: int
    digest: str
    event: str = "registered"
    origin: str = ""


class Numbers(NamedTuple):
    """The highest numbers ever given: the revision of one variant and the version in its model."""

    revision: int
    version: int


class RegistryLog:
    """ROOT/log.jsonl. Only writers that hold the registry's lock may add to it."""

    def __init__(self, root: Path) -> None:
        self.journal = Journal(root / "log.jsonl")

    def events(self) -> list[Event]:
        """Oldest first. Raises `RegistryError` if a line cannot be read."""
        try:
            return [msgspec.convert(line, Event) for line in self.journal.lines()]
        except msgspec.ValidationError as error:
            raise RegistryError(
                f"{self.journal.path}: not a registry's log: {error}; restore it from a copy"
            ) from error

    def last(self) -> dict[str, Event]:
        """The last event of each reference."""
        return {event.ref: event for event in self.events()}

    def registered(self, manifest: Manifest, at: str, origin: str = "") -> None:
        """Add a registration, unless there is one that says as much.

        What an edited manifest holds now is not taken for registered: its digest stays that of the first line.
        """
        last = self.last().get(manifest.ref)
        if last is None or last.event == REMOVED:
            self._add(Event(at, manifest.ref, manifest.version, manifest.digest, origin=origin))
        elif origin and origin not in self.origins():
            self._add(Event(at, manifest.ref, manifest.version, last.digest, origin=origin))

    def unlogged(self, manifests: Iterable[Manifest]) -> list[Manifest]:
        """Those that are there although the log does not say so: a process died before it did, or while removing."""
        last = self.last()
        return [one for one in manifests if one.ref not in last or last[one.ref].event == REMOVED]

    def lost(self, manifests: Iterable[Manifest]) -> list[str]:
        """References that were registered, and not removed, with another manifest than is there, or none is."""
        there = {manifest.ref: manifest.digest for manifest in manifests}
        return [ref for ref, event in self.last().items() if event.event != REMOVED and there.get(ref) != event.digest]

    def removed(self, manifest: Manifest, at: str) -> None:
        """Add a removal. It is said before it is done, so that a manifest which is gone without a word is a fault."""
        self._add(Event(at, manifest.ref, manifest.version, manifest.digest, REMOVED))

    def forgotten(self, ref: str, at: str) -> None:
        """Add the removal of a revision whose manifest is gone."""
        event = self.last()[ref]
        self._add(Event(at, ref, event.version, event.digest, REMOVED))

    def highest(self, model: str, variant: str) -> Numbers:
        """The highest numbers given in a model, 0 if none was."""
        revision = version = 0
        for event in self.events():
            ref = parse_ref(event.ref)
            if ref.model == model:
                version = max(version, event.version)
                if ref.variant == variant and isinstance(ref.which, int):
                    revision = max(revision, ref.which)
        return Numbers(revision, version)

    def origins(self) -> dict[str, str]:
        """Digest of an imported manifest -> reference of what was registered for it and is still there."""
        gone = {ref for ref, event in self.last().items() if event.event == REMOVED}
        return {event.origin: event.ref for event in self.events() if event.origin and event.ref not in gone}

    def _add(self, event: Event) -> None:
        self.journal.append(msgspec.to_builtins(event))
