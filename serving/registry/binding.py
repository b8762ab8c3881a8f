"""Is a quantized artifact calibrated for what it holds? Its calibration cache is bound to weights, words and data.

A cache is accepted by quantizers whatever it was made with, and then clips the activations of other weights. So a
manifest names the digests that its cache belongs to, and they are compared with those of its source, of its own
files and of its data, whenever it is registered, verified or loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from serving.registry.manifest import Manifest


def misbound(manifest: Manifest, known: Iterable[Manifest]) -> str:
    """What the calibration cache of an artifact was made for and is not there; empty if nothing is wrong.

    Args:
        known: where its source may be; one that is not there cannot be compared.
    """
    cache = manifest.quantization.get("calibration")
    if not isinstance(cache, Mapping):
        return ""
    sources = {parent.digest for parent in manifest.lineage.parents if parent.role == "source"}
    own, preprocess = manifest.files, manifest.preprocess
    pairs: list[tuple[str, str, Any]] = [
        ("model_sha256", f"weights of {source.ref}", source.files[source.entry].sha256)
        for source in known
        if source.digest in sources
    ]
    if preprocess.kind == "text" and preprocess.tokenizer in own:
        pairs.append(("tokenizer_sha256", "tokenizer of the artifact", own[preprocess.tokenizer].sha256))
    splits = manifest.data.get("split_sha256")
    if isinstance(splits, Mapping) and cache.get("split") in splits:
        pairs.append(("data_sha256", f"data of split {cache['split']}", splits[cache["split"]]))
    for key, what, expected in pairs:
        if key in cache and cache[key] != expected:
            return (
                f"its calibration cache ({str(cache.get('cache_sha256', 'no digest'))[:12]}…) was made with {key} "
                f"{cache[key]}, the {what} have {expected}"
            )
    return ""
