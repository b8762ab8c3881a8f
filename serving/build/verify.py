"""`canarium build --verify`: make everything again in a clean folder and compare, tier by tier.

    bytes     the artifact's files are the same, bit for bit
    outputs   other bytes, but on this machine the same answers, bit for bit, to the golden rows
    decisions other numbers within a tolerance, and the same class for every golden row
    none      not even that

What is not equal in bytes is traced to the first step that gave something else, and that to its cause.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.console import Console

from serving.build.cache import BuildError, Made, versions
from serving.build.cpu import cpu_info
from serving.build.runner import BuildResult, build
from serving.registry.manifest import Manifest
from serving.registry.store import Registry

Tier = Literal["bytes", "outputs", "decisions", "none"]
#: Rows of the test split that both artifacts answer, in batches of 16 with one thread.
GOLDEN_ROWS = 256
#: Largest difference of a probability that still counts as the same decision made elsewhere.
TOLERANCE = 0.02
#: Files of a step that hold measured times, and so differ each time.
_MEASURED = ("evaluation.json", "evidence.json", "trial.json")


class Compared(NamedTuple):
    """One variant made twice: the highest tier it reaches, the numbers behind it, and why not a higher one."""

    variant: str
    ref: str
    tier: Tier
    largest_difference: float
    flips: int
    cause: str


def verify(recipe_path: Path, registry: Registry, *, cache_dir: Path, console: Console | None = None) -> list[Compared]:
    """Build (from the cache where it can), build again in a clean folder, and compare every variant.

    Raises:
        BuildError: one of the builds failed.
        RegistryError: a registered artifact is damaged.
    """
    kept = build(recipe_path, registry, cache_dir=cache_dir, console=console)
    if console is not None:
        console.print("again, in a clean folder:")
    cache_dir.parent.mkdir(parents=True, exist_ok=True)
    clean = Path(tempfile.mkdtemp(dir=cache_dir.parent, prefix=".verify-"))
    try:
        again = build(recipe_path, Registry(clean / "registry"), cache_dir=clean / "build", console=console)
        return compare(kept, registry, again, Registry(clean / "registry"))
    finally:
        shutil.rmtree(clean, ignore_errors=True)


def compare(kept: BuildResult, registry: Registry, again: BuildResult, other: Registry) -> list[Compared]:
    """Compare the artifacts of two builds of one recipe, variant by variant.

    Raises:
        BuildError: one of them registered variants that the other did not.
    """
    ours, theirs = ({made.variant: made for made in each.manifests} for each in (kept, again))
    if ours.keys() != theirs.keys():
        odd = ", ".join(sorted(ours.keys() ^ theirs.keys()))
        raise BuildError(
            f"one build registered variants that the other refused: {odd}; a requirement is near its limit"
        )
    differs = different_steps(kept.steps, again.steps)
    return [_one(ours[name], registry, theirs[name], other, kept, again, differs) for name in ours]


def _one(
    manifest: Manifest,
    registry: Registry,
    twin: Manifest,
    other: Registry,
    kept: BuildResult,
    again: BuildResult,
    differs: Sequence[str],
) -> Compared:
    name, ref = manifest.variant, manifest.ref
    if manifest.files == twin.files:
        return Compared(name, ref, "bytes", 0.0, 0, "")
    if manifest.postprocess.task != "classification":  # no rows of labelled data to answer
        return Compared(name, ref, "none", float("nan"), 0, _cause(manifest, twin, differs))
    first, second = (
        _golden(each, at, result) for each, at, result in ((manifest, registry, kept), (twin, other, again))
    )
    largest = float(np.abs(first - second).max())
    flips = int((first.argmax(axis=1) != second.argmax(axis=1)).sum())
    if np.array_equal(first, second):
        tier: Tier = "outputs"
    elif flips == 0 and largest <= TOLERANCE:
        tier = "decisions"
    else:
        tier = "none"
    return Compared(name, ref, tier, largest, flips, _cause(manifest, twin, differs))


def _golden(manifest: Manifest, registry: Registry, result: BuildResult) -> np.ndarray:
    """Probabilities float [n, C] of the golden rows, as the server would give them."""
    from serving.build.evaluate import infer
    from serving.build.examples import read_examples
    from serving.runtimes.base import open_session
    from serving.runtimes.pipeline import Pipeline

    _, folder = registry.open(manifest.ref)
    runtime = {"onnx": "onnxruntime", "torch": "torch"}[manifest.format]
    pipeline = Pipeline(manifest, folder)
    data = next(made for made in result.steps if made.name == "data")
    examples = read_examples(data.folder, "test", manifest.postprocess.labels).head(GOLDEN_ROWS)
    session = open_session(manifest, folder, runtime=runtime, threads=1)
    return pipeline.postprocess({"logits": infer(pipeline, session, examples)})["probabilities"]


def different_steps(kept: Sequence[Made], again: Sequence[Made]) -> list[str]:
    """Names of the steps that had the same inputs in both builds and gave other files, measured times aside."""
    before = {made.name: made for made in kept}
    return [made.name for made in again if made.name in before and _differ(before[made.name], made)]


def _differ(one: Made, two: Made) -> bool:
    if one.key != two.key:
        return False  # its inputs differed, so an earlier step is to blame
    ours, theirs = one.digests(), two.digests()
    return any(ours.get(name) != digest for name, digest in theirs.items() if name not in _MEASURED)


def _cause(manifest: Manifest, twin: Manifest, differs: Sequence[str]) -> str:
    """Why the bytes are not the same, in words."""
    then, now = manifest.build, twin.build
    moved = _changes(then.get("versions", {}), versions())
    if moved:
        return f"other library versions: {moved}"
    if then.get("cpu", {}).get("flags") != cpu_info()["flags"]:
        return f"another processor: registered on {then.get('cpu', {}).get('model')}"
    if then.get("recipe_sha256") != now.get("recipe_sha256"):
        return "the recipe has changed since"
    if differs:
        return f"step {differs[0]} gave other bytes from the same inputs on this machine: its threads or its library"
    return "a chosen setting differs, because it hangs on measured times"


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {then[name]} → {now.get(name)}" for name in then if then[name] != now.get(name))
