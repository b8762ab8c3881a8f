"""The Open Inference Protocol v2 over gRPC: methods that Ray Serve's gRPC ingress calls by name."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from serving.clock import Clock
from serving.config import LOOPBACK, Config
from serving.control.auth import Auth
from serving.errors import GRPC_STATUS, ErrorKind, RequestError
from serving.gateway import describe
from serving.gateway.asgi import timeout_of
from serving.gateway.budget import InflightBudget
from serving.gateway.dataplane import Caller, DataPlane
from serving.protocol import oip_grpc
from serving.protocol.describe import server_metadata

log = logging.getLogger(__name__)
_LOCAL_PEERS = ("ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D", "ipv6:[::ffff:127.", "ipv6:%5B::ffff:127.", "unix:")
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class GrpcGateway:
    """One method an RPC, each `(request, context) -> response`; errors set the status and raise."""

    def __init__(self, config: Config, plane: DataPlane, auth: Auth, clock: Clock, budget: InflightBudget) -> None:
        self._plane = plane
        self._auth = auth
        self._open = config.auth.mode == "none"
        self._clock = clock
        self._models = config.models
        self._budget = budget
        self._max_body = config.server.max_body_mib << 20
        # Ray Serve's own gRPC port of a replica listens on every interface, whatever `server.host` says.
        self._loopback_only = config.server.host in LOOPBACK

    async def call(self, method: Callable[[Any, dict[str, str]], Awaitable[Any]], request: Any, context: Any) -> Any:
        """Run one RPC, turning `RequestError` into its gRPC status."""
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        peer = context.peer() or ""
        try:
            if self._loopback_only and not peer.startswith(_LOCAL_PEERS):
                raise RequestError(ErrorKind.FORBIDDEN, "this server answers on loopback only")
            metadata["x-canarium-peer"] = peer.rpartition(":")[0]
            size = request.ByteSize()
            if size > self._max_body:
                raise RequestError(ErrorKind.TOO_LARGE, f"the message is over the limit of {self._max_body >> 20} MiB")
            with self._budget.request() as held:
                held.add(size)
                return await method(request, metadata)
        except RequestError as error:
            context.set_code(_CODES[error.grpc_status])
            context.set_details(error.message)
            raise
        except Exception:
            request_id = metadata.get("x-request-id") or uuid.uuid4().hex
            log.exception("gRPC request %s failed", request_id)
            context.set_code(_CODES[GRPC_STATUS[ErrorKind.INTERNAL]])
            context.set_details(f"internal error, request {request_id}")
            raise

    async def server_live(self, request: Any, metadata: dict[str, str]) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: Any, metadata: dict[str, str]) -> Any:
        return pb.ServerReadyResponse(ready=self._plane.ready)

    async def model_ready(self, request: Any, metadata: dict[str, str]) -> Any:
        self._authorize(metadata)
        return pb.ModelReadyResponse(ready=self._plane.model_ready(request.name, request.version))

    async def server_metadata(self, request: Any, metadata: dict[str, str]) -> Any:
        self._authorize(metadata)
        return oip_grpc.message(server_metadata())

    async def model_metadata(self, request: Any, metadata: dict[str, str]) -> Any:
        self._authorize(metadata)
        return oip_grpc.message(describe.metadata(self._plane, request.name, request.version))

    async def model_config(self, request: Any, metadata: dict[str, str]) -> Any:
        self._authorize(metadata)
        return oip_grpc.message(describe.configuration(self._plane, request.name, request.version))

    async def model_statistics(self, request: Any, metadata: dict[str, str]) -> Any:
        self._authorize(metadata)
        return oip_grpc.message(describe.statistics(self._plane, request.name, request.version))

    async def repository_index(self, request: Any, metadata: dict[str, str]) -> Any:
        self._authorize(metadata)
        return oip_grpc.message(describe.index(self._plane))

    async def model_infer(self, request: Any, metadata: dict[str, str]) -> Any:
        arrived_ns = self._clock.monotonic_ns()
        self._authorize(metadata)
        decoded = oip_grpc.decode_request(request)
        model = self._models.get(request.model_name)
        sticky = override = ""
        if model is not None:
            sticky = metadata.get(model.routing.sticky_key.partition(":")[2].lower(), "")
            override = metadata.get(model.routing.override.header.lower(), "")
            if override:
                self._authorize(metadata, model.routing.override.role)
        caller = Caller(
            arrived_ns,
            metadata.get("x-request-id", ""),
            sticky,
            override,
            timeout_of(metadata.get("x-canarium-timeout-ms") or decoded.parameters.get("timeout_ms")),
            metadata.get("traceparent", ""),
        )
        reply = await self._plane.infer(request.model_name, request.model_version, decoded, caller)
        response = oip_grpc.encode_response(reply.response)
        for key, value in reply.headers.items():
            response.parameters[key.replace("-", "_")].string_param = value
        return response

    def _authorize(self, metadata: dict[str, str], role: str = "viewer") -> None:
        if not self._open:
            self._auth.identify(metadata.get("authorization"), metadata["x-canarium-peer"]).require(role)
