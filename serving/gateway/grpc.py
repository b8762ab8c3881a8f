"""The Open Inference Protocol v2 over gRPC: route, convert, call, convert. The bytes on the wire are `transport`'s."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2 as pb

from serving.clock import Clock
from serving.config import Config
from serving.control.auth import Auth
from serving.errors import ErrorKind, RequestError
from serving.gateway import coding, describe
from serving.gateway.budget import SMALL_BODY, Held, InflightBudget, over
from serving.gateway.caller import Caller, RequestIds, timeout_of
from serving.gateway.dataplane import DataPlane
from serving.protocol import oip_grpc
from serving.protocol.describe import server_metadata
from serving.transport.grpc_calls import GrpcReply, timeout_s
from serving.transport.hpack import Headers

log = logging.getLogger(__name__)

SERVICE = "inference.GRPCInferenceService"
_UNIMPLEMENTED = 12
#: grpc.health.v1.HealthCheckResponse with status SERVING and NOT_SERVING.
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"

_Handler = Callable[[Any, "GrpcExchange"], Awaitable[Any]]


class GrpcExchange:
    """One call: what is to answer it, the bytes that it holds, or why it is refused (`refusal`).

    `asks`: the models whose availability it is if the call is refused now; empty once the data plane has it. Until
    its message is read a call may mean any of them.
    """

    __slots__ = ("_gateway", "_held", "_limit", "_method", "asks", "headers", "peer", "refusal", "request_id")

    def __init__(self, gateway: GrpcGateway, headers: Headers, peer: str, held: Held) -> None:
        self._gateway = gateway
        self._held = held
        self._method: tuple[Any, _Handler] | None = None
        self._limit = 0
        self.asks: Iterable[str] = ()
        self.headers = headers
        self.peer = peer
        self.refusal: GrpcReply | None = None
        self.request_id = self.text(b"x-request-id") or gateway.ids.next()

    def text(self, name: bytes) -> str:
        """A value of the call's metadata, empty if it has none."""
        return self.headers.get(name, b"").decode("latin-1")

    @property
    def size(self) -> int:
        """Bytes of its message, as it came and unpacked."""
        return self._held.bytes

    def route(self, message: Any, handler: _Handler, limit: int) -> None:
        """Say who answers, of what class the message is, and how many bytes it may have, packed or unpacked."""
        self._method, self._limit = (message, handler), limit

    def receive(self, count: int) -> bool:
        try:
            self._held.add(count)
            if self._held.bytes > self._limit + 5:
                raise over("the message", self._limit)
        except RequestError as error:
            self.refusal = self._gateway.refuse(error, self.asks)
            return False
        return True

    async def respond(self, body: bytes) -> GrpcReply:
        try:
            assert self._method is not None
            message, handler = self._method
            try:
                given = _message(body)
                if body[0]:
                    given = await self._unpacked(given)
                oip_grpc.check_members(given)
                request = message.FromString(given)
                del given  # not held while it is answered
            except DecodeError:
                raise RequestError(
                    ErrorKind.BAD_REQUEST, f"the message is not a valid {message.DESCRIPTOR.name}"
                ) from None
            response = await handler(request, self)
            return GrpcReply(0, response if isinstance(response, bytes) else response.SerializeToString())
        except RequestError as error:
            return self._gateway.refuse(error, self.asks)
        except Exception:
            log.exception("gRPC request %s failed", self.request_id)
            fault = RequestError(ErrorKind.INTERNAL, f"internal error, request {self.request_id}")
            return self._gateway.refuse(fault, self.asks)

    def end(self) -> None:
        self._held.release()

    async def _unpacked(self, packed: bytes) -> bytes:
        """A message that came packed. Raises `RequestError`."""
        unpacked = await coding.unpacked(packed, self.text(b"grpc-encoding"), self._limit)
        self._held.add(len(unpacked))
        return unpacked


class GrpcGateway:
    """Serves one gateway process; the application of `transport.http2`."""

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
        max_message = config.server.max_body_mib << 20
        self._plane = plane
        self._auth = auth
        self._open = config.auth.mode == "none"
        self._clock = clock
        self._budget = budget
        self._models = {
            name: (
                model.routing.sticky_key.partition(":")[2].lower().encode(),
                model.routing.override.header.lower().encode(),
                model.routing.override.role,
            )
            for name, model in config.models.items()
        }
        methods: dict[str, tuple[Any, _Handler]] = {
            "ServerLive": (pb.ServerLiveRequest, self._server_live),
            "ServerReady": (pb.ServerReadyRequest, self._server_ready),
            "ServerMetadata": (pb.ServerMetadataRequest, self._server_metadata),
            "ModelReady": (pb.ModelReadyRequest, self._model_ready),
            "ModelMetadata": (pb.ModelMetadataRequest, self._model_metadata),
            "ModelConfig": (pb.ModelConfigRequest, self._model_config),
            "ModelStatistics": (pb.ModelStatisticsRequest, self._model_statistics),
            "RepositoryIndex": (pb.RepositoryIndexRequest, self._repository_index),
        }
        self._methods = {f"/{SERVICE}/{name}".encode(): (*method, SMALL_BODY) for name, method in methods.items()}
        self._methods[b"/grpc.health.v1.Health/Check"] = (pb.ServerReadyRequest, self._health, SMALL_BODY)
        self._methods[f"/{SERVICE}/ModelInfer".encode()] = (pb.ModelInferRequest, self._model_infer, max_message)

    def begin(self, headers: Headers, peer: str) -> GrpcExchange:
        """Find out who answers; a call that is refused does not get its message read."""
        exchange = GrpcExchange(self, headers, peer, Held(self._budget))
        method = self._methods.get(headers.get(b":path", b""))
        if not headers.get(b"content-type", b"").startswith(b"application/grpc"):
            exchange.refusal = GrpcReply(_UNIMPLEMENTED, message="this port speaks gRPC only")
        elif method is None:
            exchange.refusal = GrpcReply(_UNIMPLEMENTED, message=f"no such method: {exchange.text(b':path')[:100]}")
        else:
            exchange.route(*method)
            if headers[b":path"] not in _FOR_ANYBODY:
                try:
                    self._authorize(exchange)
                except RequestError as error:
                    exchange.refusal = self.refuse(error, ())  # who may not ask is no model's to answer
                    return exchange
            if headers[b":path"] == _INFER:
                exchange.asks = self._models
        return exchange

    def refuse(self, error: RequestError, models: Iterable[str]) -> GrpcReply:
        """An error as the client is told; counted against the models whose answer it stands for."""
        for model in models:
            self._plane.refused(model, error.http_status)
        return GrpcReply(error.grpc_status, message=error.message)

    async def _server_live(self, request: Any, exchange: GrpcExchange) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, request: Any, exchange: GrpcExchange) -> Any:
        return pb.ServerReadyResponse(ready=self._plane.ready)

    async def _model_ready(self, request: Any, exchange: GrpcExchange) -> Any:
        return pb.ModelReadyResponse(ready=self._plane.model_ready(request.name, request.version))

    async def _server_metadata(self, request: Any, exchange: GrpcExchange) -> Any:
        return oip_grpc.message(server_metadata())

    async def _model_metadata(self, request: Any, exchange: GrpcExchange) -> Any:
        return oip_grpc.message(describe.metadata(self._plane, request.name, request.version))

    async def _model_config(self, request: Any, exchange: GrpcExchange) -> Any:
        return oip_grpc.message(describe.configuration(self._plane, request.name, request.version))

    async def _model_statistics(self, request: Any, exchange: GrpcExchange) -> Any:
        return oip_grpc.message(describe.statistics(self._plane, request.name, request.version))

    async def _repository_index(self, request: Any, exchange: GrpcExchange) -> Any:
        return oip_grpc.message(describe.index(self._plane))

    async def _health(self, request: Any, exchange: GrpcExchange) -> Any:
        return _SERVING if self._plane.ready else _NOT_SERVING

    async def _model_infer(self, request: Any, exchange: GrpcExchange) -> Any:
        arrived_ns = self._clock.monotonic_ns()
        admission = self._plane.admission(request.model_name)
        decoded = await coding.decoded(exchange.size, 0, oip_grpc.decode_request, request, admission)
        sticky_header, override_header, role = self._models.get(request.model_name, (b"", b"", "viewer"))
        override, version = exchange.text(override_header), request.model_version
        exchange.asks = () if version or override else (request.model_name,)
        if override or (version and self._plane.pins_candidate(request.model_name, version)):
            self._authorize(exchange, role)
        slices = self._plane.slices.get(request.model_name)
        waits_s = timeout_s(exchange.headers.get(b"grpc-timeout", b""))
        caller = Caller(
            arrived_ns,
            exchange.request_id,
            exchange.text(sticky_header),
            override,
            timeout_of(exchange.text(b"x-canarium-timeout-ms") or decoded.parameters.get("timeout_ms")),
            exchange.text(b"traceparent"),
            max(1, int(waits_s * 1000)) if waits_s is not None else None,
            slices.of_headers(exchange.text) if slices is not None else 0,
        )
        exchange.asks = ()
        reply = await self._plane.infer(request.model_name, version, decoded, caller)
        return oip_grpc.encode_response(
            reply.response,
            {
                "x_canarium_variant": reply.variant,
                "x_canarium_reason": reply.reason,
                "x_canarium_epoch": str(reply.epoch),
                "x_request_id": reply.request_id,
            },
        )

    def _authorize(self, exchange: GrpcExchange, role: str = "viewer") -> None:
        if not self._open:
            given = exchange.headers.get(b"authorization")
            token = given.decode("latin-1") if given is not None else None
            self._auth.identify(token, exchange.peer).require(role)


_INFER = f"/{SERVICE}/ModelInfer".encode()
_FOR_ANYBODY = {f"/{SERVICE}/ServerLive".encode(), f"/{SERVICE}/ServerReady".encode(), b"/grpc.health.v1.Health/Check"}


def _message(body: bytes) -> bytes:
    """What is behind its prefix of a flag and a length. Raises `RequestError`."""
    if len(body) < 5 or int.from_bytes(body[1:5]) != len(body) - 5:
        raise RequestError(ErrorKind.BAD_REQUEST, "a unary call has one whole message")
    return body[5:]
