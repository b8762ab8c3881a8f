"""Reading an OCI image layout that anybody may have written: every name checked, every digest verified."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import msgspec

from serving.decoding import UNREADABLE
from serving.errors import RegistryError
from serving.governance.dsse import Envelope
from serving.registry import oci
from serving.registry.approvals import Signed, faults
from serving.registry.blobs import is_digest
from serving.registry.manifest import Manifest
from serving.registry.rules import check

#: Most bytes of one JSON document; a manifest is a few kilobytes.
DOCUMENT_LIMIT = 16 << 20

Document = TypeVar("Document")


class Found(NamedTuple):
    """An artifact of a layout: its manifest, the digest of that, and its approvals."""

    manifest: Manifest
    digest: str
    approvals: tuple[Signed, ...] = ()


class LayoutFolder:
    """An OCI image layout on disk.

    Raises:
        RegistryError: it is none, or of another version.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if not (folder / "oci-layout").is_file():
            raise RegistryError(f"{folder}: is no OCI image layout (it has no file oci-layout); see `registry export`")
        layout = self._decode("oci-layout", self._small("oci-layout"), oci.Layout)
        if layout.imageLayoutVersion != oci.LAYOUT_VERSION:
            raise RegistryError(
                f"{folder}: layout version {layout.imageLayoutVersion!r} is not supported, only {oci.LAYOUT_VERSION!r}"
            )

    def artifacts(self) -> list[Found]:
        """Every artifact of ours, checked but for the content of its files. Others are passed over.

        Raises:
            RegistryError: none is there; one has a digest, a size or a name that is not right.
        """
        index = self._decode("index.json", self._small("index.json"), oci.Index)
        found: dict[str, Found] = {}
        images: dict[str, str] = {}
        approvals: list[tuple[str, oci.Image]] = []
        for entry in index.manifests:
            if entry.mediaType != oci.IMAGE_TYPE:
                continue
            where, image = self._document(entry, oci.Image)
            if image.artifactType == oci.ARTIFACT_TYPE:
                one = self._artifact(where, image)
                found[one.digest], images[entry.digest] = one, one.digest
            elif image.artifactType == oci.APPROVAL_TYPE:
                approvals.append((where, image))
        if not found:
            raise RegistryError(f"{self._folder}: holds no artifact of Canarium ({oci.ARTIFACT_TYPE})")
        for where, image in approvals:
            subject = image.subject.digest if isinstance(image.subject, oci.Descriptor) else ""
            if subject in images:
                one = found[images[subject]]
                signed = self._approval(where, image, one.manifest)
                found[one.digest] = one._replace(approvals=(*one.approvals, signed))
        return list(found.values())

    def open_blob(self, sha256: str, size: int) -> BinaryIO:
        """A blob of a given size, its content not verified yet. Raises `RegistryError`."""
        if not is_digest(sha256):
            raise RegistryError(f"{self._folder}: {sha256!r} is not a SHA-256 digest")
        return self._open(f"blobs/sha256/{sha256}", size)

    def _artifact(self, where: str, image: oci.Image) -> Found:
        if image.config.mediaType != oci.CONFIG_TYPE:
            raise RegistryError(f"{where}: its config is {image.config.mediaType!r} and not {oci.CONFIG_TYPE!r}")
        where, manifest = self._document(image.config, Manifest)
        check(manifest)
        if oci.image_of(manifest, image.config).layers != [_known(layer) for layer in image.layers]:
            raise RegistryError(f"{where}: the files of {manifest.ref} are not the layers that come with it")
        return Found(manifest, _hex(where, image.config))

    def _approval(self, where: str, image: oci.Image, manifest: Manifest) -> Signed:
        """An approval whose signature is valid and which is of this artifact."""
        if [layer.mediaType for layer in image.layers] != [oci.ENVELOPE_TYPE]:
            raise RegistryError(f"{where}: an approval has one layer, of type {oci.ENVELOPE_TYPE!r}")
        _, envelope = self._document(image.layers[0], Envelope)
        told = image.annotations
        signed = Signed(told.get(oci.AT, ""), told.get(oci.BY, ""), manifest.ref, told.get(oci.KEY, ""), envelope)
        if fault := faults(signed, manifest):
            raise RegistryError(f"{where}: an approval of {manifest.ref} is void: {fault}; nothing was imported")
        return signed

    def _document(self, entry: oci.Descriptor, kind: type[Document]) -> tuple[str, Document]:
        """Where a document is, and what it says; its digest is verified."""
        name = f"blobs/sha256/{_hex(str(self._folder), entry)}"
        where = f"{self._folder / name}"
        if not 0 <= entry.size <= DOCUMENT_LIMIT:
            raise RegistryError(f"{where}: {entry.size} bytes are over the {DOCUMENT_LIMIT} of a manifest")
        with self._open(name, entry.size) as stream:
            data = stream.read(entry.size + 1)
        got = hashlib.sha256(data).hexdigest()
        if f"sha256:{got}" != entry.digest:
            raise RegistryError(f"{where}: is damaged, it holds sha256 {got}; nothing was imported")
        return where, self._decode(name, data, kind)

    def _small(self, name: str) -> bytes:
        with self._open(name) as stream:
            data = stream.read(DOCUMENT_LIMIT + 1)
        if len(data) > DOCUMENT_LIMIT:
            raise RegistryError(f"{self._folder / name}: is over {DOCUMENT_LIMIT} bytes")
        return data

    def _open(self, name: str, size: int | None = None) -> BinaryIO:
        """A file of the layout; never through a link, and nothing that is not a file."""
        path = self._folder / name
        try:
            descriptor = _open_under(self._folder, name)
        except OSError as error:
            raise RegistryError(f"{path}: cannot be read ({error.strerror}); nothing was imported") from error
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or size not in (None, found.st_size):
            os.close(descriptor)
            what = f"has {found.st_size} bytes and not {size}" if stat.S_ISREG(found.st_mode) else "is not a file"
            raise RegistryError(f"{path}: {what}; nothing was imported")
        return os.fdopen(descriptor, "rb")

    def _decode(self, name: str, data: bytes, kind: type[Document]) -> Document:
        try:
            return msgspec.json.decode(data, type=kind)
        except UNREADABLE as error:
            raise RegistryError(f"{self._folder / name}: is not what it should be: {error}") from error


def _open_under(folder: Path, name: str) -> int:
    """A descriptor of what has that name under a folder, of which no part is a link. Raises `OSError`."""
    *parts, last = name.split("/")
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            outer, at = at, os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(outer)
        return os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    finally:
        os.close(at)


def _hex(where: str, entry: oci.Descriptor) -> str:
    algorithm, _, digest = entry.digest.partition(":")
    if algorithm != "sha256" or not is_digest(digest):
        raise RegistryError(f"{where}: digest {entry.digest!r} is not sha256 and 64 hexadecimal digits")
    return digest


def _known(layer: oci.Descriptor) -> oci.Descriptor:
    """A layer without what is of no meaning here."""
    title = {key: value for key, value in layer.annotations.items() if key == oci.TITLE}
    return oci.Descriptor(oci.FILE_TYPE, layer.digest, layer.size, annotations=title)
