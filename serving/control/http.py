"""What stands before every admin request: Host, Origin, content type, size, headers, errors as JSON."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import ErrorKind, RequestError, bad_request

log = logging.getLogger("canarium.control")

BODY_MAX = 1024 * 1024
BODY_TIMEOUT_S = 10.0
CONTENT_SECURITY_POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'self'"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
WILDCARDS = ("0.0.0.0", "::", "*")


def allowed_hosts(host: str, port: int) -> frozenset[str]:
    """The values of `Host` that name this server: loopback and the configured host, with the port.

    Empty, meaning any, when the server listens on every address: then its names cannot be
    known, and configuration demands tokens, which a rebound name cannot borrow.
    """
    if host in WILDCARDS:
        return frozenset()
    names = {"127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host.lower()}
    return frozenset({f"{name}:{port}" for name in names} | (names if port == 80 else set()))


class Guard:
    """ASGI middleware: refuses foreign hosts and origins and non-JSON mutations, sets security headers.

    Args:
        app: what is guarded.
        hosts: see `allowed_hosts`.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-content-type-options"] = "nosniff"
                headers["content-security-policy"] = CONTENT_SECURITY_POLICY
                headers["referrer-policy"] = "no-referrer"
                headers["cache-control"] = "no-store" if scope["path"].startswith("/admin/") else "no-cache"
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        await (refusal or self._app)(scope, receive, guarded_send)

    def _refusal(self, method: str, headers: Headers) -> Response | None:
        host = headers.get("host", "").lower()
        if not host:
            return problem(400, "the Host header is missing")
        if self._hosts and host not in self._hosts:
            return problem(403, f"Host {host!r} is not a name of this server, expected one of {_listed(self._hosts)}")
        origin = headers.get("origin")
        if origin is not None:
            netloc = _netloc(origin)
            if netloc != host and netloc not in self._hosts:
                return problem(403, f"requests from the origin {origin!r} are not accepted")
        if method not in SAFE_METHODS:
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                return problem(415, f"Content-Type must be application/json, not {kind or 'missing'}")
        return None


def problem(status: int, message: str, retry_after_s: int | None = None) -> Response:
    """An error as every client gets it."""
    headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return answer({"error": message}, status, headers)


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response; `bytes` are taken to be JSON already."""
    body = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return Response(body, status, headers, "application/json")


async def on_http_exception(request: Request, error: Exception) -> Response:
    """404 and 405 of the router as our JSON."""
    if not isinstance(error, HTTPException):
        raise error
    messages = {404: f"there is nothing at {request.url.path}", 405: f"{request.method} is not allowed here"}
    response = problem(error.status_code, messages.get(error.status_code, error.detail))
    response.headers.update(error.headers or {})
    return response


async def on_exception(_request: Request, error: Exception) -> Response:
    """What no handler caught."""
    return of_error(error)


def of_error(error: Exception) -> Response:
    """The response for what a handler raised; the unexpected is logged and stays unsaid."""
    if isinstance(error, RequestError):
        return problem(error.http_status, error.message, error.retry_after_s)
    log.error("an admin request failed", exc_info=error)
    return problem(500, "internal error: see the control plane's log")


async def read_body(request: Request) -> bytes:
    """The body, at most `BODY_MAX` bytes. Raises `RequestError` TOO_LARGE, DEADLINE or CANCELLED."""
    too_large = RequestError(ErrorKind.TOO_LARGE, f"the body is over {BODY_MAX // 1024} KiB")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > BODY_MAX:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY_MAX:
                    raise too_large
    except TimeoutError:
        raise RequestError(ErrorKind.DEADLINE, f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
    except ClientDisconnect:
        raise RequestError(ErrorKind.CANCELLED, "the client went away") from None
    return bytes(body)


def integer(request: Request, name: str, default: int | None, low: int, high: int) -> int | None:
    """A query parameter as an integer between `low` and `high`. Raises `RequestError` BAD_REQUEST."""
    text = request.query_params.get(name)
    if text is None or text == "":
        return default
    try:
        value = int(text)
    except ValueError:
        raise bad_request(f"{name}: {text!r} is not an integer") from None
    if not low <= value <= high:
        raise bad_request(f"{name}: {value} is not between {low} and {high}")
    return value


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # not even a URL
        return ""


def _listed(hosts: Collection[str]) -> str:
    return ", ".join(sorted(hosts))
