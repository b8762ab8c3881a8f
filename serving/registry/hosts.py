"""On which processors may an 8-bit artifact run? Only where it was validated on the same integer arithmetic.

Processors with 8-bit dot products (VNNI, AMX, Arm's) accumulate in 32 bits; x86 without them adds pairs of products
in 16 bits, which saturate, so that the same file gives other answers there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec.structs import replace

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


def siblings(manifest: Manifest, others: Iterable[Manifest], cpu: Mapping[str, Any]) -> list[Manifest]:
    """INT8 artifacts of the same source that may run on this processor and answer the same requests, the best first.

    Those of the same variant come before the others, the newest of them first.
    """
    fitting = [
        other
        for other in others
        if other.model == manifest.model
        and is_int8(other)
        and set(_sources(other)) & set(_sources(manifest))
        and _handling(other) == _handling(manifest)
        and not unfit(other, cpu)
    ]
    return sorted(fitting, key=lambda other: (other.variant == manifest.variant, other.version), reverse=True)


def processors(manifests: Iterable[Manifest]) -> list[Mapping[str, Any]]:
    """A processor of each 8-bit arithmetic that anything was validated on."""
    found = [entry.get("cpu", {}) for manifest in manifests for entry in manifest.validated_on]
    return list({arithmetic(cpu): cpu for cpu in found}.values())


def _handling(manifest: Manifest) -> tuple[object, ...]:
    """What is done around the session, but for the temperature: that is fitted to the weights of each artifact."""
    preprocess = manifest.preprocess
    tokenizer = manifest.files.get(preprocess.tokenizer) if preprocess.kind == "text" else None
    return manifest.signature, preprocess, tokenizer, replace(manifest.postprocess, temperature=1.0)


def _sources(manifest: Manifest) -> Iterator[str]:
    """What it was quantized from: digests of manifests, and of the model file where its calibration names one.

    The same weights have another manifest on each processor, because it holds what was measured there.
    """
    yield from (parent.digest for parent in manifest.lineage.parents if parent.role == "source")
    calibration = manifest.quantization.get("calibration")
    if isinstance(calibration, Mapping) and isinstance(weights := calibration.get("model_sha256"), str):
        yield weights
