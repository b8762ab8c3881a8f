"""What happens around a session: text to token ids before it, logits to answers after it.

The gateway and the evaluation of a build use this one class, so that what was measured is what is served.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from serving.errors import RegistryError, bad_request
from serving.protocol.tensors import all_finite
from serving.registry.manifest import UNKNOWN_DIGEST, Manifest
from serving.registry.verified import content
from serving.runtimes.answers import Summary, reading
from serving.runtimes.base import NUMPY_TYPES

PAD_ID = 0
#: Distinct tokenizers that a process keeps; the one that was asked for longest ago goes first.
MAX_TOKENIZERS = 16
#: Characters of a text that features are taken of, where the model sets no limit.
SAMPLED_CHARS = 10_000
_TOKENIZERS: dict[tuple[str, int], Any] = {}
_TOKENIZERS_LOCK = Lock()


class Pipeline:
    """Pre- and postprocessing of one artifact; safe to use from several threads.

    Args:
        manifest: whose `preprocess` and `postprocess` to follow.
        folder: the artifact's files by name.

    Raises:
        RegistryError: the tokenizer is missing or unusable.
    """

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self._ref = manifest.ref
        self.preprocess_key = _preprocess_key(manifest)
        self._text = manifest.preprocess.kind == "text"
        self._max_chars = manifest.preprocess.max_chars
        self._buckets = sorted(manifest.preprocess.buckets)
        self._input = manifest.signature.inputs[0].name
        self._ids = manifest.session.inputs[0].name
        self._tokenizer = _tokenizer(manifest, folder) if self._text else None
        self.inputs = manifest.signature.inputs

        self._reading = reading(manifest.postprocess)
        self._labels = manifest.postprocess.labels
        self._outputs = {
            spec.name: (NUMPY_TYPES[spec.datatype], spec.shape, spec.batch_axis) for spec in manifest.session.outputs
        }

    # ------------------------------------------------------------ before the session

    def preprocess(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Client tensors to session tensors.

        Args:
            inputs: for text, the input as an object array [n] of UTF-8 `bytes`.

        Returns:
            for text, `input_ids` int64 [n, T], padded with 0, T a bucket.

        Raises:
            RequestError: a row is not valid UTF-8.
        """
        tokenizer = self._tokenizer
        if tokenizer is None:
            return inputs
        rows = inputs[self._input]
        limit = self._max_chars
        texts = self._decode(rows.ravel().tolist(), limit)
        # In Rust without the GIL, and without the offsets that `encode` would keep.
        ids = [row.ids for row in tokenizer.encode_batch_fast(texts)]
        longest = max(map(len, ids), default=1)
        at = bisect_left(self._buckets, longest)
        width = self._buckets[at] if at < len(self._buckets) else max(longest, 1)
        padded = np.zeros((len(ids), width), np.int64)
        for row, values in zip(padded, ids, strict=True):
            row[: len(values)] = values
        return {self._ids: padded}

    @property
    def unknown_id(self) -> int:
        """The id of tokens that the tokenizer does not know; -1 if there is none, or no tokenizer."""
        if self._tokenizer is None:
            return -1
        word = getattr(self._tokenizer.model, "unk_token", None)
        known = self._tokenizer.token_to_id(word) if word is not None else None
        return -1 if known is None else int(known)

    def first_row(
        self, inputs: Mapping[str, np.ndarray], session_inputs: Mapping[str, np.ndarray]
    ) -> tuple[str | None, dict[str, np.ndarray]]:
        """Copies of row 0: its text as the tokenizer is given it and its token ids, or no text and the tensors.

        Raises:
            RequestError: the row is not valid UTF-8.
        """
        if self._tokenizer is None:
            rows = {spec.name: (inputs[spec.name], spec.batch_axis) for spec in self.inputs}
            return None, {
                name: array.copy() if axis is None else np.take(array, 0, axis) for name, (array, axis) in rows.items()
            }
        limit = self._max_chars or SAMPLED_CHARS
        text = self._decode(inputs[self._input].ravel()[:1].tolist(), limit)[0]
        return text, {self._ids: session_inputs[self._ids][0].copy()}

    def _decode(self, rows: list[Any], limit: int) -> list[str]:
        if limit:
            # A character is at most four bytes: what lies beyond can be cut before decoding.
            rows = [row[: 4 * limit + 4] if len(row) > 4 * limit + 4 else row for row in rows]
        try:
            texts = [row.decode() for row in rows]
        except UnicodeDecodeError:
            texts = [self._decode_row(index, row, limit) for index, row in enumerate(rows)]
        return [text[:limit] for text in texts] if limit else texts

    def _decode_row(self, index: int, row: bytes, limit: int) -> str:
        try:
            return row.decode()
        except UnicodeDecodeError as error:
            if limit and len(row) == 4 * limit + 4 and error.reason == "unexpected end of data":
                return row[: error.start].decode()  # our own cut went through a character
            raise bad_request(
                f'input "{self._input}" row {index}: not valid UTF-8 '
                f"(byte 0x{row[error.start]:02x} at offset {error.start})"
            ) from None

    # ------------------------------------------------------------ after the session

    def check(self, outputs: Mapping[str, np.ndarray], rows: int) -> str | None:
        """What is wrong with a session's outputs for a batch of `rows`; None if they are valid."""
        if outputs.keys() != self._outputs.keys():
            return f"outputs {', '.join(sorted(outputs)) or 'none'} instead of {', '.join(sorted(self._outputs))}"
        for name, (dtype, shape, axis) in self._outputs.items():
            value = outputs[name]
            if value.dtype != dtype:
                return f"{name} has type {value.dtype} instead of {dtype}"
            got = value.shape
            if len(got) != len(shape) or any(want not in (-1, have) for want, have in zip(shape, got, strict=True)):
                wanted = [rows if at == axis else size for at, size in enumerate(shape)]
                return f"{name} has shape {list(got)} instead of {wanted}"
            if axis is not None and got[axis] != rows:
                return f"{name} has shape {list(got)} for a batch of {rows}"
            if dtype.kind == "f" and not all_finite(value):
                return f"{name} holds {'NaN' if np.isnan(value).any() else 'Inf'}"
        return self._reading.fault(outputs)

    def postprocess(self, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Session tensors to client tensors; what passed `check` cannot fail here."""
        return self._reading.tensors(outputs)

    def probability(self, outputs: Mapping[str, np.ndarray], cls: int) -> float:
        """Probability of class `cls` in row 0 of a session's outputs; 0 if there is no such class."""
        return self._reading.probability(outputs, cls)

    def shares(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Probability of each class in row 0 of a session's outputs, float64 [C]; empty if there are no classes."""
        return self._reading.shares(outputs)

    def classes(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Class index of each row, int64 [n], of a session's outputs; -1 if there are no classes."""
        return self._reading.classes(outputs)

    def summary(self, outputs: Mapping[str, np.ndarray]) -> Summary:
        """Row 0 of a session's outputs in four numbers."""
        return self._reading.summary(outputs)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, in the order of the class index."""
        return self._labels

    def label_index(self, label: str | int) -> int:
        """Class index of a label given by name or by index.

        Raises:
            RequestError: no such label; names those there are.
        """
        if isinstance(label, str):
            if label in self._labels:
                return self._labels.index(label)
        elif not isinstance(label, bool) and 0 <= label < len(self._labels):
            return label
        known = ", ".join(self._labels) or "none: the model is no classifier"
        raise bad_request(f"unknown label {label!r}; known labels: {known}")


def _preprocess_key(manifest: Manifest) -> tuple[object, ...]:
    """Equal for two artifacts exactly when they turn the same client tensors into the same session tensors."""
    preprocess = manifest.preprocess
    if preprocess.kind == "none":
        return ("none",)
    return (preprocess, manifest.files[preprocess.tokenizer].sha256, manifest.session.inputs[0].name)


def _tokenizer(manifest: Manifest, folder: Path) -> Any:
    """The artifact's tokenizer, one for all artifacts of this process that have the same.

    A `Tokenizer` leaves its word cache behind in every thread that used it (tokenizers 0.23.3: 150 KB each time
    for the quickstart's), so that loading one with every variant that comes and goes would leak.
    """
    digest = manifest.files[manifest.preprocess.tokenizer].sha256
    if digest == UNKNOWN_DIGEST:
        return _load_tokenizer(manifest, folder)  # of a build: the next one may have another
    key = (digest, manifest.preprocess.max_tokens)
    with _TOKENIZERS_LOCK:
        tokenizer = _TOKENIZERS.pop(key, None) or _load_tokenizer(manifest, folder)
        _TOKENIZERS[key] = tokenizer  # the last one used comes last
        if len(_TOKENIZERS) > MAX_TOKENIZERS:
            del _TOKENIZERS[next(iter(_TOKENIZERS))]
    return tokenizer


def _load_tokenizer(manifest: Manifest, folder: Path) -> Any:
    from tokenizers import Tokenizer

    name = manifest.preprocess.tokenizer
    data = content(manifest, folder, name)
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except Exception as error:  # the Rust library raises plain Exception
        raise RegistryError(f"{manifest.ref}: cannot load {name}: {error}") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(manifest.preprocess.max_tokens)
    return tokenizer
