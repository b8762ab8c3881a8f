"""The Open Inference Protocol v2 over HTTP: route, convert, call, convert. The bytes on the wire are `transport`'s."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import orjson

from serving.clock import Clock
from serving.config import Config
from serving.control.auth import MONITOR, Action, Auth, Principal
from serving.errors import ErrorKind, RequestError, bad_request
from serving.gateway import coding, describe
from serving.gateway.budget import SMALL_BODY, Held, InflightBudget, over
from serving.gateway.caller import Caller, RequestIds, timeout_of
from serving.gateway.dataplane import DataPlane, Reply
from serving.protocol import compress, oip_binary, oip_json
from serving.protocol.describe import Description, encode, server_metadata
from serving.protocol.types import InferRequest, shown
from serving.transport.exchanges import Head, Response

log = logging.getLogger(__name__)

_JSON = b"content-type: application/json\r\n"
_OCTETS = b"content-type: application/octet-stream\r\ninference-header-content-length: %d\r\n"
#: KPIs of one feedback.
KPIS_MAX = 16
#: Prepared header lines are kept for this many combinations of variant, reason and epoch.
FIELDS_KEPT = 1024

_Answer = Response | Awaitable[Response]
_Handler = Callable[["HttpExchange", bytes], _Answer]


class HttpExchange:
    """One request: what is to answer it, the bytes that it holds, or why it is refused (`refusal`).

    `asks`: the model whose availability it is if the request is refused now; empty once the data plane has it.
    """

    __slots__ = ("_gateway", "_handler", "_held", "asks", "head", "limit", "refusal", "request_id")

    def __init__(self, gateway: HttpGateway, head: Head, held: Held) -> None:
        self._gateway = gateway
        self._held = held
        self._handler: _Handler | None = None
        self.asks = ""
        self.head = head
        self.limit = 0
        self.refusal: Response | None = None
        given = head.headers.get(b"x-request-id")
        self.request_id = given.decode("latin-1") if given else gateway.ids.next()

    def route(self, handler: _Handler, limit: int) -> None:
        """Say who answers, and how many bytes the body may have."""
        self._handler, self.limit = handler, limit
        announced = self.head.headers.get(b"content-length")
        if announced is not None and int(announced) > limit:
            raise self._too_large()

    def receive(self, count: int) -> bool:
        try:
            self._held.add(count)
            if self._held.bytes > self.limit:
                raise self._too_large()
        except RequestError as error:
            self.refusal = self.refuse(error)
            return False
        return True

    def hold(self, count: int) -> None:
        """Count what the body unpacked to as well. Raises `RequestError`."""
        self._held.add(count)

    async def respond(self, body: bytes) -> Response:
        try:
            assert self._handler is not None
            answer = self._handler(self, body)
            return answer if isinstance(answer, Response) else await answer
        except RequestError as error:
            return self.refuse(error)
        except Exception:
            log.exception("request %s failed", self.request_id)
            fault = RequestError(ErrorKind.INTERNAL, f"internal error, request {self.request_id}")
            return self.refuse(fault)

    def refuse(self, error: RequestError) -> Response:
        """An error as the client is told."""
        return self._gateway.refuse(error, self.request_id, self.asks)

    def end(self) -> None:
        self._held.release()

    def _too_large(self) -> RequestError:
        return over("the body", self.limit)


class HttpGateway:
    """Serves one gateway process.

    Args:
        config: limits and header names.
        plane: answers decoded requests.
        auth: who may call; with mode `none` everybody on loopback.
        budget: bytes of bodies in flight, shared with gRPC.
    """

    def __init__(
        self,
        config: Config,
        plane: DataPlane,
        auth: Auth,
        clock: Clock,
        budget: InflightBudget,
        ids: RequestIds | None = None,
    ) -> None:
        self.ids = ids or RequestIds()
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
        self._routed = {f"/v2/models/{name}/infer": (name, self._infers(name, "")) for name in config.models}
        self._fields: dict[tuple[str, str, int], bytes] = {}

    # ------------------------------------------------------------ the application of `transport.http1`

    def begin(self, head: Head) -> HttpExchange:
        """Find out who answers; a request that is refused does not get its body read."""
        exchange = HttpExchange(self, head, Held(self._budget))
        try:
            infer = self._routed.get(head.path)
            if infer is not None and head.method == "POST":
                if not self._open:
                    self._identify(head).require("viewer")
                self._route_infer(exchange, infer[0], "", infer[1])
            else:
                self._route(exchange)
        except RequestError as error:
            exchange.refusal = exchange.refuse(error)
        return exchange

    def malformed(self, status: int, message: str) -> Response:
        """Bytes that are no request."""
        return Response(status, _JSON, [oip_json.encode_error(message)])

    def refuse(self, error: RequestError, request_id: str, model: str) -> Response:
        """An error as the client is told; counted against the model whose answer it stands for, if any."""
        if model:
            self._plane.refused(model, error.http_status)
        fields = _JSON + b"x-request-id: %b\r\n" % request_id.encode("latin-1", "replace")
        if error.retry_after_s is not None:
            fields += b"retry-after: %d\r\n" % error.retry_after_s
        return Response(error.http_status, fields, [oip_json.encode_error(error)])

    # ------------------------------------------------------------ routes

    def _route(self, exchange: HttpExchange) -> None:
        head = exchange.head
        path = head.path
        parts = path.strip("/").split("/")
        if path == "/-/healthz":  # what KubeRay asks a pod before it sends it traffic
            _allow(head, "GET")
            exchange.route(self._fixed(lambda: _text("success" if self._plane.ready else "starting", self._ready())), 0)
            return
        if parts[0] != "v2":
            raise _not_found(path)
        rest = parts[1:]
        if rest[:1] == ["health"]:
            self._health(exchange, rest)
            return
        if not self._open:
            # Not by the order of the roles: the monitor asks golden rows here, of a version that it pins.
            self._identify(head).permit(Action.READ)
        if rest[:1] == ["models"] and len(rest) >= 2 and rest != ["models", "stats"]:
            self._model(exchange, rest[1], rest[2:])
        elif rest == []:
            self._describe(exchange, server_metadata)
        elif rest == ["models", "stats"]:
            self._describe(exchange, lambda: describe.statistics(self._plane))
        elif rest == ["repository", "index"]:
            _allow(head, "POST")
            exchange.route(self._fixed(lambda: _json(encode(describe.index(self._plane)))), SMALL_BODY)
        else:
            raise _not_found(path)

    def _health(self, exchange: HttpExchange, rest: list[str]) -> None:
        _allow(exchange.head, "GET")
        if rest == ["health", "live"]:
            exchange.route(self._fixed(lambda: Response(200, b"", [])), SMALL_BODY)
        elif rest == ["health", "ready"]:
            exchange.route(self._fixed(lambda: Response(self._ready(), b"", [])), SMALL_BODY)
        else:
            raise _not_found(exchange.head.path)

    def _model(self, exchange: HttpExchange, model: str, rest: list[str]) -> None:
        head, plane = exchange.head, self._plane
        if model not in self._sticky:
            known = ", ".join(self._sticky)
            raise RequestError(ErrorKind.NOT_FOUND, f"unknown model {shown(model)}, expected one of {known}")
        version = ""
        if rest[:1] == ["versions"] and len(rest) >= 2:
            version, rest = rest[1], rest[2:]
        if rest == ["infer"]:
            _allow(head, "POST")
            if not version and not self._open:
                self._identify(head).require("viewer")  # the monitor pins a version; this is the path with a slash
            self._route_infer(exchange, model, version, self._infers(model, version))
        elif rest == ["feedback"] and not version:
            _allow(head, "POST")
            if not self._open:
                self._identify(head).permit(Action.LABEL)
            exchange.route(lambda exchange, body: self._feedback(model, exchange, body), SMALL_BODY)
        elif rest == ["ready"]:
            _allow(head, "GET")
            status = 200 if plane.model_ready(model, version) else 503
            exchange.route(self._fixed(lambda: Response(status, b"", [])), SMALL_BODY)
        elif (what := _DESCRIPTIONS.get("/".join(rest))) is not None:
            self._describe(exchange, lambda: what(plane, model, version))
        else:
            raise _not_found(head.path)

    def _route_infer(self, exchange: HttpExchange, model: str, version: str, handler: _Handler) -> None:
        if not version and self._override[model][0] not in exchange.head.headers:
            exchange.asks = model
        exchange.route(handler, self._max_body)

    def _describe(self, exchange: HttpExchange, what: Callable[[], Description]) -> None:
        _allow(exchange.head, "GET")
        exchange.route(self._fixed(lambda: _json(encode(what()))), SMALL_BODY)

    def _fixed(self, answer: Callable[[], Response]) -> _Handler:
        """A handler that looks at nothing of the request."""

        def handle(exchange: HttpExchange, body: bytes) -> Response:
            status, fields, pieces = answer()
            return Response(status, fields + b"x-request-id: %b\r\n" % exchange.request_id.encode("latin-1"), pieces)

        return handle

    def _ready(self) -> int:
        return 200 if self._plane.ready else 503

    # ------------------------------------------------------------ inference

    def _infers(self, model: str, version: str) -> _Handler:
        return lambda exchange, body: self._infer(model, version, exchange, body)

    async def _infer(self, model: str, version: str, exchange: HttpExchange, body: bytes) -> Response:
        headers = exchange.head.headers
        # The deadline runs from here: how long a client takes to send its body is nobody else's doing.
        arrived_ns = self._clock.monotonic_ns()
        if b"content-encoding" in headers:
            body = await self._unpacked(exchange, body)
        request = await self._decode(model, version, headers, body)
        caller = self._caller(model, version, exchange, request, arrived_ns)
        exchange.asks = ""
        reply = await self._plane.infer(model, version, request, caller)
        if reply.binary_outputs:
            pieces, json_length = oip_binary.encode_response(reply.response, reply.binary_outputs)
            fields = _OCTETS % json_length
        else:
            pieces, fields = [oip_json.encode_response(reply.response)], _JSON
        accept = headers.get(b"accept-encoding")
        if accept is not None:
            pieces, encoding = await coding.packed(pieces, accept.decode("latin-1"))
            if encoding:
                fields += b"content-encoding: %b\r\n" % encoding.encode()
        request_id = exchange.request_id.encode("latin-1")
        return Response(200, b"%b%bx-request-id: %b\r\n" % (fields, self._told(reply), request_id), pieces)

    def _told(self, reply: Reply) -> bytes:
        """The header lines that say who answered and why, made once for all requests of a kind."""
        key = (reply.variant, reply.reason, reply.epoch)
        fields = self._fields.get(key)
        if fields is None:
            if len(self._fields) >= FIELDS_KEPT:
                self._fields.clear()
            lines = f"x-canarium-variant: {key[0]}\r\nx-canarium-reason: {key[1]}\r\nx-canarium-epoch: {key[2]}\r\n"
            fields = self._fields[key] = lines.encode()
        return fields

    async def _unpacked(self, exchange: HttpExchange, body: bytes) -> bytes:
        encoding = exchange.head.headers[b"content-encoding"].decode("latin-1")
        unpacked = await coding.unpacked(body, encoding, self._max_body)
        exchange.hold(len(unpacked))
        return unpacked

    async def _decode(self, model: str, version: str, headers: dict[bytes, bytes], raw: bytes) -> InferRequest:
        json_length = oip_binary.header_length(headers.get(b"inference-header-content-length"))
        if json_length is None:
            admission = self._plane.admission(model)
            return await coding.decoded(len(raw), len(raw), oip_json.decode_request, raw, admission)
        if json_length == 0:
            variants = self._plane.select(model, version)
            if not variants:
                raise RequestError(ErrorKind.UNAVAILABLE, f"model {model} is being opened, try again", 1)
            return oip_binary.decode_raw(raw, variants[0].manifest.signature)
        admission = self._plane.admission(model)
        return await coding.decoded(len(raw), json_length, oip_binary.decode_request, raw, json_length, admission)

    def _caller(
        self, model: str, version: str, exchange: HttpExchange, request: InferRequest, arrived_ns: int
    ) -> Caller:
        headers = exchange.head.headers
        override_header, role = self._override[model]
        override = headers.get(override_header, b"").decode("latin-1")
        if not self._open and (override or (version and self._plane.pins_candidate(model, version))):
            who = self._identify(exchange.head)
            if override or who.role != MONITOR:
                who.require(role)
        timeout = headers.get(b"x-canarium-timeout-ms")
        return Caller(
            arrived_ns,
            exchange.request_id,
            headers.get(self._sticky[model], b"").decode("latin-1"),
            override,
            timeout_of(timeout.decode("latin-1") if timeout else request.parameters.get("timeout_ms")),
            headers.get(b"traceparent", b"").decode("latin-1"),
            slices=self._plane.slices[model].of_headers(lambda name: headers.get(name, b"").decode("latin-1")),
        )

    def _feedback(self, model: str, exchange: HttpExchange, body: bytes) -> Response:
        if b"content-encoding" in exchange.head.headers:
            encoding = exchange.head.headers[b"content-encoding"].decode("latin-1")
            body = compress.decompress(body, encoding, SMALL_BODY)
        document = oip_json.load_object(body)
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
        fields = _JSON + b"x-request-id: %b\r\n" % exchange.request_id.encode("latin-1")
        return Response(202, fields, [orjson.dumps({"accepted": request_id})])

    def _identify(self, head: Head) -> Principal:
        given = head.headers.get(b"authorization")
        return self._auth.identify(given.decode("latin-1") if given is not None else None, head.client)


_DESCRIPTIONS: dict[str, Callable[[DataPlane, str, str], Description]] = {
    "": describe.metadata,
    "config": describe.configuration,
    "stats": describe.statistics,
}


def _json(body: bytes) -> Response:
    return Response(200, _JSON, [body])


def _text(body: str, status: int) -> Response:
    return Response(status, b"content-type: text/plain\r\n", [body.encode()])


def _not_found(path: str) -> RequestError:
    return RequestError(ErrorKind.NOT_FOUND, f"no such path: {shown(path)}")


def _allow(head: Head, allowed: str) -> None:
    if head.method != allowed and not (allowed == "GET" and head.method == "HEAD"):
        raise RequestError(ErrorKind.NOT_FOUND, f"{head.method} is not supported on {shown(head.path)}, use {allowed}")
