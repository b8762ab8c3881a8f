"""What a runtime is given of an artifact: the bytes that were verified, not a path that may hold others by then."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from serving.errors import RegistryError
from serving.registry.manifest import UNKNOWN_DIGEST, Manifest
from serving.registry.onnx_file import locations_in


def content(manifest: Manifest, folder: Path, name: str) -> bytes:
    """A file of an artifact, whole. One that is not registered yet has no digest to be held to.

    Raises:
        RegistryError: it cannot be read, or differs from its digest.
    """
    path, expected = folder / name, manifest.files[name].sha256
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RegistryError(f"{manifest.ref}: cannot load {name}: {path}: {error.strerror}") from error
    if expected != UNKNOWN_DIGEST and (got := hashlib.sha256(data).hexdigest()) != expected:
        raise RegistryError(
            f"{manifest.ref}: {name} is damaged: expected sha256 {expected}, got {got} in {path} when it was loaded"
        )
    return data


@contextmanager
def onnx_source(manifest: Manifest, folder: Path) -> Iterator[bytes | Path]:
    """The bytes of an ONNX model; of one with tensors in other files a private copy of all, which goes with the block.

    Raises:
        RegistryError: as `content`.
    """
    data = content(manifest, folder, manifest.entry)
    others = set[str]()
    with suppress(ValueError):  # no ONNX model: whoever loads it says so
        others = locations_in(io.BytesIO(data), len(data)) & set(manifest.files)
    if not others:
        yield data
        return
    with TemporaryDirectory(prefix="canarium-") as private:
        for name in others - {manifest.entry}:
            (Path(private) / name).write_bytes(content(manifest, folder, name))
        path = Path(private) / manifest.entry
        path.write_bytes(data)
        del data
        yield path
