"""What a process that died has left in a registry, and what nothing names any more."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from serving.registry.manifest import Manifest
from serving.registry.store import Registry


def temporary_files(registry: Registry) -> list[Path]:
    """Files and trees that were never finished, or were being removed. Meaningful only under the registry's lock."""
    trees = (path for path in registry.trees.all() if path.name.startswith("."))
    others = (path for pattern in ("blobs/sha256/*/.*", "models/*/*/.*") for path in registry.root.glob(pattern))
    return sorted([*trees, *others])


def orphaned_blobs(registry: Registry, manifests: Iterable[Manifest]) -> list[Path]:
    """Finished blobs that none of these manifests names."""
    named = {registry.blobs.path(file.sha256) for manifest in manifests for file in manifest.files.values()}
    return [path for path in registry.blobs.all() if path not in named and not path.name.startswith(".")]


def orphaned_trees(registry: Registry, manifests: Iterable[Manifest]) -> list[Path]:
    """Finished trees of none of these manifests."""
    named = {manifest.digest for manifest in manifests}
    return [path for path in registry.trees.all() if path.name not in named and not path.name.startswith(".")]


def size(path: Path) -> int:
    """Bytes that come free when a file or a tree goes, what other names share left out.

    A blob's links in trees are not others: what removes a blob removes its trees as well.
    """
    if path.is_dir() and not path.is_symlink():
        return sum(file.st_size for file in _files(path) if file.st_nlink == 1)
    return path.lstat().st_size


def _files(folder: Path) -> Iterator[os.stat_result]:
    return (Path(parent, name).lstat() for parent, _, names in os.walk(folder) for name in names)
