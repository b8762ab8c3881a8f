"""A recipe that was built once, for tests that look at what it made."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from serving.build.runner import BuildResult, build
from serving.registry.store import Registry


class Built(NamedTuple):
    recipe: Path
    registry: Registry
    cache: Path
    result: BuildResult


def built_in(folder: Path, recipe: Path) -> Built:
    """Carry out a recipe with its registry and its cache in `folder`."""
    registry, cache = Registry(folder / "registry"), folder / "cache"
    return Built(recipe, registry, cache, build(recipe, registry, cache_dir=cache))
