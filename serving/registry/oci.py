"""Artifacts as an OCI image layout: what other tools and another registry can read.

FOLDER/oci-layout, FOLDER/index.json and FOLDER/blobs/sha256/HEX, after version 1.1 of the OCI image specification
(https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md and manifest.md). Each artifact is an image
manifest with an `artifactType`: its config is our manifest as it is stored, its layers are the files under their names.
Each approval is an image manifest of its own whose `subject` is the artifact and whose one layer is the envelope.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from serving.registry.approvals import Signed
from serving.registry.manifest import Manifest

LAYOUT_VERSION: Final = "1.0.0"
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
IMAGE_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE: Final = "application/vnd.canarium.artifact.v1"
CONFIG_TYPE: Final = "application/vnd.canarium.manifest.v1+json"
FILE_TYPE: Final = "application/octet-stream"
APPROVAL_TYPE: Final = "application/vnd.canarium.approval.v1"
ENVELOPE_TYPE: Final = "application/vnd.dsse.envelope.v1+json"
#: The config of an image that needs none, as the specification has it.
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
EMPTY: Final = b"{}"
#: Annotations with a meaning that the specification gives.
TITLE: Final = "org.opencontainers.image.title"
CREATED: Final = "org.opencontainers.image.created"
VERSION: Final = "org.opencontainers.image.version"
REF_NAME: Final = "org.opencontainers.image.ref.name"
#: Of an approval: the public key, and by whom and when it was stored first.
KEY, BY, AT = "canarium.public-key", "canarium.by", "canarium.at"


class Layout(msgspec.Struct, frozen=True):
    """The file `oci-layout`."""

    imageLayoutVersion: str


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True):
    """What refers to a blob: its type, its digest (`sha256:HEX`) and its size in bytes."""

    mediaType: str
    digest: str
    size: int
    artifactType: str = ""
    annotations: dict[str, str] = {}


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """The file `index.json`."""

    schemaVersion: int
    mediaType: str = INDEX_TYPE
    manifests: list[Descriptor]


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image manifest."""

    schemaVersion: int
    mediaType: str = IMAGE_TYPE
    artifactType: str = ""
    config: Descriptor
    layers: list[Descriptor]
    subject: Descriptor | msgspec.UnsetType = msgspec.UNSET
    annotations: dict[str, str] = {}


def image_of(manifest: Manifest, config: Descriptor) -> Image:
    """The image manifest of an artifact.

    Args:
        config: descriptor of the stored form of `manifest`.
    """
    return Image(
        schemaVersion=2,
        artifactType=ARTIFACT_TYPE,
        config=config,
        layers=[
            Descriptor(FILE_TYPE, f"sha256:{file.sha256}", file.bytes, annotations={TITLE: name})
            for name, file in sorted(manifest.files.items())
        ],
        annotations={TITLE: manifest.ref, CREATED: manifest.created_at, VERSION: str(manifest.version)},
    )


def approval_of(signed: Signed, subject: Descriptor, config: Descriptor, envelope: Descriptor) -> Image:
    """The image manifest of an approval of the artifact whose image is `subject`."""
    return Image(
        schemaVersion=2,
        artifactType=APPROVAL_TYPE,
        config=config,
        layers=[envelope],
        subject=subject,
        annotations={KEY: signed.key, BY: signed.by, AT: signed.at},
    )


def encode(document: Any) -> bytes:
    """JSON whose bytes depend on nothing but the content: sorted keys, two spaces, a final newline."""
    return msgspec.json.format(msgspec.json.encode(document, order="sorted"), indent=2) + b"\n"
