"""BentoML: a service whose batchable method takes lists; `bentoml serve` runs its workers."""

from __future__ import annotations

import os
from typing import Any

import bentoml
from shared import MAX_BATCH, model_from_environment

WORKERS = int(os.environ.get("PEER_WORKERS", "1"))


@bentoml.service(
    workers=WORKERS, traffic={"timeout": 30, "max_concurrency": 4096}, logging={"access": {"enabled": False}}
)
class Peer:
    """One session a worker process."""

    def __init__(self) -> None:
        self.model = model_from_environment()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=1000)
    def predict(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        answers = self.model.predict([self.model.from_json(row) for row in rows])
        return [self.model.to_json(answer) for answer in answers]
