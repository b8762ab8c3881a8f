"""Blobs: contents of files, named by their SHA-256, written once and never changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from serving.errors import RegistryError
from serving.registry.files import copy_atomically, file_digest, make_folder, stream_digest
from serving.registry.manifest import File

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Blobs:
    """ROOT/blobs/sha256/ab/abcd…, mode 0444.

    A blob that no manifest names yet is safe only as long as its writer holds the registry's lock.
    """

    def __init__(self, root: Path) -> None:
        self.root = root / "blobs" / "sha256"

    def path(self, sha256: str) -> Path:
        """Where a blob is, or would be. Raises `RegistryError` for what is no digest."""
        if not is_digest(sha256):
            raise RegistryError(f"{sha256!r} is not a SHA-256 digest")
        return self.root / sha256[:2] / sha256

    def is_whole(self, sha256: str) -> bool:
        """Whether a blob is there and holds what its name says."""
        try:
            return file_digest(self.path(sha256)) == sha256
        except OSError:
            return False

    def put(self, source: Path) -> File:
        """Store a file. Raises `RegistryError` if it cannot be read, or changes while it is."""
        try:
            sha256 = file_digest(source)
            if not self.is_whole(sha256):
                with source.open("rb") as stream:
                    self._write(stream, sha256)
            return File(sha256, source.stat().st_size)
        except ValueError as error:
            raise RegistryError(f"{source} changed while it was read; register it when nothing writes it") from error
        except OSError as error:
            raise RegistryError(f"cannot store {source}: {error.strerror}") from error

    def take(self, stream: BinaryIO, sha256: str) -> None:
        """Store what a stream should hold, unless it is there already; verified in either case.

        Raises:
            ValueError: it holds something else; carries the digest of that.
            OSError: it cannot be read or stored.
        """
        if not self.is_whole(sha256):
            self._write(stream, sha256)
        elif (got := stream_digest(stream)) != sha256:
            raise ValueError(got)

    def _write(self, stream: BinaryIO, sha256: str) -> None:
        path = self.path(sha256)
        make_folder(path.parent)
        copy_atomically(stream, path, sha256, 0o444)

    def all(self) -> Iterator[Path]:
        """Every file among the blobs, unfinished ones (their names start with a dot) included."""
        return (path for path in sorted(self.root.glob("*/*")) if not path.is_dir())


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None
