"""What a manifest must fulfil beyond its types before it is registered, whoever wrote it."""

from __future__ import annotations

import re
from math import isfinite

from serving.errors import RegistryError
from serving.protocol.types import DTYPES
from serving.registry.blobs import is_digest
from serving.registry.manifest import Manifest
from serving.registry.names import check_file, check_name, listed

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})")


def check(manifest: Manifest) -> None:
    """Raises `RegistryError` for a name that cannot be used, or a file that is named and not there."""
    check_name("model", manifest.model)
    check_name("variant", manifest.variant)
    for name, file in manifest.files.items():
        check_file(name)
        if not is_digest(file.sha256) or file.bytes < 0:
            raise RegistryError(f"{manifest.ref}: {name}: {file.sha256!r} is no SHA-256, or its size is negative")
    where, preprocess = f"{manifest.model}/{manifest.variant}", manifest.preprocess
    if not _TIME.fullmatch(manifest.created_at):
        raise RegistryError(
            f"{where}: created_at {manifest.created_at!r} is not a time such as 2026-01-31T12:00:00+00:00"
        )
    if manifest.entry not in manifest.files:
        raise RegistryError(f"{where}: entry {manifest.entry!r} is not among the files ({listed(manifest.files)})")
    if preprocess.kind == "text" and preprocess.tokenizer not in manifest.files:
        raise RegistryError(
            f"{where}: preprocess.tokenizer {preprocess.tokenizer!r} is not among the files ({listed(manifest.files)})"
        )
    _check_tensors(where, manifest)
    if preprocess.kind == "text" and preprocess.max_tokens < 1:
        raise RegistryError(f"{where}: preprocess.max_tokens is {preprocess.max_tokens}: a text needs at least one")
    if preprocess.pad and any(-1 in spec.shape[1:] for spec in manifest.session.outputs):
        raise RegistryError(f"{where}: preprocess.pad needs outputs whose axes are fixed after the first")
    _check_answers(where, manifest)


def _check_tensors(where: str, manifest: Manifest) -> None:
    """What no request could be given, or no answer made of."""
    for side, signature, known in (
        ("signature", manifest.signature, set(DTYPES)),
        ("session", manifest.session, set(DTYPES) - {"BYTES"}),
    ):
        if not signature.inputs:
            raise RegistryError(f"{where}: {side} has no input")
        for spec in (*signature.inputs, *signature.outputs):
            if spec.datatype not in known:
                raise RegistryError(
                    f"{where}: {side}: {spec.name!r} is of datatype {spec.datatype!r} (known: {listed(sorted(known))})"
                )


def _check_answers(where: str, manifest: Manifest) -> None:
    post, outputs = manifest.postprocess, {spec.name: spec for spec in manifest.session.outputs}
    if not (isfinite(post.temperature) and post.temperature > 0):
        raise RegistryError(f"{where}: postprocess.temperature is {post.temperature:g}: logits are divided by it")
    if post.task == "classification" and post.logits not in outputs:
        raise RegistryError(
            f"{where}: postprocess.logits {post.logits!r} is no session output (there are: {listed(outputs)})"
        )
    if post.task == "detection":
        spec = outputs.get(post.score or "")
        if spec is None or spec.batch_axis != 0 or spec.shape[1:] not in ((), (1,)):
            raise RegistryError(f"{where}: postprocess.score {post.score!r} is no session output [-1] or [-1, 1]")
        if len(post.labels) != 2 or not isinstance(post.threshold, float) or not 0 < post.threshold < 1:
            raise RegistryError(f"{where}: postprocess: a detection needs two labels and a threshold between 0 and 1")
