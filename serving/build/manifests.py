"""The part of a manifest that all variants of a text classifier share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.registry.manifest import File, Manifest, Postprocess, Preprocess, Signature, TensorSpec

ENTRIES = {"onnx": "model.onnx", "torch": "model.safetensors"}


def signature(labels: int) -> Signature:
    """What clients see."""
    return Signature(
        inputs=(TensorSpec("text", "BYTES", (-1,)),),
        outputs=(TensorSpec("probabilities", "FP32", (-1, labels)), TensorSpec("label", "BYTES", (-1,))),
    )


def session(labels: int) -> Signature:
    """What the runtime takes and gives."""
    return Signature(
        inputs=(TensorSpec("input_ids", "INT64", (-1, -1)),), outputs=(TensorSpec("logits", "FP32", (-1, labels)),)
    )


def preprocess(tokenizer: Mapping[str, Any]) -> Preprocess:
    """From a `TokenizerRecipe` as a dictionary."""
    return Preprocess(
        kind="text",
        max_tokens=tokenizer["max_tokens"],
        buckets=tuple(tokenizer["buckets"]),
        max_chars=tokenizer["max_chars"],
    )


def postprocess(labels: tuple[str, ...], temperature: float) -> Postprocess:
    return Postprocess(task="classification", logits="logits", labels=labels, temperature=temperature)


def draft(parameters: Mapping[str, Any], temperature: float) -> Manifest:
    """A manifest of something not yet registered, to open it with the serving code."""
    labels = tuple(parameters["labels"])
    format = parameters["format"]
    return Manifest(
        model="build",
        variant=parameters["variant"],
        revision=1,
        version=1,
        created_at="",
        format=format,
        entry=ENTRIES[format],
        files={name: File("0" * 64, 0) for name in (ENTRIES[format], "tokenizer.json")},
        signature=signature(len(labels)),
        session=session(len(labels)),
        preprocess=preprocess(parameters["tokenizer"]),
        postprocess=postprocess(labels, temperature),
    )
