"""The gateway's HTTP application, called as its transport calls it. No network."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from serving.gateway.http import HttpGateway
from serving.transport.exchanges import Head

INFER = "/v2/models/tiny/infer"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return orjson.loads(self.body)


class Client:
    """Calls the application as a connection does: the head, the body in pieces, the answer, the end."""

    def __init__(self, app: HttpGateway) -> None:
        self.app = app

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | Any = b"",
        headers: dict[str, str] | None = None,
        chunk: int = 1 << 20,
    ) -> Answer:
        raw = body if isinstance(body, bytes) else orjson.dumps(body)
        given = {key.lower().encode(): value.encode("latin-1") for key, value in (headers or {}).items()}
        exchange = self.app.begin(Head(method, path, given, "127.0.0.1"))
        try:
            for at in range(0, len(raw), chunk):
                if exchange.refusal is not None or not exchange.receive(len(raw[at : at + chunk])):
                    break
            response = exchange.refusal or await exchange.respond(raw)
        finally:
            exchange.end()
            exchange.end()  # as often as it likes
        lines = response.fields.decode("latin-1").split("\r\n")
        assert lines.pop() == ""
        return Answer(response.status, dict(line.split(": ", 1) for line in lines), b"".join(response.pieces))

    async def infer(self, body: bytes | Any, **headers: str) -> Answer:
        return await self.request("POST", INFER, body, {key.replace("_", "-"): value for key, value in headers.items()})
