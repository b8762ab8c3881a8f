"""The Open Inference Protocol v2 over HTTP, as a bare ASGI application: convert, call, convert."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

import orjson

from serving.clock import Clock
from serving.config import Config
from serving.control.auth import Action, Auth, Principal
from serving.errors import ErrorKind, RequestError, bad_request
from serving.gateway import describe
from serving.gateway.budget import Held, InflightBudget
from serving.gateway.dataplane import Caller, DataPlane
from serving.protocol import compress, oip_binary, oip_json
from serving.protocol.describe import Description, encode, server_metadata
from serving.protocol.types import InferRequest, shown

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

log = logging.getLogger(__name__)

_JSON = (b"content-type", b"application/json")
_OCTETS = (b"content-type", b"application/octet-stream")
#: Bodies of feedback and index requests, bytes; KPIs of one feedback; seconds for a body to arrive.
SMALL_BODY, KPIS_MAX, BODY_TIMEOUT_S = 65_536, 16, 30.0
#: A request that takes longer than this is watched for a client that goes away.
WATCH_AFTER_S = 0.05


class _Body(NamedTuple):
    status: int
    headers: list[tuple[bytes, bytes]]
    pieces: list[bytes]


class HttpGateway:
    """Serves one gateway process.

    Args:
        config: limits and header names.
        plane: answers decoded requests.
        auth: who may call; with mode `none` everybody on loopback.
        budget: bytes of bodies in flight, shared with gRPC.
    """

    def __init__(self, config: Config, plane: DataPlane, auth: Auth, clock: Clock, budget: InflightBudget) -> None:
        self._plane = plane
        self._auth = auth
        self._open = config.auth.mode == "none"
        self._clock = clock
        self._max_body = config.server.max_body_mib << 20
        self._budget = budget
        self._sticky = {
            name: model.routing.sticky_key.partition(":")[2].lower().encode() for name, model in config.models.items()
        }
        self._override = {
            name: (model.routing.override.header.lower().encode(), model.routing.override.role)
            for name, model in config.models.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        own_id = b"x-request-id" not in headers
        if own_id:
            headers[b"x-request-id"] = uuid.uuid4().hex.encode()
        try:
            with self._budget.request() as held:
                body = await self._respond(scope, headers, receive, held)
        except RequestError as error:
            body = _error(error)
        except asyncio.CancelledError:
            # Our own watcher cancelled the work because the client is gone: there is nobody to answer.
            task = asyncio.current_task()
            if task is not None and task.uncancel() > 0:
                raise
            return
        except Exception:
            log.exception("request %s failed", headers[b"x-request-id"].decode("latin-1"))
            request_id = headers[b"x-request-id"].decode("latin-1")
            body = _error(RequestError(ErrorKind.INTERNAL, f"internal error, request {request_id}"))
        if own_id:
            body.headers.append((b"x-request-id", headers[b"x-request-id"]))
        size = sum(map(len, body.pieces))
        body.headers.append((b"content-length", b"%d" % size))
        await send({"type": "http.response.start", "status": body.status, "headers": body.headers})
        await send({"type": "http.response.body", "body": b"".join(body.pieces)})

    # ------------------------------------------------------------ routes

    async def _respond(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, held: Held) -> _Body:
        path, method = scope["path"], scope["method"]
        parts = path.strip("/").split("/")
        if parts[0] != "v2":
            raise _not_found(path)
        rest = parts[1:]
        if rest[:1] == ["health"]:
            return self._health(method, path, rest)
        if not self._open:
            self._identify(headers, scope).require("viewer")
        if rest[:1] == ["models"] and len(rest) >= 2 and rest != ["models", "stats"]:
            return await self._model(method, path, rest[1], rest[2:], scope, headers, receive, held)
        if rest == []:
            _allow(method, "GET", path)
            return _json(encode(server_metadata()))
        if rest == ["models", "stats"]:
            _allow(method, "GET", path)
            return _json(encode(describe.statistics(self._plane)))
        if rest == ["repository", "index"]:
            _allow(method, "POST", path)
            await self._read(headers, receive, held, SMALL_BODY)
            return _json(encode(describe.index(self._plane)))
        raise _not_found(path)

    def _health(self, method: str, path: str, rest: list[str]) -> _Body:
        _allow(method, "GET", path)
        if rest == ["health", "live"]:
            return _Body(200, [], [])
        if rest == ["health", "ready"]:
            return _Body(200 if self._plane.ready else 503, [], [])
        raise _not_found(path)

    async def _model(
        self,
        method: str,
        path: str,
        model: str,
        rest: list[str],
        scope: Scope,
        headers: dict[bytes, bytes],
        receive: Receive,
        held: Held,
    ) -> _Body:
        if model not in self._sticky:
            known = ", ".join(self._sticky)
            raise RequestError(ErrorKind.NOT_FOUND, f"unknown model {shown(model)}, expected one of {known}")
        version = ""
        if rest[:1] == ["versions"] and len(rest) >= 2:
            version, rest = rest[1], rest[2:]
        if rest == ["infer"]:
            _allow(method, "POST", path)
            return await self._infer(model, version, scope, headers, receive, held)
        if rest == ["feedback"] and not version:
            _allow(method, "POST", path)
            if not self._open:
                self._identify(headers, scope).permit(Action.LABEL)
            return await self._feedback(model, headers, receive, held)
        if rest == ["ready"]:
            _allow(method, "GET", path)
            return _Body(200 if self._plane.model_ready(model, version) else 503, [], [])
        what = _DESCRIPTIONS.get("/".join(rest))
        if what is None:
            raise _not_found(path)
        _allow(method, "GET", path)
        return _json(encode(what(self._plane, model, version)))

    # ------------------------------------------------------------ inference

    async def _infer(
        self, model: str, version: str, scope: Scope, headers: dict[bytes, bytes], receive: Receive, held: Held
    ) -> _Body:
        raw = await self._read(headers, receive, held, self._max_body)
        # The deadline runs from here: how long a client takes to send its body is nobody else's doing.
        arrived_ns = self._clock.monotonic_ns()
        request = self._decode(model, version, headers, raw)
        caller = self._caller(model, scope, headers, request, arrived_ns)
        task = asyncio.current_task()
        assert task is not None
        watch = _Watch(task, receive)
        try:
            reply = await self._plane.infer(model, version, request, caller)
        finally:
            watch.stop()
        if reply.binary_outputs:
            pieces, json_length = oip_binary.encode_response(reply.response, reply.binary_outputs)
            out = [_OCTETS, (b"inference-header-content-length", b"%d" % json_length)]
        else:
            pieces, out = [oip_json.encode_response(reply.response)], [_JSON]
        out.extend((k.encode(), v.encode()) for k, v in reply.headers.items() if k != "x-request-id")
        accept = headers.get(b"accept-encoding")
        if accept is not None:
            pieces, encoding = compress.compress(pieces, accept.decode("latin-1"))
            if encoding:
                out.append((b"content-encoding", encoding.encode()))
        return _Body(200, out, pieces)

    def _decode(self, model: str, version: str, headers: dict[bytes, bytes], raw: bytes) -> InferRequest:
        json_length = oip_binary.header_length(headers.get(b"inference-header-content-length"))
        if json_length is None:
            return oip_json.decode_request(raw)
        if json_length == 0:
            variants = self._plane.select(model, version)
            if not variants:
                raise RequestError(ErrorKind.UNAVAILABLE, f"model {model} is being opened, try again", 1)
            return oip_binary.decode_raw(raw, variants[0].manifest.signature)
        return oip_binary.decode_request(raw, json_length)

    def _caller(
        self, model: str, scope: Scope, headers: dict[bytes, bytes], request: InferRequest, arrived_ns: int
    ) -> Caller:
        override_header, role = self._override.get(model, (b"", ""))
        override = headers.get(override_header, b"").decode("latin-1")
        if override and not self._open:
            self._identify(headers, scope).require(role)
        return Caller(
            arrived_ns,
            _text(headers, b"x-request-id") or "",
            headers.get(self._sticky.get(model, b""), b"").decode("latin-1"),
            override,
            timeout_of(_text(headers, b"x-canarium-timeout-ms") or request.parameters.get("timeout_ms")),
            _text(headers, b"traceparent") or "",
        )

    async def _feedback(self, model: str, headers: dict[bytes, bytes], receive: Receive, held: Held) -> _Body:
        document = oip_json.load_object(await self._read(headers, receive, held, SMALL_BODY))
        request_id, label, kpi = document.get("id"), document.get("label"), document.get("kpi") or {}
        if not isinstance(request_id, str) or not request_id:
            raise bad_request("id: expected the id of an earlier request, a non-empty string")
        if label is None and not kpi:
            raise bad_request("label or kpi: one of them is needed")
        if label is not None and (isinstance(label, bool) or not isinstance(label, str | int)):
            raise bad_request(f"label: expected a class name or index, got {shown(label)}")
        if not isinstance(kpi, dict) or not all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in kpi.values()
        ):
            raise bad_request(f"kpi: expected an object of numbers, got {shown(kpi)}")
        if len(kpi) > KPIS_MAX:
            raise bad_request(f"kpi: expected at most {KPIS_MAX} values, got {len(kpi)}")
        self._plane.feedback(model, request_id, label, kpi)
        return _Body(202, [_JSON], [orjson.dumps({"accepted": request_id})])

    # ------------------------------------------------------------ bodies

    async def _read(self, headers: dict[bytes, bytes], receive: Receive, held: Held, limit: int) -> bytes:
        """The whole body, unpacked, at most `limit` bytes; counted in the gateway's in-flight budget."""
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                raw = await self._receive(receive, held, limit)
        except TimeoutError:
            raise bad_request(f"the body was not complete after {BODY_TIMEOUT_S:g} s") from None
        encoding = headers.get(b"content-encoding")
        if encoding is not None:
            raw = compress.decompress(raw, encoding.decode("latin-1"), limit)
            held.add(len(raw))
        return raw

    @staticmethod
    async def _receive(receive: Receive, held: Held, limit: int) -> bytes:
        pieces: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError(ErrorKind.CANCELLED, "the client went away before its request was complete")
            pieces.append(message.get("body", b""))
            held.add(len(pieces[-1]))
            if held.bytes > limit:
                size = f"{limit >> 20} MiB" if limit >> 20 else f"{limit >> 10} KiB"
                raise RequestError(ErrorKind.TOO_LARGE, f"the body is over the limit of {size}")
            if not message.get("more_body"):
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _identify(self, headers: dict[bytes, bytes], scope: Scope) -> Principal:
        client = scope.get("client")
        return self._auth.identify(_text(headers, b"authorization"), client[0] if client else "")


class _Watch:
    """Cancels a request's task when its client disconnects; costs nothing to requests that are quick."""

    def __init__(self, task: asyncio.Task[Any], receive: Receive) -> None:
        self._task = task
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._start)

    def stop(self) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _start(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._task.cancel()


_DESCRIPTIONS: dict[str, Callable[[DataPlane, str, str], Description]] = {
    "": describe.metadata,
    "config": describe.configuration,
    "stats": describe.statistics,
}


def timeout_of(value: object) -> int | None:
    """A request's own deadline in milliseconds. Raises `RequestError` unless it is 1..600000."""
    if value is None:
        return None
    try:
        timeout_ms = int(str(value))
    except ValueError:
        timeout_ms = 0
    if not 1 <= timeout_ms <= 600_000:
        raise bad_request(f"x-canarium-timeout-ms: expected 1 to 600000 milliseconds, got {shown(value)}")
    return timeout_ms


def _text(headers: dict[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return value.decode("latin-1") if value is not None else None


def _json(body: bytes) -> _Body:
    return _Body(200, [_JSON], [body])


def _error(error: RequestError) -> _Body:
    headers = [_JSON]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    return _Body(error.http_status, headers, [oip_json.encode_error(error)])


def _not_found(path: str) -> RequestError:
    return RequestError(ErrorKind.NOT_FOUND, f"no such path: {shown(path)}")


def _allow(method: str, allowed: str, path: str) -> None:
    if method != allowed and not (allowed == "GET" and method == "HEAD"):
        raise RequestError(ErrorKind.NOT_FOUND, f"{method} is not supported on {shown(path)}, use {allowed}")


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        else:
            await send({"type": "lifespan.shutdown.complete"})
            return
