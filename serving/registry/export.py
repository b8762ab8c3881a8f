"""From the registry to a folder: an OCI image layout, the same bytes for the same artifacts."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from serving.errors import RegistryError
from serving.registry import oci
from serving.registry.approvals import Signed
from serving.registry.files import copy_atomically, make_folder, sync_folder, write_atomically
from serving.registry.manifest import Manifest
from serving.registry.store import Registry


def export(registry: Registry, refs: Sequence[str], folder: Path) -> list[Manifest]:
    """Write artifacts to a new folder; it has its name when everything is in it.

    Returns:
        What was exported, in the order of the index.

    Raises:
        RegistryError: nothing of that name, a damaged artifact, a folder that holds something already or cannot be
            written.
    """
    chosen = {manifest.ref: manifest for manifest in map(registry.checked, refs)}
    manifests = sorted(chosen.values(), key=lambda manifest: (manifest.model, manifest.version))
    try:
        if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
            raise RegistryError(f"{folder}: is there already; name a new folder")
        make_folder(folder.absolute().parent)
        temporary = Path(tempfile.mkdtemp(dir=folder.absolute().parent, prefix=f".{folder.name}."))
        try:
            _write(registry, manifests, temporary)
            temporary.chmod(0o755)
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_folder(folder.absolute().parent)
    except OSError as error:
        raise RegistryError(f"{folder}: cannot export: {error.strerror} ({error.filename})") from error
    return manifests


def _write(registry: Registry, manifests: list[Manifest], folder: Path) -> None:
    blobs = folder / "blobs" / "sha256"
    make_folder(blobs)
    entries = []
    for manifest in manifests:
        for name, file in sorted(manifest.files.items()):
            _copy(registry, manifest, name, blobs / file.sha256)
        config = _put(blobs, oci.CONFIG_TYPE, manifest.encode())
        image = _put(blobs, oci.IMAGE_TYPE, oci.encode(oci.image_of(manifest, config)))
        entries.append(
            oci.Descriptor(
                image.mediaType, image.digest, image.size, oci.ARTIFACT_TYPE, annotations={oci.REF_NAME: manifest.ref}
            )
        )
        entries += [_approval(blobs, signed, image) for signed in registry.approvals.of(manifest)]
    write_atomically(folder / "oci-layout", oci.encode(oci.Layout(oci.LAYOUT_VERSION)))
    write_atomically(folder / "index.json", oci.encode(oci.Index(schemaVersion=2, manifests=entries)))


def _approval(blobs: Path, signed: Signed, subject: oci.Descriptor) -> oci.Descriptor:
    envelope = _put(blobs, oci.ENVELOPE_TYPE, oci.encode(signed.envelope))
    config = _put(blobs, oci.EMPTY_TYPE, oci.EMPTY)
    image = _put(blobs, oci.IMAGE_TYPE, oci.encode(oci.approval_of(signed, subject, config, envelope)))
    return oci.Descriptor(image.mediaType, image.digest, image.size, oci.APPROVAL_TYPE)


def _copy(registry: Registry, manifest: Manifest, name: str, target: Path) -> None:
    """A copy, not a link: what is done to the folder must not reach the registry."""
    sha256 = manifest.files[name].sha256
    if target.exists():
        return
    try:
        with registry.blobs.path(sha256).open("rb") as stream:
            copy_atomically(stream, target, sha256)
    except ValueError as error:
        raise RegistryError(
            f"{manifest.ref}: {name} is damaged: expected sha256 {sha256}, got {error}; "
            "`canarium registry verify` says what else is"
        ) from error


def _put(blobs: Path, media_type: str, data: bytes) -> oci.Descriptor:
    sha256 = hashlib.sha256(data).hexdigest()
    write_atomically(blobs / sha256, data)
    return oci.Descriptor(media_type, f"sha256:{sha256}", len(data))
