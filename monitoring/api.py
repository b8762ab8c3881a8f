"""The monitor's HTTP API: `/metrics`, `/healthz`, `/v1/verdicts`, `/v1/series`. Reads only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from monitoring.windows import KEPT_S


def build_app(
    registry: CollectorRegistry,
    verdicts: Callable[[], Any],
    series: Callable[[str, int], dict[str, Any] | None],
    health: Callable[[], dict[str, Any]],
) -> Starlette:
    """The application.

    Args:
        verdicts: verdicts by model.
        series: (model, seconds) -> chart columns, None for an unknown model.
        health: what `/healthz` says; 503 unless its `ok` is true.
    """

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": content_type})

    async def healthz(request: Request) -> Response:
        state = health()
        return _json(state, 200 if state["ok"] else 503)

    async def all_verdicts(request: Request) -> Response:
        return _json({"verdicts": verdicts()})

    async def one_series(request: Request) -> Response:
        model = request.query_params.get("model", "")
        try:
            seconds = int(request.query_params.get("seconds", "600"))
        except ValueError:
            return _json({"error": "seconds: expected an integer"}, 400)
        if not 1 <= seconds <= KEPT_S:
            return _json({"error": f"seconds: {seconds} is not within 1..{KEPT_S}"}, 400)
        found = series(model, seconds)
        return _json(found) if found is not None else _json({"error": f"unknown model {model!r}"}, 404)

    return Starlette(
        routes=[
            Route("/metrics", metrics),
            Route("/healthz", healthz),
            Route("/v1/verdicts", all_verdicts),
            Route("/v1/series", one_series),
        ]
    )


def _json(body: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
