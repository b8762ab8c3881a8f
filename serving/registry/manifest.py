"""The manifest of an artifact: what it is, what it takes and gives, where it came from.

A manifest is immutable once registered. Its `version` is an integer unique within the model
(the version of the Open Inference Protocol); its `revision` counts per variant.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, Literal

import msgspec

from serving.core.arrays import Layout

SCHEMA: Final = "canarium.manifest/v1"

#: Files that an artifact may have beside its model: features of held-out rows, for drift reports; rows with the answers
#: that it gave to them when it was built; and by what the distance of an embedding is measured.
REFERENCE_FILE: Final = "reference.json"
GOLDEN_FILE: Final = "golden.jsonl"
EMBEDDING_FILE: Final = "embedding.safetensors"

#: Stands for the digest of a file that is not registered yet.
UNKNOWN_DIGEST: Final = "0" * 64

Relation = Literal["root", "finetuned", "quantized", "distilled", "qad", "damaged"]


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of an artifact: its SHA-256 in hexadecimal and its size in bytes."""

    sha256: str
    bytes: int


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Name, element type (Open Inference Protocol) and shape of a tensor; -1 is any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def batch_axis(self) -> int | None:
        """The axis of the rows: the first one of any length. None: one value for all rows."""
        return self.shape.index(-1) if -1 in self.shape else None


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tensors taken and given, in order.

    The first axis of any length is the batch: axis 0 as a rule, but axis 1 of a recurrent state [2, -1, 128]. A tensor
    without such an axis, like a sampling rate [], is one value for the whole request.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Preprocess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How client tensors become session tensors.

    `none` passes them on; `text` cuts each row to `max_chars` characters (0: no cut), tokenizes it
    and pads the batch with id 0 to the smallest of `buckets` (in tokens) that holds its longest row.

    `pad` lets requests of different lengths share a batch of a model that takes tensors: each input whose axis 1
    is free is filled up with zeros on that axis to the longest of the batch. Only for models on which such zeros
    have no effect, because a mask is among the inputs, and whose outputs do not have that axis. A text model's
    requests always do.
    """

    kind: Literal["none", "text"] = "none"
    tokenizer: str = "tokenizer.json"
    max_tokens: int = 96
    buckets: tuple[int, ...] = ()
    max_chars: int = 0
    #: Left out of the stored form when not given, so that older manifests keep their digests.
    pad: bool | msgspec.UnsetType = msgspec.UNSET


class Postprocess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How session tensors become client tensors.

    `classification` turns the tensor `logits` [n, C] into `probabilities` (softmax of
    logits / temperature) and `label`. `detection` passes the tensors on; one of them, `score` [n] or [n, 1], is the
    probability of the second of two labels, which is the answer from `threshold` on. `none` passes the tensors on
    and knows no classes.
    """

    task: Literal["none", "classification", "detection"] = "none"
    logits: str = "logits"
    labels: tuple[str, ...] = ()
    temperature: float = 1.0
    #: Left out of the stored form when not given, so that older manifests keep their digests.
    score: str | msgspec.UnsetType = msgspec.UNSET
    threshold: float | msgspec.UnsetType = msgspec.UNSET


class Parent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An artifact this one was made from; `role` is teacher, source, … and `digest` its manifest's."""

    role: str
    ref: str
    digest: str


class Lineage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the artifact came to be."""

    relation: Relation = "root"
    parents: tuple[Parent, ...] = ()


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything known about one registered artifact."""

    schema: Literal["canarium.manifest/v1"] = SCHEMA
    model: str
    variant: str
    revision: int
    version: int
    created_at: str
    format: Literal["onnx", "torch"]
    entry: str
    files: dict[str, File]
    signature: Signature
    session: Signature
    preprocess: Preprocess = Preprocess()
    postprocess: Postprocess = Postprocess()
    lineage: Lineage = Lineage()
    data: dict[str, Any] = {}
    quantization: dict[str, Any] = {}
    distillation: dict[str, Any] = {}
    calibration: dict[str, Any] = {}
    build: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    validated_on: list[dict[str, Any]] = []
    #: What people say of it (owner, intended use, limitations); left out of the stored form when nothing is.
    card: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET

    @property
    def ref(self) -> str:
        """The registry reference, such as `moderation/int8:1`."""
        return f"{self.model}/{self.variant}:{self.revision}"

    @property
    def static_int8(self) -> bool:
        """Whether it is an ONNX model that carries fixed ranges of its activations."""
        return self.format == "onnx" and self.quantization.get("method") == "static QDQ"

    @property
    def layout(self) -> Layout:
        """Where the session's tensors have their rows, for batching."""
        inputs, outputs = (
            {spec.name: spec.batch_axis for spec in specs if spec.batch_axis != 0}
            for specs in (self.session.inputs, self.session.outputs)
        )
        return Layout(self.padded_inputs, inputs, outputs)

    @property
    def padded_inputs(self) -> frozenset[str]:
        """Session inputs that may be filled up with zeros on axis 1 to the longest request of a batch."""
        if self.preprocess.kind == "text":
            return frozenset(spec.name for spec in self.session.inputs)
        if not self.preprocess.pad:
            return frozenset()
        return frozenset(spec.name for spec in self.session.inputs if spec.shape[1:2] == (-1,))

    @property
    def size_bytes(self) -> int:
        """Size of all files together, in bytes."""
        return sum(file.bytes for file in self.files.values())

    def encode(self) -> bytes:
        """The canonical JSON form, as stored: sorted keys, two spaces, a final newline."""
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=2) + b"\n"

    @property
    def digest(self) -> str:
        """SHA-256 of the stored form, hexadecimal."""
        return hashlib.sha256(self.encode()).hexdigest()

    @property
    def content(self) -> str:
        """SHA-256 of what makes the artifact itself: all but its numbers, its time and its measurements.

        Two builds that make the same bytes from the same parents have the same content although
        their latencies differ.
        """
        document = msgspec.to_builtins(self)
        for field in ("revision", "version", "created_at", "build", "validated_on"):
            del document[field]
        for measured in ("latency_ms", "memory"):
            document["evaluation"].pop(measured, None)
        return hashlib.sha256(msgspec.json.encode(document, order="sorted")).hexdigest()
