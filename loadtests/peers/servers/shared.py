"""What every peer's server script does alike: the session, tokenizing, and a plain wire format.

Runs in each peer's own environment, so it needs no more than numpy, onnxruntime and tokenizers. Servers that speak the
Open Inference Protocol use their own codecs; the others take

- tensors as JSON, `{"x": [...]}`, one row without its first axis, or as the raw bytes of the inputs in order;
- text as JSON, `{"text": "..."}`;

and answer in kind: `{"y": [...]}`, the raw bytes of the first output, or `{"label": ..., "probabilities": [...]}`.
"""

from __future__ import annotations

import argparse
import json
import os
from bisect import bisect_left
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

TYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype(np.float32), "INT64": np.dtype(np.int64)}
#: Requests a batch may hold, for every server.
MAX_BATCH = 32

Row = Any  # a text, or {input: array without the first axis}


def options() -> argparse.Namespace:
    """The command line of every server script; MODEL is the folder of one model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--grpc-port", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


class Model:
    """One session with `threads` threads; `predict` is safe to call from several threads."""

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        folder = Path(folder)
        self.about = json.loads((folder / "model.json").read_text())
        self.text = self.about["kind"] == "text"
        self.inputs = [] if self.text else [(spec["name"], TYPES[spec["datatype"]]) for spec in self.about["inputs"]]
        self.output = self.about["outputs"][0]["name"]
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(folder / "model.onnx", settings, providers=["CPUExecutionProvider"])
        if self.text:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(self.about["max_tokens"])

    # ------------------------------------------------------------ rows to answers

    def predict(self, rows: list[Row]) -> list[Any]:
        """Answers of a batch: arrays of the first output, or (label, probabilities) for text."""
        if self.text:
            return self._classify(rows)
        return list(self.run({name: stack([row[name] for row in rows]) for name, _ in self.inputs}))

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """The first output of a batch that is already stacked."""
        result: np.ndarray = self._session.run(None, inputs)[0]
        return result

    def classify(self, texts: list[str]) -> tuple[list[str], np.ndarray]:
        """Labels and probabilities [n, C]."""
        limit = self.about["max_chars"]
        cut = [text[:limit] for text in texts] if limit else texts
        ids = [row.ids for row in self._tokenizer.encode_batch_fast(cut)]
        longest, buckets = max(map(len, ids), default=1), self.about["buckets"]
        at = bisect_left(buckets, longest)
        width = buckets[at] if at < len(buckets) else max(longest, 1)
        padded = np.zeros((len(ids), width), np.int64)
        for target, values in zip(padded, ids, strict=True):
            target[: len(values)] = values
        logits = self.run({self._session.get_inputs()[0].name: padded}) / np.float32(self.about["temperature"])
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return [self.about["labels"][at] for at in logits.argmax(1)], weights / weights.sum(axis=1, keepdims=True)

    def _classify(self, rows: list[Row]) -> list[Any]:
        labels, probabilities = self.classify(rows)
        return list(zip(labels, probabilities, strict=True))

    # ------------------------------------------------------------ the plain wire format

    def decode(self, body: bytes) -> tuple[Row, bool]:
        """A request's row, and whether it came as JSON."""
        if body[:2] == b'{"':
            return self.from_json(json.loads(body)), True
        return self.from_bytes(body), False

    def from_json(self, document: dict[str, Any]) -> Row:
        if self.text:
            return document["text"]
        return {name: np.array(document[name], dtype) for name, dtype in self.inputs}

    def from_bytes(self, body: bytes) -> Row:
        """Equal types, so equal parts."""
        size = len(body) // len(self.inputs)
        return {
            name: np.frombuffer(body, dtype, size // dtype.itemsize, index * size)
            for index, (name, dtype) in enumerate(self.inputs)
        }

    def encode(self, answer: Any, as_json: bool) -> bytes:
        if as_json:
            return json.dumps(self.to_json(answer)).encode()
        raw: bytes = answer.tobytes()
        return raw

    def to_json(self, answer: Any) -> dict[str, Any]:
        if self.text:
            return {"label": answer[0], "probabilities": answer[1].tolist()}
        return {self.output: answer.tolist()}


def stack(rows: list[np.ndarray]) -> np.ndarray:
    """One array; rows of different lengths are filled up with zeros."""
    width = max(len(row) for row in rows)
    if all(len(row) == width for row in rows):
        return np.stack(rows)
    batch = np.zeros((len(rows), width), rows[0].dtype)
    for target, row in zip(batch, rows, strict=True):
        target[: len(row)] = row
    return batch


def model_from_environment() -> Model:
    """For frameworks that import a module instead of running a script: PEER_MODEL and PEER_THREADS."""
    return Model(os.environ["PEER_MODEL"], int(os.environ.get("PEER_THREADS", "1")))
