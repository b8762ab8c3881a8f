"""Garbage collection: old revisions, and what nothing names any more.

Everything is decided and done under the writers' lock, so nothing can be registered meanwhile that needs what goes. A
manifest goes before its tree and its blobs: whenever the process dies, what is left is whole artifacts and leftovers,
which the next run takes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from serving.errors import RegistryError
from serving.registry.files import sync_folder
from serving.registry.manifest import Manifest
from serving.registry.store import Registry
from serving.registry.unfinished import orphaned_blobs, orphaned_trees, size, temporary_files


class Garbage(NamedTuple):
    """What goes, and how many bytes that frees."""

    revisions: list[Manifest]
    blobs: list[Path]
    trees: list[Path]
    temporary: list[Path]
    bytes: int


def collect(
    registry: Registry,
    *,
    keep: int | None = None,
    used: Collection[str] = (),
    forget: Collection[str] = (),
    dry_run: bool = False,
) -> Garbage:
    """Remove what nothing refers to.

    Args:
        keep: newest revisions of each variant to keep, from 1; older ones go as well, but for those that an alias
            names, those in `used`, and what any kept one was made from. None: all revisions stay.
        used: references (with revision) that must stay.
        forget: references whose manifest is gone for good: they count as removed.
        dry_run: only say what would go.

    Raises:
        RegistryError: no registry; a manifest that cannot be read, is gone or was edited, in which case nothing is
            removed, because nobody knows what it refers to; what cannot be removed.
    """
    if keep is not None and keep < 1:
        raise RegistryError(f"--keep {keep}: at least 1, or nothing would be left of a variant")
    with registry.writing(new=False):
        manifests = registry.list()
        _all_known(registry, manifests, forget)
        old = [] if keep is None else _old(registry, manifests, keep, used)
        going = {manifest.ref for manifest in old}
        kept = [manifest for manifest in manifests if manifest.ref not in going]
        garbage = _find(registry, old, kept)
        if not dry_run:
            try:
                for ref in forget:
                    registry.log.forgotten(ref, registry.now())
                _remove(registry, garbage, kept)
            except OSError as error:
                raise RegistryError(f"{error.filename}: cannot be removed: {error.strerror}") from error
    return garbage


def _all_known(registry: Registry, manifests: list[Manifest], forget: Collection[str]) -> None:
    """Raises `RegistryError` unless the manifest of all that was registered is there, or to be forgotten and gone."""
    lost, there = registry.log.lost(manifests), {manifest.ref for manifest in manifests}
    for ref in forget:
        if ref not in lost or ref in there:
            raise RegistryError(f"--forget {ref}: only a revision whose manifest is gone can be forgotten")
    if left := [ref for ref in lost if ref not in forget]:
        raise RegistryError(
            f"{', '.join(left)}: registered, and the manifest is gone or was edited, so that nobody knows which files "
            "it needs: nothing was removed. Restore it from a copy, or give up one that is gone with --forget REF"
        )


def _old(registry: Registry, manifests: list[Manifest], keep: int, used: Collection[str]) -> list[Manifest]:
    """Revisions that may go, children before the parents that they were made from."""
    by_variant: dict[tuple[str, str], list[Manifest]] = {}
    for manifest in manifests:
        by_variant.setdefault((manifest.model, manifest.variant), []).append(manifest)
    pinned = set(used) | {
        f"{model}/{variant}:{revision}"
        for (model, variant), named in registry.aliases.all().items()
        for revision in named.values()
    }
    wanted = [one for revisions in by_variant.values() for one in _newest(revisions, keep)]
    wanted += [manifest for manifest in manifests if manifest.ref in pinned]
    kept = {manifest.ref for manifest in _with_parents(wanted, manifests)}
    return [manifest for manifest in reversed(manifests) if manifest.ref not in kept]


def _newest(revisions: list[Manifest], count: int) -> list[Manifest]:
    return sorted(revisions, key=lambda manifest: manifest.revision)[-count:]


def _with_parents(wanted: Iterable[Manifest], manifests: list[Manifest]) -> list[Manifest]:
    """These and all that they were made from, by digest and, to be careful, by reference."""
    known = {manifest.digest: manifest for manifest in manifests} | {manifest.ref: manifest for manifest in manifests}
    found: dict[str, Manifest] = {}
    pending = list(wanted)
    while pending:
        manifest = pending.pop()
        if manifest.ref not in found:
            found[manifest.ref] = manifest
            names = [name for parent in manifest.lineage.parents for name in (parent.digest, parent.ref)]
            pending += [known[name] for name in names if name in known]
    return list(found.values())


def _find(registry: Registry, old: list[Manifest], kept: list[Manifest]) -> Garbage:
    blobs, trees = orphaned_blobs(registry, kept), orphaned_trees(registry, kept)
    temporary = temporary_files(registry)
    paths = [*(registry.manifest_path(manifest) for manifest in old), *blobs, *trees, *temporary]
    return Garbage(old, blobs, trees, temporary, sum(size(path) for path in paths))


def _remove(registry: Registry, garbage: Garbage, kept: list[Manifest]) -> None:
    for manifest in registry.log.unlogged(kept):
        registry.log.registered(manifest, registry.now())
    for manifest in garbage.revisions:
        registry.log.removed(manifest, registry.now())
        path = registry.manifest_path(manifest)
        path.unlink()
        sync_folder(path.parent)
    for folder in garbage.trees:
        registry.trees.discard(folder)
    for path in garbage.blobs:
        path.unlink()
    for path in garbage.temporary:
        if path.is_dir():
            registry.trees.discard(path)
        else:
            path.unlink()
