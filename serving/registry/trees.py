"""Trees: an artifact's files by name, as hard links to the blobs. They can be made again at any time."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from serving.errors import RegistryError
from serving.registry.blobs import Blobs
from serving.registry.files import file_digest, link
from serving.registry.manifest import Manifest
from serving.registry.names import check_file

#: How the names of folders start that are being made, or being taken away.
UNFINISHED = "."


class Trees:
    """ROOT/trees/DIGEST/NAME, DIGEST being the manifest's. Only writers that hold the registry's lock may change them.

    A folder of that name is complete: it gets its name when all links are in it and loses it before one is removed.
    """

    def __init__(self, root: Path, blobs: Blobs) -> None:
        self.root = root / "trees"
        self._blobs = blobs

    def path(self, manifest: Manifest) -> Path:
        return self.root / manifest.digest

    def lay_out(self, manifest: Manifest) -> None:
        """Make the tree, unless there is one.

        Raises:
            RegistryError: a blob is missing, or the folder cannot be written.
        """
        folder = self.path(manifest)
        if folder.is_dir():
            return
        try:
            self.root.mkdir(exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=self.root, prefix=f"{UNFINISHED}new-"))
        except OSError as error:
            raise RegistryError(f"{manifest.ref}: cannot write under {self.root}: {error.strerror}") from error
        try:
            for name, file in manifest.files.items():
                check_file(name)
                link(self._blobs.path(file.sha256), temporary / name)
            temporary.chmod(0o755)
            os.rename(temporary, folder)
        except OSError as error:
            raise RegistryError(
                f"{manifest.ref}: cannot lay out its files: {error}; run `canarium build` again"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def strangers(self, manifest: Manifest) -> list[str]:
        """Names of what is in the tree and no file of the artifact. Raises `RegistryError` if it cannot be read."""
        folder = self.path(manifest)
        try:
            return sorted(set(os.listdir(folder)) - set(manifest.files))
        except OSError as error:
            raise RegistryError(f"{manifest.ref}: cannot read {folder}: {error.strerror}") from error

    def is_whole(self, manifest: Manifest) -> bool:
        """Whether the tree is there and holds exactly the artifact's files."""
        folder = self.path(manifest)
        try:
            if set(os.listdir(folder)) != set(manifest.files):
                return False
            return all(file_digest(folder / name) == file.sha256 for name, file in manifest.files.items())
        except OSError:
            return False

    def repair(self, manifest: Manifest) -> None:
        """Lay the tree out again if something is wrong with it. Raises `RegistryError` as `lay_out` does."""
        if not self.is_whole(manifest):
            self.discard(self.path(manifest))
            self.lay_out(manifest)

    def discard(self, folder: Path) -> None:
        """Take a tree away. Raises `OSError`."""
        if not folder.exists():
            return
        if not folder.name.startswith(UNFINISHED):
            aside = Path(tempfile.mkdtemp(dir=self.root, prefix=f"{UNFINISHED}old-"))
            folder = folder.rename(aside / folder.name).parent
        shutil.rmtree(folder)

    def all(self) -> Iterator[Path]:
        """Every folder among the trees, unfinished ones (their names start with a dot) included."""
        return iter(sorted(self.root.glob("*")))
