"""The monitor's HTTP API, which only reads: metrics, health, verdicts, series, calibration, drift reports."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from monitoring.reports import Reports
from monitoring.windows import KEPT_S

#: A report's page brings scripts of its own. They run in an origin that is nobody's and reach nothing.
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_NO_SNIFFING = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "private"}

WILDCARDS = ("0.0.0.0", "::", "*", "")


def allowed_hosts(host: str, port: int) -> frozenset[str]:
    """The values of `Host` that name this server; empty, meaning any, if it listens on every address."""
    if host in WILDCARDS:
        return frozenset()
    names = {"127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host.lower()}
    return frozenset({f"{name}:{port}" for name in names} | (names if port == 80 else set()))


class HostGuard:
    """ASGI middleware: refuses other names, by which a web page could read what loopback shows (DNS rebinding)."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = self._app
        if scope["type"] == "http" and self._hosts:
            host = Headers(scope=scope).get("host", "").lower()
            if host not in self._hosts:
                expected = ", ".join(sorted(self._hosts))
                app = _json({"error": f"Host {host!r} is not a name of this monitor, expected one of {expected}"}, 403)
        await app(scope, receive, send)


def build_app(
    registry: CollectorRegistry,
    verdicts: Callable[[], Any],
    series: Callable[[str, int], dict[str, Any] | None],
    calibration: Callable[[str], dict[str, Any] | None],
    health: Callable[[], dict[str, Any]],
    reports: Reports,
    hosts: Collection[str] = (),
) -> Starlette:
    """The application.

    Args:
        verdicts: verdicts by model.
        series: (model, seconds) -> chart columns, None for an unknown model.
        calibration: model -> how calibrated its variants are, None for an unknown model.
        health: what `/healthz` says; 503 unless its `ok` is true.
        reports: what `/v1/reports` lists and gives.
        hosts: see `allowed_hosts`; empty means any.
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

    async def one_calibration(request: Request) -> Response:
        model = request.path_params["model"]
        found = calibration(model)
        return _json(found) if found is not None else _json({"error": f"unknown model {model!r}"}, 404)

    async def all_reports(request: Request) -> Response:
        return _json({"reports": reports.listed(request.query_params.get("model"))})

    async def one_report(request: Request) -> Response:
        path = reports.file(**request.path_params)
        if path is None:
            return _json({"error": f"no report {request.url.path}; /v1/reports lists those there are"}, 404)
        if path.suffix == ".json":
            return FileResponse(path, headers=_NO_SNIFFING, media_type="application/json")
        return FileResponse(path, headers=_NO_SNIFFING | {"content-security-policy": REPORT_POLICY})

    return Starlette(
        routes=[
            Route("/metrics", metrics),
            Route("/healthz", healthz),
            Route("/v1/verdicts", all_verdicts),
            Route("/v1/series", one_series),
            Route("/v1/calibration/{model}", one_calibration),
            Route("/v1/reports", all_reports),
            Route("/v1/reports/{model}/{variant}/{name}", one_report),
        ],
        middleware=[Middleware(HostGuard, hosts=hosts)],
    )


def _json(body: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
