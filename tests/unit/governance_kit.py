"""A registry of two artifacts with the evidence that a build leaves, keys, and policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from registry_kit import made_from

from serving.clock import FakeClock
from serving.config import Config, parse_config
from serving.governance.keys import PrivateKey, create_key, load_key
from serving.governance.policy import Policy
from serving.registry.manifest import Manifest, Signature, TensorSpec
from serving.registry.store import Registry

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),))
VNNI = {"model": "a processor", "machine": "x86_64", "flags": ["avx2", "avx512f", "avx512_vnni"]}
AVX2 = {"model": "an older one", "machine": "x86_64", "flags": ["avx2"]}
EVIDENCE: dict[str, Any] = {
    "split": "test",
    "rows": 1000,
    "accuracy": 0.97,
    "accuracy_ci": [0.96, 0.98],
    "recall": {"ham": 0.98, "spam": 0.95},
    "teacher_disagreement": 0.01,
    "teacher_disagreement_ci": [0.005, 0.02],
    "negative_flip_upper": 0.012,
    "ece_debiased": 0.004,
    "batch_neighbour_delta": 0.0,
    "latency_ms": {"batch_1": {"p50": 1.5}},
}
INT8 = {"method": "static QDQ", "weights": "QInt8", "activations": "QUInt8"}
CALIBRATION = {"temperature": 1.2, "rows": 300}


def onnx_frame(content: str) -> bytes:
    """The outermost fields of an ONNX file: version, a graph that holds `content`, operator sets."""
    graph = content.encode()
    assert len(graph) < 128
    return b"\x08\x0a" + bytes([0x3A, len(graph)]) + graph + b"\x42\x02\x10\x15"


def put(registry: Registry, variant: str, content: str = "", **about: Any) -> Manifest:
    source = registry.root.parent / f"{variant}-{content or variant}.onnx"
    source.write_bytes(onnx_frame(content or variant))
    given = {"evaluation": EVIDENCE, "calibration": CALIBRATION, "validated_on": [{"cpu": VNNI, "accuracy": 0.97}]}
    return registry.register(
        "m",
        variant,
        {"model.onnx": source},
        format="onnx",
        entry="model.onnx",
        signature=SIGNATURE,
        session=SIGNATURE,
        **{**given, **about},
    )


def registry_at(folder: Path) -> Registry:
    """`m/teacher:1` and `m/int8:1`, quantized from it and validated on a processor with VNNI."""
    folder.mkdir(parents=True, exist_ok=True)
    registry = Registry(folder / "registry", FakeClock())
    teacher = put(registry, "teacher")
    put(registry, "int8", lineage=made_from(teacher), quantization=INT8)
    return registry


def key_at(path: Path) -> PrivateKey:
    create_key(path)
    return load_key(path)


def policy(**changes: Any) -> Policy:
    return Policy.model_validate({"apiVersion": "canarium/policy/v1", "name": "ours", "tier": "low", **changes})


def config(registry: Registry, *, governance: dict[str, Any] | None = None, **variants: str) -> Config:
    """A deployment of `variants` (name -> reference); the first one is the baseline."""
    named = variants or {"teacher": "m/teacher:1", "int8": "m/int8:1"}
    return parse_config(
        {
            "apiVersion": "canarium/v1",
            "registry": {"dir": str(registry.root)},
            "state": {"dir": str(registry.root.parent / "state")},
            "governance": governance or {},
            "models": {
                "m": {"baseline": next(iter(named)), "variants": {k: {"artifact": v} for k, v in named.items()}}
            },
        }
    )
