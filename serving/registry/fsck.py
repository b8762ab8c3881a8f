"""Is the registry whole? Every digest and every reference between its parts."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from serving.errors import RegistryError
from serving.registry.approvals import faults as approval_faults
from serving.registry.binding import misbound
from serving.registry.blobs import is_digest
from serving.registry.files import file_digest
from serving.registry.journal import Journal
from serving.registry.log import REMOVED
from serving.registry.manifest import Manifest
from serving.registry.names import check_name, revision_of
from serving.registry.rules import check
from serving.registry.store import Registry
from serving.registry.unfinished import orphaned_blobs, orphaned_trees, temporary_files

_REPAIR = "`canarium registry verify --repair`"
_RESTORE = "restore it from a copy"
_RESTORE_FILE = f"{_RESTORE}, or build or import the artifact again"
_FORGET = "`canarium registry gc --forget"
_COLLECT = "`canarium registry gc` removes it"


class Finding(NamedTuple):
    """One thing that is not as it should be.

    Attributes:
        what: where, what and what to do, in one sentence.
        ref: the artifact that cannot be used because of it, if it is one.
        fault: something is wrong; otherwise only left over, which harms nobody.
    """

    what: str
    ref: str = ""
    fault: bool = True


class Report(NamedTuple):
    """How many artifacts there are, how many of them are whole, and everything found."""

    artifacts: int
    whole: int
    findings: list[Finding]

    @property
    def faults(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.fault]


def verify(registry: Registry) -> Report:
    """Check everything, with writers held off. Raises `RegistryError` if there is no registry."""
    with registry.reading():
        manifests, findings = usable_manifests(registry)
        unusable = {finding.ref for finding in findings}
        blobs = _blobs(registry)
        for manifest in manifests:
            findings += _files(registry, manifest, blobs)
            findings += _tree(registry, manifest, blobs)
            if why := misbound(manifest, manifests):
                findings.append(Finding(f"{manifest.ref}: {why}; build it again", manifest.ref))
        findings += _log(registry, manifests, unusable)
        findings += _aliases(registry, {manifest.ref for manifest in manifests})
        findings += _approvals(registry, manifests, unusable)
        findings += _left_over(registry, manifests, complete=not unusable)
    refused = {finding.ref for finding in findings if finding.ref}
    refs = {manifest.ref for manifest in manifests} | refused
    return Report(len(refs), len(refs - refused), findings)


# ---------------------------------------------------------------- the parts


def usable_manifests(registry: Registry) -> tuple[list[Manifest], list[Finding]]:
    """Every usable manifest, and what is wrong with the others."""
    found, findings = [], []
    root = registry.root / "models"
    for path in sorted(root.glob("*/*/*")):
        model, variant, name = path.relative_to(root).parts
        revision = revision_of(name)
        if name.startswith("."):
            continue  # left over
        try:
            check_name("model", model)
            check_name("variant", variant)
            if revision is None:
                raise RegistryError("is not named for a revision")
        except RegistryError as error:
            findings.append(Finding(f"{path}: does not belong here ({error}); remove it"))
            continue
        ref = f"{model}/{variant}:{revision}"
        try:
            manifest = registry.read(model, variant, revision)
            check(manifest)
        except RegistryError as error:
            findings.append(Finding(f"{error}; {_RESTORE}", ref))
        else:
            found.append(manifest)
    return sorted(found, key=lambda manifest: (manifest.model, manifest.version)), findings


def _blobs(registry: Registry) -> dict[str, str]:
    """Digest by name -> digest of the content, for every blob that is there; "" for one that cannot be read."""
    found = {}
    for path in registry.blobs.all():
        if is_digest(path.name) and path == registry.blobs.path(path.name):
            found[path.name] = _content(path)
    return found


def _files(registry: Registry, manifest: Manifest, blobs: Mapping[str, str]) -> Iterator[Finding]:
    """What is wrong with the blobs of an artifact."""
    for name, file in manifest.files.items():
        path, got = registry.blobs.path(file.sha256), blobs.get(file.sha256)
        if got is None:
            what = f"{path} is not there"
        elif got != file.sha256:
            what = f"{path} holds sha256 {got}" if got else f"{path} cannot be read"
        elif (size := path.stat().st_size) != file.bytes:
            what = f"{path} has {size} bytes instead of {file.bytes}"
        else:
            continue
        yield Finding(f"{manifest.ref}: {name}: {what}; {_RESTORE_FILE}", manifest.ref)


def _tree(registry: Registry, manifest: Manifest, blobs: Mapping[str, str]) -> Iterator[Finding]:
    """What is wrong with an artifact's tree, faults of the blobs that it links to left out."""
    folder = registry.trees.path(manifest)
    if not folder.is_dir():
        yield Finding(f"{manifest.ref}: has no tree; it is laid out on use", fault=False)
        return
    there = set(os.listdir(folder))
    wrong = [f"{folder / name} does not belong to it" for name in sorted(there - set(manifest.files))]
    for name, file in manifest.files.items():
        path, blob = folder / name, registry.blobs.path(file.sha256)
        if name not in there:
            wrong.append(f"{path} is not there")
        elif not (file.sha256 in blobs and path.exists() and path.samefile(blob)) and _content(path) != file.sha256:
            wrong.append(f"{path} does not hold what was registered")
    yield from (Finding(f"{manifest.ref}: {what}; {_REPAIR} lays it out again", manifest.ref) for what in wrong)


def _log(registry: Registry, manifests: list[Manifest], unusable: Collection[str]) -> Iterator[Finding]:
    journal = registry.log.journal
    yield from (faults := _journal(journal))
    try:
        last = registry.log.last()
    except RegistryError as error:
        yield from [] if faults else [Finding(str(error))]
        return
    for manifest in registry.log.unlogged(manifests):
        yield Finding(f"{manifest.ref}: is not in {journal.path}; {_REPAIR} adds it", fault=False)
    there = {manifest.ref: manifest for manifest in manifests}
    for ref, event in last.items():
        if event.event == REMOVED or ref in unusable:
            continue
        if ref not in there:
            what = f"was registered on {event.at}, and its manifest is gone"
            yield Finding(f"{ref}: {what}; {_RESTORE}, or give it up: {_FORGET} {ref}`", ref)
        elif _content(registry.manifest_path(there[ref])) != event.digest:
            yield Finding(f"{ref}: its manifest was edited after it was registered on {event.at}; {_RESTORE}", ref)


def _journal(journal: Journal) -> list[Finding]:
    findings = [Finding(fault) for fault in journal.faults()]
    if journal.torn:
        what = f"{journal.path}: its last line is unfinished; it does not count, and the next line takes its place"
        findings.append(Finding(what, fault=False))
    return findings


def _aliases(registry: Registry, refs: set[str]) -> Iterator[Finding]:
    yield from (faults := _journal(registry.aliases.journal))
    try:
        named = registry.aliases.all()
    except RegistryError as error:
        yield from [] if faults else [Finding(str(error))]
        return
    for (model, variant), aliases in named.items():
        for alias, revision in aliases.items():
            if f"{model}/{variant}:{revision}" not in refs:
                yield Finding(
                    f"{model}/{variant}:{alias}: names revision {revision}, which is not there; move it with "
                    f"`canarium registry alias {model}/{variant} {alias} REVISION`"
                )


def _approvals(registry: Registry, manifests: list[Manifest], unusable: Collection[str]) -> Iterator[Finding]:
    yield from (faults := _journal(registry.approvals.journal))
    try:
        signed = registry.approvals.all()
    except RegistryError as error:
        yield from [] if faults else [Finding(str(error))]
        return
    there = {manifest.ref: manifest for manifest in manifests}
    for one in signed:
        if one.ref not in unusable and (what := approval_faults(one, there.get(one.ref))):
            yield Finding(f"{one.ref}: its approval of {one.at} by {one.by} is void: {what}; approve it again")


def _left_over(registry: Registry, manifests: list[Manifest], *, complete: bool) -> Iterator[Finding]:
    yield from (Finding(f"{path}: is unfinished; {_COLLECT}", fault=False) for path in temporary_files(registry))
    if not complete:
        return  # without every manifest nobody knows what is needed
    for path in [*orphaned_blobs(registry, manifests), *orphaned_trees(registry, manifests)]:
        yield Finding(f"{path}: nothing refers to it; {_COLLECT}", fault=False)


def _content(path: Path) -> str:
    """SHA-256 of a file; "" if it cannot be read."""
    try:
        return file_digest(path)
    except OSError:
        return ""
