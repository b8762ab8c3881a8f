"""A recipe that was built once, for tests that look at what it made."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from serving.build.runner import BuildResult, build
from serving.registry.manifest import Manifest
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


def nudged(registry: Registry, ref: str, by: float, build: dict[str, Any]) -> Manifest:
    """A newer revision of an artifact, one of whose weights is another, as another machine may have built it."""
    manifest, folder = registry.open(ref)
    model = onnx.load(folder / manifest.entry)
    weight = max(model.graph.initializer, key=lambda tensor: numpy_helper.to_array(tensor).size)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(by), weight.name))
    onnx.save(model, registry.root / "nudged.onnx")
    with registry.writing():
        files = manifest.files | {manifest.entry: registry.blobs.put(registry.root / "nudged.onnx")}
        return registry.commit(msgspec.structs.replace(manifest, files=files, build=manifest.build | build)).manifest
