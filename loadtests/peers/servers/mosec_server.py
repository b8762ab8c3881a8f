"""mosec: a Rust front end that batches, and Python processes that compute."""

from __future__ import annotations

import os
import sys
from typing import Any

from mosec import Server, Worker
from shared import MAX_BATCH, model_from_environment, options


class Predict(Worker):
    """Decodes, computes and encodes a batch; every worker is a process."""

    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        self._model = model_from_environment()

    def deserialize(self, data: bytes) -> Any:
        return self._model.decode(data)

    def forward(self, data: list[Any]) -> list[Any]:
        answers = self._model.predict([row for row, _ in data])
        return [(answer, as_json) for answer, (_, as_json) in zip(answers, data, strict=True)]

    def serialize(self, data: Any) -> bytes:
        return self._model.encode(*data)


if __name__ == "__main__":
    given = options()
    os.environ |= {"PEER_MODEL": str(given.model), "PEER_THREADS": str(given.threads)}
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(given.port), "--log-level", "error", "--capacity", "4096"]
    server = Server()
    server.append_worker(Predict, num=given.workers, max_batch_size=MAX_BATCH, max_wait_time=1, route="/predict")
    server.run()
