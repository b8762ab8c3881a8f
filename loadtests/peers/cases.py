"""What is asked: the cases, their rows, and how rows and answers look on the wire."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

from loadtests.load import http_request
from loadtests.payloads import read_rows
from loadtests.peers import models
from loadtests.peers.servers.shared import Model, Row

#: How a body is written: the Open Inference Protocol, or the plain forms of `servers/shared.py`; plain-rows is
#: plain-json in a list of one, for a server whose batching merges lists.
Wire = Literal["oip-json", "oip-binary", "plain-json", "plain-rows", "plain-bytes"]
ROWS = 64
#: Token ids that are ordinary words in all-MiniLM-L6-v2's vocabulary, between its [CLS] and [SEP].
_WORDS, _FIRST, _LAST = (2000, 20_000), 101, 102


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table's first column. `body` is what the client sends where the server takes it."""

    name: str
    model: str
    body: Literal["json", "binary"]
    tokens: tuple[int, int] = (0, 0)

    @property
    def mixed(self) -> bool:
        return self.tokens[0] != self.tokens[1]


CASES = (
    Case("overhead, JSON", "mlp", "json"),
    Case("overhead, binary", "mlp", "binary"),
    Case("quickstart", "text", "json"),
    Case("transformer, 32 tokens", "minilm", "binary", (32, 32)),
    Case("transformer, 128 tokens", "minilm", "binary", (128, 128)),
    Case("transformer, 8 to 128 tokens", "minilm", "binary", (8, 128)),
)


@cache
def rows(case: Case) -> tuple[Row, ...]:
    """The case's rows, the same in every run."""
    random = np.random.default_rng(7)
    if case.model == "text":
        return tuple(row.text for row in read_rows(models.MAILS)[:ROWS])
    if case.model == "mlp":
        return tuple({"x": random.normal(size=64).astype(np.float32)} for _ in range(ROWS))
    made = []
    for length in random.integers(case.tokens[0], case.tokens[1] + 1, ROWS):
        ids = random.integers(*_WORDS, int(length))
        ids[0], ids[-1] = _FIRST, _LAST
        made.append({"input_ids": ids.astype(np.int64), "attention_mask": np.ones(int(length), np.int64)})
    return tuple(made)


@cache
def expected(case: Case) -> tuple[np.ndarray, ...]:
    """The bare session's answers, one row at a time; for text the probabilities."""
    model = Model(models.FOLDER / case.model)
    answers = [model.predict([row])[0] for row in rows(case)]
    return tuple(answer[1] if model.text else answer for answer in answers)


def requests(case: Case, wire: Wire, path: str, text_shape: tuple[int, ...] = (1,)) -> list[bytes]:
    """Complete HTTP requests, one a row. `text_shape`: of a tensor that holds one text."""
    about = models.about(case.model)
    if about["kind"] == "text":
        about["inputs"][0]["shape"] = list(text_shape)
    return [_request(about, row, wire, path) for row in rows(case)]


def good(case: Case, wire: Wire) -> dict[str, Any]:
    """What tells a right answer from a wrong one under load: options of `load.run`."""
    if wire == "plain-bytes":
        return {"expect_bytes": expected(case)[0].nbytes}
    return {"expect": f'"{models.about(case.model)["outputs"][0]["name"]}"'}


def answer(case: Case, wire: Wire, headers: dict[str, str], body: bytes) -> np.ndarray:
    """The vector in an answer. Raises `ValueError` or `KeyError` if it holds none."""
    if wire == "plain-bytes":
        return np.frombuffer(body, np.float32)
    name = models.about(case.model)["outputs"][0]["name"]
    size = int(headers.get("inference-header-content-length", len(body)))
    document = json.loads(body[:size])
    if wire in ("plain-json", "plain-rows"):
        return np.array((document if wire == "plain-json" else document[0])[name], np.float32)
    at = size
    for output in document["outputs"]:
        length = (output.get("parameters") or {}).get("binary_data_size", 0)
        if output["name"] == name:
            if length:
                return np.frombuffer(body, np.float32, length // 4, at)
            return np.array(output["data"], np.float32).ravel()
        at += length
    raise KeyError(name)


def _request(about: dict[str, Any], row: Row, wire: Wire, path: str) -> bytes:
    as_json = {"Content-Type": "application/json"}
    if wire == "plain-bytes":
        raw = b"".join(row[spec["name"]].tobytes() for spec in about["inputs"])
        return http_request(path, raw, {"Content-Type": "application/octet-stream"})
    if wire in ("plain-json", "plain-rows"):
        plain: dict[str, Any] = {"text": row} if isinstance(row, str) else {name: row[name].tolist() for name in row}
        return http_request(path, _dump(plain if wire == "plain-json" else {"rows": [plain]}), as_json)
    document: dict[str, Any] = {"inputs": [_tensor(spec, row, wire) for spec in about["inputs"]]}
    if wire == "oip-json":
        return http_request(path, _dump(document), as_json)
    # Both forms of asking for binary outputs: servers differ in which one they know.
    document["parameters"] = {"binary_data_output": True}
    document["outputs"] = [{"name": spec["name"], "parameters": {"binary_data": True}} for spec in about["outputs"]]
    head = _dump(document)
    raw = b"".join(row[spec["name"]].tobytes() for spec in about["inputs"])
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return http_request(path, head + raw, headers)


def _tensor(spec: dict[str, Any], row: Row, wire: Wire) -> dict[str, Any]:
    if isinstance(row, str):
        return {"name": spec["name"], "datatype": "BYTES", "shape": spec["shape"], "data": [row]}
    data = row[spec["name"]]
    tensor: dict[str, Any] = {"name": spec["name"], "datatype": spec["datatype"], "shape": [1, *data.shape]}
    if wire == "oip-binary":
        return tensor | {"parameters": {"binary_data_size": data.nbytes}}
    return tensor | {"data": data.tolist()}


def _dump(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def named(names: Sequence[str]) -> tuple[Case, ...]:
    """Cases whose names begin with one of `names`; all for none."""
    return tuple(case for case in CASES if not names or any(case.name.startswith(name) for name in names))
