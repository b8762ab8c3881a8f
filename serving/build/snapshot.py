"""What an artifact brings along for the monitor: features of held-out rows, golden rows, a reference of embeddings.

The first two are taken through the serving code itself, row by row, as a request of one row is answered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from serving.build.cache import Tick
from serving.build.evaluate import MEASURING, open_variant
from serving.build.examples import Examples, read_examples
from serving.build.familiar import familiar_of
from serving.build.rows import spread
from serving.registry.files import write_atomically
from serving.registry.manifest import EMBEDDING_FILE, GOLDEN_FILE, REFERENCE_FILE
from serving.runtimes import features
from serving.runtimes.base import Session
from serving.runtimes.pipeline import Pipeline

_HERE = Path(__file__).parent
#: Sources that the step depends on beside this file.
SOURCES = (
    *MEASURING,
    _HERE / "familiar.py",
    *(_HERE.parent / "runtimes" / name for name in ("features.py", "embedding.py", "inside.py")),
)
#: More rows of a split would tell a drift report nothing new, and they travel with every artifact.
REFERENCE_ROWS = 2000
#: The model was not trained on these. Its temperature was fitted on the first, settings were chosen on the second.
REFERENCE_SPLITS = ("calibration", "validation")


def snapshot(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Write `reference.json` (`monitoring.drift.rows.Reference`) and `golden.jsonl` (of `monitoring.golden.Row`).

    Also `embedding.safetensors` (`Familiar`), where the model has an embedding that can be measured.
    """
    calibration = msgspec.json.decode((needs["calibration"] / "calibration.json").read_bytes())
    manifest, pipeline, session = open_variant(needs, parameters, calibration["temperature"])
    labels = parameters["labels"]
    rows: list[features.Row] = []
    held_out = [read_examples(needs["data"], name, labels) for name in REFERENCE_SPLITS]
    for name, examples in zip(REFERENCE_SPLITS, held_out, strict=True):
        for at in spread(len(examples), REFERENCE_ROWS).tolist():
            tick(at, len(examples), name)
            rows.append(_features(pipeline, session, examples.take(at, at + 1)))
    reference = {
        "schema": "canarium.reference/v1",
        "split": " and ".join(REFERENCE_SPLITS),
        "rows": len(rows),
        "columns": {name: [_short(row[name]) for row in rows] for name in rows[0]},
    }
    write_atomically(out / REFERENCE_FILE, msgspec.json.encode(reference) + b"\n")
    if manifest.format == "onnx" and manifest.postprocess.logits:
        train, path = read_examples(needs["data"], "train", labels), needs["model"] / manifest.entry
        familiar = familiar_of(path, manifest.postprocess.logits, pipeline, train, held_out)
        if familiar is not None:
            familiar.write(out / EMBEDDING_FILE)
    test = read_examples(needs["data"], "test", labels)
    lines = [
        msgspec.json.encode(_golden_row(pipeline, session, test.take(at, at + 1), labels[test.classes[at]])) + b"\n"
        for at in golden(test, parameters["golden_rows"])
    ]
    write_atomically(out / GOLDEN_FILE, b"".join(lines))


def brought(folder: Path) -> dict[str, Path]:
    """The files of such a step, by name."""
    found = {name: folder / name for name in (REFERENCE_FILE, GOLDEN_FILE, EMBEDDING_FILE)}
    return {name: path for name, path in found.items() if path.is_file()}


def golden(examples: Examples, rows: int) -> list[int]:
    """So many rows of a split, chosen by the digest of their content: the same ones for every variant."""

    def digest(at: int) -> bytes:
        return hashlib.sha256(repr([array.tolist() for array in examples.take(at, at + 1).values()]).encode()).digest()

    return sorted(range(len(examples)), key=digest)[:rows]


def _features(pipeline: Pipeline, session: Session, inputs: dict[str, np.ndarray]) -> features.Row:
    ready = pipeline.preprocess(inputs)
    found = features.of_row(*pipeline.first_row(inputs, ready), pipeline.inputs, pipeline.unknown_id)
    return {**found, **features.of_answer(pipeline.summary(session.run(ready)), pipeline.labels)}


def _short(value: float | str) -> float | str:
    """Six digits are more than any distance depends on."""
    return value if isinstance(value, str) else float(f"{value:.6g}")


def _golden_row(pipeline: Pipeline, session: Session, inputs: dict[str, np.ndarray], label: str) -> dict[str, Any]:
    answer = pipeline.postprocess(session.run(pipeline.preprocess(inputs)))
    tensors = [
        {"name": spec.name, "datatype": spec.datatype, "shape": list(array.shape), "data": _elements(array)}
        for spec, array in ((spec, inputs[spec.name]) for spec in pipeline.inputs)
    ]
    # Widened from float32, so that what is read back is the same to the bit.
    return {"inputs": tensors, "label": label, "probabilities": answer["probabilities"][0].astype(float).tolist()}


def _elements(array: np.ndarray) -> list[Any]:
    flat: list[Any] = array.ravel().tolist()
    return [value.decode() for value in flat] if array.dtype.kind == "O" else flat
