"""Making a registry whole again, as far as nothing is lost by it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from serving.registry.fsck import usable_manifests
from serving.registry.manifest import Manifest
from serving.registry.store import Registry


def repair(registry: Registry) -> list[str]:
    """Make good what can be without loss: blobs from trees that still hold them, trees from blobs, missing log lines.

    Returns:
        What was done, a sentence each.

    Raises:
        RegistryError: the registry cannot be written.
    """
    done: list[str] = []
    with registry.writing(new=False):
        manifests, _ = usable_manifests(registry)
        for sha256, copies in _copies(registry, manifests).items():
            if not registry.blobs.is_whole(sha256) and _take_back(registry, sha256, copies):
                done.append(f"{registry.blobs.path(sha256)}: restored from a tree")
        for manifest in manifests:
            if not registry.trees.is_whole(manifest) and _blobs_are_whole(registry, manifest):
                registry.trees.repair(manifest)
                done.append(f"{manifest.ref}: its tree is laid out again")
        for manifest in registry.log.unlogged(manifests):
            registry.log.registered(manifest, registry.now())
            done.append(f"{manifest.ref}: is in the log now")
    return done


def _copies(registry: Registry, manifests: list[Manifest]) -> dict[str, list[Path]]:
    """Digest -> the files in trees that should hold it."""
    found: dict[str, list[Path]] = {}
    for manifest in manifests:
        for name, file in manifest.files.items():
            found.setdefault(file.sha256, []).append(registry.trees.path(manifest) / name)
    return found


def _take_back(registry: Registry, sha256: str, copies: list[Path]) -> bool:
    for copy in copies:
        with contextlib.suppress(OSError, ValueError), copy.open("rb") as stream:
            registry.blobs.take(stream, sha256)
            return True
    return False


def _blobs_are_whole(registry: Registry, manifest: Manifest) -> bool:
    return all(registry.blobs.is_whole(file.sha256) for file in manifest.files.values())
