"""LitServe: FastAPI processes in front of worker processes, requests travel through queues."""

# No `from __future__ import annotations`: LitServe reads the annotation of `decode_request` at run time.
from pathlib import Path
from typing import Any

import litserve
from fastapi import Request
from shared import MAX_BATCH, Model, options


class Api(litserve.LitAPI):
    """JSON only: LitServe itself decodes the body, in the front-end process."""

    def __init__(self, folder: Path, threads: int, **batching: Any) -> None:
        super().__init__(**batching)
        self._folder, self._threads = folder, threads

    def setup(self, device: str) -> None:
        self.model = Model(self._folder, self._threads)

    def decode_request(self, request: Request) -> Any:
        return request

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, batch: list[Any]) -> list[Any]:
        return self.model.predict([self.model.from_json(document) for document in batch])

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> Any:
        return self.model.to_json(output)


if __name__ == "__main__":
    given = options()
    api = Api(given.model, given.threads, max_batch_size=MAX_BATCH, batch_timeout=0.001)
    server = litserve.LitServer(
        api, accelerator="cpu", devices=1, workers_per_device=given.workers, fast_queue=True, timeout=30
    )
    server.run(
        host="127.0.0.1",
        port=given.port,
        num_api_servers=2,
        log_level="error",
        access_log=False,
        generate_client_file=False,
    )
