"""What an artifact of a build takes and gives, as JSON parameters of its steps and as part of its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from serving.registry.manifest import UNKNOWN_DIGEST, File, Manifest, Postprocess, Preprocess, Signature

ENTRIES = {"onnx": "model.onnx", "torch": "model.safetensors"}


class Interface(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The four parts of a manifest that say how its tensors are made and read (see `Manifest`)."""

    signature: Signature
    session: Signature
    preprocess: Preprocess = Preprocess()
    postprocess: Postprocess = Postprocess()

    def as_json(self) -> dict[str, Any]:
        """For the parameters of a step."""
        return cast(dict[str, Any], msgspec.to_builtins(self))

    def at_temperature(self, temperature: float) -> Interface:
        """The same with probabilities at a temperature that was fitted."""
        return msgspec.structs.replace(
            self, postprocess=msgspec.structs.replace(self.postprocess, temperature=temperature)
        )


def pipeline_folder(manifest: Manifest, needs: Mapping[str, Path]) -> Path:
    """Where a pipeline finds its tokenizer, when each file of an artifact is a need of its own."""
    tokenizer = needs.get(manifest.preprocess.tokenizer)
    return tokenizer.parent if tokenizer else needs["model"]


def draft(parameters: Mapping[str, Any], temperature: float) -> Manifest:
    """A manifest of something not yet registered, to open it with the serving code.

    Args:
        parameters: of a step: `variant`, `format`, `interface` and, beside the entry, the names of its `files`.
        temperature: of its probabilities.
    """
    interface = msgspec.convert(parameters["interface"], Interface).at_temperature(temperature)
    format = cast(Literal["onnx", "torch"], parameters["format"])
    return Manifest(
        model="build",
        variant=parameters["variant"],
        revision=1,
        version=1,
        created_at="",
        format=format,
        entry=ENTRIES[format],
        files={name: File(UNKNOWN_DIGEST, 0) for name in (ENTRIES[format], *parameters["files"])},
        signature=interface.signature,
        session=interface.session,
        preprocess=interface.preprocess,
        postprocess=interface.postprocess,
    )
