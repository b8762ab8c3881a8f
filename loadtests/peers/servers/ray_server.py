"""Ray Serve as its documentation shows dynamic batching: `@serve.batch` in a deployment behind the default proxy.

`max_ongoing_requests` is raised from 5, without which batches cannot fill; the request log is off.
"""

from __future__ import annotations

import os
import time
from typing import Any

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0", "RAY_DEDUP_LOGS": "0"}

import ray
from ray import serve
from shared import MAX_BATCH, Model, options
from starlette.requests import Request
from starlette.responses import Response


class Peer:
    """One replica is one process with one session."""

    def __init__(self, folder: str, threads: int) -> None:
        self._model = Model(folder, threads)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.001)
    async def predict(self, rows: list[Any]) -> list[Any]:
        return self._model.predict(rows)

    async def __call__(self, request: Request) -> Response:
        row, as_json = self._model.decode(await request.body())
        return Response(self._model.encode(await self.predict(row), as_json))


if __name__ == "__main__":
    given = options()
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    serve.start(http_options={"host": "127.0.0.1", "port": given.port}, logging_config={"enable_access_log": False})
    deployment: Any = serve.deployment(
        Peer,
        num_replicas=given.workers,
        max_ongoing_requests=1024,
        ray_actor_options={"num_cpus": 0},
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )
    serve.run(deployment.bind(str(given.model.resolve()), given.threads), route_prefix="/")
    while True:
        time.sleep(3600)
