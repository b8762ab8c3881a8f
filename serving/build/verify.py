"""`canarium build --verify`: make everything again in a clean folder and compare, tier by tier.

    bytes     the artifact's files are the same, bit for bit
    outputs   other bytes, but on this machine the same answers, bit for bit, to the golden rows
    decisions other numbers within a tolerance, and the same class for every golden row
    none      not even that

It is compared with what the registry holds of the recipe, whenever and wherever that was built. What is not equal in
bytes is traced to other libraries, another processor, a changed recipe, or the first step that gave something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.console import Console

from serving.build.cache import Cache, Made, versions
from serving.build.clean import clean_folder
from serving.build.cpu import cpu_info
from serving.build.dry_run import dry_run
from serving.build.kinds import load_recipe, plan_of
from serving.build.plan import Answers
from serving.build.runner import BuildResult, build
from serving.registry.files import file_digest
from serving.registry.manifest import Manifest
from serving.registry.store import Registry

Tier = Literal["bytes", "outputs", "decisions", "none"]
#: Answers of an artifact, whose files are in the folder, to the golden rows.
Golden = Callable[[Manifest, Path], Answers]
#: Largest difference of a probability that still counts as the same decision made elsewhere.
TOLERANCE = 0.02
#: Files of a step that hold measured times, and so differ each time.
_MEASURED = ("evaluation.json", "evidence.json", "trial.json")


class Compared(NamedTuple):
    """One variant made twice: the highest tier it reaches, the numbers behind it, and why not a higher one.

    `largest_difference` (of a probability) is NaN where nothing could be asked twice.
    """

    variant: str
    ref: str
    tier: Tier
    largest_difference: float
    flips: int
    cause: str


def verify(recipe_path: Path, registry: Registry, *, cache_dir: Path, console: Console | None = None) -> list[Compared]:
    """Build in a clean folder, and compare every variant with what is registered; only if nothing is, build that first.

    Raises:
        ConfigError: the recipe cannot be used.
        BuildError: one of the builds failed.
        RegistryError: a registered artifact is damaged.
    """
    recipe, digest = load_recipe(recipe_path), file_digest(recipe_path)
    if not registered(registry, recipe.model, digest):
        build(recipe_path, registry, cache_dir=cache_dir, console=console)
    kept = registered(registry, recipe.model, digest)
    if console is not None:
        console.print("again, in a clean folder:")
    with clean_folder(cache_dir.parent) as clean:
        other = Registry(clean / "registry")
        again = build(recipe_path, other, cache_dir=clean / "build", console=console)
        before = [made for made in dry_run(recipe_path, cache_dir=cache_dir).steps if made.cached]
        plan = plan_of(recipe)(recipe, recipe_path.parent, Cache(clean / "build", lambda *_: None, dry=True))
        data = next(made for made in again.steps if made.name == "data")
        return compare(
            kept, registry, again, other, before, lambda manifest, folder: plan.golden(manifest, folder, data.folder)
        )


def registered(registry: Registry, model: str, recipe_sha256: str) -> dict[str, Manifest]:
    """What builds registered of a model: of each variant the newest revision by this recipe, else by another.

    What another recipe registered is part of this one's build where something of this one was made from it: a variant
    that comes out the same keeps the revision that it has.

    Raises:
        RegistryError: a manifest cannot be read.
    """
    every = [
        registry.read(model, variant, revision)
        for variant in registry.variants(model)
        for revision in registry.revisions(model, variant)
    ]
    ours = {manifest.ref for manifest in every if manifest.build.get("recipe_sha256") == recipe_sha256}
    parents = {parent.ref for manifest in every if manifest.ref in ours for parent in manifest.lineage.parents}

    def rank(manifest: Manifest) -> tuple[int, int]:
        return 2 if manifest.ref in ours else int(manifest.ref in parents), manifest.revision

    return {each.variant: each for each in sorted(every, key=rank) if "recipe_sha256" in each.build}


def compare(
    kept: Mapping[str, Manifest],
    registry: Registry,
    again: BuildResult,
    other: Registry,
    before: Sequence[Made],
    golden: Golden,
) -> list[Compared]:
    """Compare what is registered with what a build gave again, variant by variant.

    Args:
        kept: variant -> what is registered; a variant that another recipe made, and this one does not, is left out.
        again: the build, whose artifacts are in `other`.
        before: the steps of the same inputs that an earlier build left, as far as they are still there.
        golden: asks both for the rows that they are compared by.
    """
    made = {manifest.variant: manifest for manifest in again.manifests}
    recipe = {manifest.build["recipe_sha256"] for manifest in again.manifests}
    first, compared = _first_difference(before, again.steps), []
    for name, twin in made.items():
        if name in kept:
            compared.append(_one(kept[name], registry, twin, other, golden, first))
        else:
            why = "it is not registered: it was refused when it was built, or the recipe did not have it"
            compared.append(_missing(name, f"{twin.model}/{name}", why))
    for name, manifest in kept.items():
        if name in again.refused:
            compared.append(_missing(name, manifest.ref, f"this time it was refused: {again.refused[name]}"))
        elif name not in made and manifest.build["recipe_sha256"] in recipe:
            compared.append(_missing(name, manifest.ref, "this time it was not made"))
    return compared


def _missing(variant: str, ref: str, why: str) -> Compared:
    return Compared(variant, ref, "none", float("nan"), 0, why)


def _one(
    manifest: Manifest, registry: Registry, twin: Manifest, other: Registry, golden: Golden, first: str
) -> Compared:
    name, ref = manifest.variant, manifest.ref
    if manifest.files == twin.files:
        return Compared(name, ref, "bytes", 0.0, 0, "")
    cause = _cause(manifest, twin, first)
    if _asked(manifest) != _asked(twin):
        return _missing(name, ref, cause)
    ours, theirs = (golden(*where.open(each.ref)) for each, where in ((manifest, registry), (twin, other)))
    largest = float(np.abs(ours.probabilities - theirs.probabilities).max())
    flips = int((ours.classes != theirs.classes).sum())
    if np.array_equal(ours.probabilities, theirs.probabilities) and not flips:
        tier: Tier = "outputs"
    elif flips == 0 and largest <= TOLERANCE:
        tier = "decisions"
    else:
        tier = "none"
    return Compared(name, ref, tier, largest, flips, cause)


def _asked(manifest: Manifest) -> tuple[Any, ...]:
    """What two artifacts must have in common to be asked the same rows."""
    return manifest.signature, manifest.postprocess.task, manifest.postprocess.labels


def different_steps(kept: Sequence[Made], again: Sequence[Made]) -> list[str]:
    """Names of the steps that had the same inputs in both builds and gave other files, measured times aside."""
    before = {made.name: made for made in kept}
    return [made.name for made in again if made.name in before and _differ(before[made.name], made)]


def _differ(one: Made, two: Made) -> bool:
    if one.key != two.key:
        return False  # its inputs differed, so an earlier step is to blame
    ours, theirs = one.digests(), two.digests()
    if not ours or not theirs:
        return False  # it is no longer there
    return any(ours.get(name) != digest for name, digest in theirs.items() if name not in _MEASURED)


def _first_difference(before: Sequence[Made], again: Sequence[Made]) -> str:
    """What happened on one machine with one recipe and the same libraries, in words."""
    if differs := different_steps(before, again):
        return f"step {differs[0]} gave other bytes from the same inputs on this machine: its threads or its library"
    if {made.name for made in again} - {made.name for made in before}:
        return "which step gave other bytes is not known, because the cache has no longer all that the first build left"
    return "a chosen setting differs, because it hangs on measured times"


def _cause(manifest: Manifest, twin: Manifest, first: str) -> str:
    """Why the bytes are not the same, in words."""
    then, now = manifest.build, twin.build
    moved = _changes(then.get("versions", {}), versions())
    if moved:
        return f"other library versions: {moved}"
    if then.get("cpu", {}).get("flags") != cpu_info()["flags"]:
        return f"another processor: registered on {then.get('cpu', {}).get('model')}"
    if then.get("recipe_sha256") != now.get("recipe_sha256"):
        return "the recipe has changed since"
    return first


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {then[name]} → {now.get(name)}" for name in then if then[name] != now.get(name))
