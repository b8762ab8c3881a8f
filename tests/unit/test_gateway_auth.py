"""Who may do what at the gateway: with tokens everywhere, and with inference left open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tritonclient.grpc import service_pb2 as pb

from serving.config import Config
from serving.contract import Flag
from serving.control.auth import VISITOR, Auth, Principal
from serving.control.tokens import Token, hashed
from serving.gateway.budget import InflightBudget
from serving.gateway.grpc import SERVICE, GrpcExchange, GrpcGateway
from serving.gateway.http import HttpGateway
from tests.support.gateway import InProcessGateway, published, status_cells
from tests.support.http_exchange import Answer, Client

BODY = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["spam"]}]}
CHOOSE = {"x-canarium-variant": "candidate"}


class Gate:
    """The gateway of the model `tiny`; `visitor` is who comes without a token."""

    def __init__(self, gateway: InProcessGateway, visitor: Principal | None) -> None:
        auth_config = gateway.config.auth.model_copy(update={"mode": "tokens", "tokens_file": "tokens"})
        config: Config = gateway.config.model_copy(update={"auth": auth_config})
        roles = ("viewer", "tester", "labeller", "monitor")
        auth = Auth([Token(role, role, hashed(role)) for role in roles], gateway.clock, visitor)
        budget = InflightBudget(256 << 20)
        self._client = Client(HttpGateway(config, gateway.plane, auth, gateway.clock, budget))
        self._grpc = GrpcGateway(config, gateway.plane, auth, gateway.clock, budget)

    async def infer(self, token: str | None = None, **headers: str) -> Answer:
        return await self._post("/v2/models/tiny/infer", BODY, token, headers)

    async def pin(self, version: int, token: str | None = None, **headers: str) -> int:
        return (await self._post(f"/v2/models/tiny/versions/{version}/infer", BODY, token, headers)).status

    async def pin_grpc(self, version: str, token: str | None = None) -> int:
        """Status of a gRPC call that names a version."""
        message = pb.ModelInferRequest(model_name="tiny", model_version=version)
        message.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"spam")
        raw = message.SerializeToString()
        call = self.begin_grpc(token)
        reply = call.refusal or await call.respond(b"\0" + len(raw).to_bytes(4) + raw)
        call.end()
        return reply.status

    def begin_grpc(self, token: str | None = None) -> GrpcExchange:
        """A call for an inference of which the headers are there and no message."""
        headers = {b":path": f"/{SERVICE}/ModelInfer".encode(), b"content-type": b"application/grpc"}
        given = {b"authorization": f"Bearer {token}".encode()} if token else {}
        return self._grpc.begin(headers | given, "127.0.0.1")

    async def feedback(self, token: str | None = None) -> int:
        return (await self._post("/v2/models/tiny/feedback", {"id": "r", "label": "spam"}, token, {})).status

    async def get(self, path: str) -> int:
        return (await self._client.request("GET", path)).status

    async def _post(self, path: str, body: Any, token: str | None, headers: dict[str, str]) -> Answer:
        shown = {"authorization": f"Bearer {token}"} if token else {}
        return await self._client.request("POST", path, body, shown | headers)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[InProcessGateway]:
    async with published(tmp_path, {"candidate": ""}) as running:
        yield running


@pytest.mark.parametrize("spelling", ["/v2/models/tiny/infer", "/v2/models/tiny/infer/", "//v2/models/tiny/infer"])
async def test_the_monitor_takes_no_part_in_routed_traffic(gateway: InProcessGateway, spelling: str) -> None:
    gate = Gate(gateway, None)
    assert (await gate._post(spelling, BODY, "monitor", {})).status == 403
    assert (await gate._post(spelling, BODY, "viewer", {})).status == 200
    assert (await gate._post("/v2/models/tiny/versions/1/infer", BODY, "monitor", {})).status == 200
    assert not [record for record in gateway.records() if record["flags"] & Flag.LIVE][1:]


async def test_by_default_inference_needs_a_token(gateway: InProcessGateway) -> None:
    gate = Gate(gateway, None)
    refused = await gate.infer()
    assert (refused.status, refused.headers["content-type"]) == (401, "application/json")
    assert (await gate.infer("wrong")).status == 401
    assert (await gate.infer("viewer")).status == 200
    assert (await gate.get("/v2/models/tiny"), await gate.get("/v2/health/live")) == (401, 200)


async def test_open_inference_takes_anybody_and_refuses_a_wrong_token(gateway: InProcessGateway) -> None:
    gate = Gate(gateway, VISITOR)
    assert (await gate.infer()).status == 200
    assert await gate.get("/v2/models/tiny") == 200
    assert (await gate.infer("wrong")).status == 401


@pytest.mark.parametrize("visitor", [None, VISITOR], ids=["tokens", "open"])
async def test_the_variant_is_chosen_by_its_role_alone(gateway: InProcessGateway, visitor: Principal | None) -> None:
    gate = Gate(gateway, visitor)
    assert (await gate.infer(**CHOOSE)).status == 401
    assert (await gate.infer("viewer", **CHOOSE)).status == 403
    chosen = await gate.infer("tester", **CHOOSE)
    assert (chosen.status, chosen.headers["x-canarium-variant"]) == (200, "candidate")


@pytest.mark.parametrize("visitor", [None, VISITOR], ids=["tokens", "open"])
async def test_a_candidate_is_pinned_by_the_same_role_and_by_the_monitor(
    gateway: InProcessGateway, visitor: Principal | None
) -> None:
    gate = Gate(gateway, visitor)
    tokens = (None, "viewer", "tester", "monitor")
    assert [await gate.pin(2, token) for token in tokens] == [401, 403, 200, 200]
    assert await gate.pin(2, "monitor", **CHOOSE) == 403  # the header is not the monitor's
    # No way for the monitor over gRPC. 16: UNAUTHENTICATED, 7: PERMISSION_DENIED.
    assert [await gate.pin_grpc("2", token) for token in tokens] == [16, 7, 0, 7]
    assert [await gate.pin_grpc("", token) for token in tokens[:3]] == [0 if visitor else 16, 0, 0]


@pytest.mark.parametrize("visitor", [None, VISITOR], ids=["tokens", "open"])
async def test_the_baseline_is_pinned_by_whoever_may_infer(
    gateway: InProcessGateway, visitor: Principal | None
) -> None:
    gate = Gate(gateway, visitor)
    assert [await gate.pin(1, token) for token in (None, "viewer", "monitor")] == [200 if visitor else 401, 200, 200]
    assert [await gate.pin_grpc("1", token) for token in (None, "viewer")] == [0 if visitor else 16, 0]
    assert (await gate.pin(9, "viewer"), await gate.pin_grpc("9", "viewer")) == (404, 5)
    table = gateway.snapshot.tables["tiny"]
    promoted = msgspec.structs.replace(table, baseline="candidate", epoch=table.epoch + 1)
    gateway.snapshot = msgspec.structs.replace(gateway.snapshot, rev=9, tables={"tiny": promoted})
    await gateway.plane.apply(gateway.snapshot)
    assert (await gate.pin(2, "viewer"), await gate.pin(1, "viewer")) == (200, 403)


@pytest.mark.parametrize("visitor", [None, VISITOR], ids=["tokens", "open"])
async def test_feedback_needs_its_role(gateway: InProcessGateway, visitor: Principal | None) -> None:
    gate = Gate(gateway, visitor)
    found = [await gate.feedback(token) for token in (None, "viewer", "tester", "labeller")]
    assert found[:3] == [401, 403, 403]
    assert found[3] < 300


async def test_a_peer_that_keeps_failing_is_told_to_wait(gateway: InProcessGateway) -> None:
    gate = Gate(gateway, None)
    for _ in range(10):
        assert (await gate.infer("wrong")).status == 401
    slowed = await gate.infer("wrong")
    assert (slowed.status, int(slowed.headers["retry-after"]) > 0) == (429, True)
    assert (await gate.infer("viewer")).status == 200


async def test_calls_without_a_valid_token_are_no_models_failures(gateway: InProcessGateway) -> None:
    gate, before = Gate(gateway, None), status_cells(gateway, "teacher")
    refusals = [gate.begin_grpc("wrong").refusal for _ in range(12)]
    # 16: UNAUTHENTICATED, 8: RESOURCE_EXHAUSTED, which of a model in traffic would be its failure.
    assert [refusal and refusal.status for refusal in refusals] == [16] * 10 + [8] * 2
    assert status_cells(gateway, "teacher") == before
