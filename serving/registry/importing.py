"""From an OCI image layout to the registry."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path

import msgspec

from serving.errors import RegistryError
from serving.registry.approvals import faults
from serving.registry.binding import misbound
from serving.registry.formats import refuse_outside, refuse_pickle
from serving.registry.layout import Found, LayoutFolder
from serving.registry.manifest import Lineage, Manifest
from serving.registry.store import Registered, Registry


def import_layout(registry: Registry, folder: Path) -> list[Registered]:
    """Register every artifact of a layout under its own model and variant, with the next numbers.

    All digests are verified before any manifest is visible. What has the same content as a registered artifact is not
    registered again, unless it brings approvals that are not of that one; but two artifacts of a layout stay two. The
    lineage names parents as they are numbered here, where they are here.

    Raises:
        RegistryError: something in the layout is missing, damaged or refused; nothing is registered then.
    """
    layout = LayoutFolder(folder)
    found = _parents_first(layout.artifacts())
    for one in found:
        if why := misbound(one.manifest, [other.manifest for other in found]):
            raise RegistryError(f"{one.manifest.ref}: {why}; nothing was imported")
    with registry.writing():
        for one in found:
            _store(registry, layout, one.manifest)
        here, taken = registry.log.origins(), set[str]()
        done = []
        for one in found:
            draft = _renumbered(registry, one.manifest, here)
            made = registry.commit(draft, one.digest, partial(_stands, one, taken))
            here[one.digest] = made.manifest.ref
            taken.add(made.manifest.ref)
            done.append(made)
            for signed in one.approvals:
                registry.approvals.add(msgspec.structs.replace(signed, ref=made.manifest.ref))
    return done


def _stands(one: Found, taken: Collection[str], there: Manifest) -> bool:
    """Whether what is registered here with the same content may be given in place of an imported artifact.

    Approvals are also of what was measured and when, which the content leaves out.
    """
    return there.ref not in taken and not any(faults(signed, there) for signed in one.approvals)


def _store(registry: Registry, layout: LayoutFolder, manifest: Manifest) -> None:
    for name, file in manifest.files.items():
        with layout.open_blob(file.sha256, file.bytes) as stream:
            try:
                registry.blobs.take(stream, file.sha256)
            except ValueError as error:
                raise RegistryError(
                    f"{manifest.ref}: {name} is damaged: expected sha256 {file.sha256}, got {error}; "
                    "nothing was imported"
                ) from error
            except OSError as error:
                raise RegistryError(f"{manifest.ref}: {name} cannot be stored: {error.strerror}") from error
        refuse_pickle(manifest.ref, name, registry.blobs.path(file.sha256))
    refuse_outside(manifest.ref, manifest, registry.blobs.path(manifest.files[manifest.entry].sha256))


def _parents_first(found: list[Found]) -> list[Found]:
    """In the order of their versions, but each after what it was made from."""
    by_digest = {one.digest: one for one in found}
    ordered: dict[str, Found] = {}

    def add(one: Found) -> None:
        # A digest depends on those of the parents, so there are no circles.
        for parent in one.manifest.lineage.parents:
            if parent.digest in by_digest and parent.digest not in ordered:
                add(by_digest[parent.digest])
        ordered.setdefault(one.digest, one)

    for one in sorted(found, key=lambda one: (one.manifest.model, one.manifest.version, one.digest)):
        add(one)
    return list(ordered.values())


def _renumbered(registry: Registry, manifest: Manifest, here: dict[str, str]) -> Manifest:
    """The manifest with each parent that was imported under the reference and digest it has here."""
    parents = []
    for parent in manifest.lineage.parents:
        if parent.digest in here:
            registered = registry.resolve(here[parent.digest])
            parent = msgspec.structs.replace(parent, ref=registered.ref, digest=registered.digest)
        parents.append(parent)
    return msgspec.structs.replace(manifest, lineage=Lineage(manifest.lineage.relation, tuple(parents)))
