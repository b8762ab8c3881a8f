"""On which processors may an 8-bit artifact run? Only where it was validated on the same integer arithmetic.

Processors with 8-bit dot products (VNNI, AMX, Arm's) accumulate in 32 bits; x86 without them adds pairs of products
in 16 bits, which saturate, so that the same file gives other answers there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from serving.registry.manifest import Manifest

_DOT = {
    "avx_vnni": "VNNI",
    "avx512_vnni": "VNNI",
    "amx_int8": "VNNI",
    "asimddp": "Arm dot product",
    "i8mm": "Arm dot product",
}


def arithmetic(cpu: Mapping[str, Any]) -> str:
    """The 8-bit arithmetic of a processor, from its instruction sets as `cpu_info` gives them."""
    found = {_DOT[flag] for flag in cpu.get("flags", ()) if flag in _DOT}
    return " and ".join(sorted(found)) or f"{cpu.get('machine') or 'a processor'} without 8-bit dot products"


def is_int8(manifest: Manifest) -> bool:
    """Whether its weights or activations are 8-bit integers."""
    quantization = manifest.quantization
    return any("int8" in str(quantization.get(key, "")).lower() for key in ("weights", "activations"))


def unfit(manifest: Manifest, cpu: Mapping[str, Any]) -> str:
    """Why an artifact may not run on this processor; empty if it may."""
    if not is_int8(manifest):
        return ""
    here, where = arithmetic(cpu), sorted({arithmetic(entry.get("cpu", {})) for entry in manifest.validated_on})
    if here in where:
        return ""
    validated = f"was validated on {', '.join(where)}" if where else "was never validated"
    return f"{manifest.ref} is an INT8 artifact that {validated}, and this host has {here}"


def sibling(manifest: Manifest, others: Iterable[Manifest], cpu: Mapping[str, Any]) -> Manifest | None:
    """The newest INT8 artifact of the same source that may run on this processor and takes and gives the same.

    One of the same variant is preferred.
    """
    fitting = [
        other
        for other in others
        if other.model == manifest.model
        and is_int8(other)
        and set(_sources(other)) & set(_sources(manifest))
        and other.signature == manifest.signature
        and other.postprocess.labels == manifest.postprocess.labels
        and not unfit(other, cpu)
    ]
    return max(fitting, key=lambda other: (other.variant == manifest.variant, other.version), default=None)


def siblings(manifest: Manifest, others: Sequence[Manifest]) -> list[Manifest]:
    """What is served in its place on the processors where it may not run, as far as anything was validated on them."""
    processors = [entry.get("cpu", {}) for other in others for entry in other.validated_on]
    each = {arithmetic(cpu): cpu for cpu in processors if unfit(manifest, cpu)}
    return [found for cpu in each.values() if (found := sibling(manifest, others, cpu)) is not None]


def _sources(manifest: Manifest) -> Iterator[str]:
    """What it was quantized from: digests of manifests, and of the model file where its calibration names one.

    The same weights have another manifest on each processor, because it holds what was measured there.
    """
    yield from (parent.digest for parent in manifest.lineage.parents if parent.role == "source")
    calibration = manifest.quantization.get("calibration")
    if isinstance(calibration, Mapping) and isinstance(weights := calibration.get("model_sha256"), str):
        yield weights
