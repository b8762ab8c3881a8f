"""The floor of a Python server: bare ASGI on uvicorn with uvloop, and a batcher that takes what is queued."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from shared import MAX_BATCH, Model, Row, options


class App:
    """One process: the event loop decodes, `workers` threads run batches of whatever has queued meanwhile."""

    def __init__(self, model: Model, workers: int) -> None:
        self._model, self._workers = model, workers
        self._queue: list[tuple[Row, asyncio.Future[Any]]] = []
        self._running = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        answer = await self._answer(body) if scope["method"] == "POST" else b"ready"
        headers = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _answer(self, body: bytes) -> bytes:
        row, as_json = self._model.decode(body)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append((row, future))
        if self._running < self._workers:
            self._running += 1
            asyncio.get_running_loop().call_soon(self._take)
        return self._model.encode(await future, as_json)

    def _take(self) -> None:
        batch, self._queue = self._queue[:MAX_BATCH], self._queue[MAX_BATCH:]
        if not batch:
            self._running -= 1
            return
        loop = asyncio.get_running_loop()
        done = loop.run_in_executor(None, self._model.predict, [row for row, _ in batch])
        done.add_done_callback(lambda result: self._give(batch, result))

    def _give(self, batch: list[tuple[Row, asyncio.Future[Any]]], result: asyncio.Future[list[Any]]) -> None:
        for (_, future), answer in zip(batch, result.result(), strict=True):
            future.set_result(answer)
        self._take()


if __name__ == "__main__":
    given = options()
    app = App(Model(given.model, given.threads), given.workers)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=given.port,
        loop="uvloop",
        http="httptools",
        log_level="error",
        access_log=False,
        lifespan="off",
    )
