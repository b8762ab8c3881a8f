"""Requests that would cost far more than their bytes: refused before an element is decoded, over both protocols."""

from __future__ import annotations

import gzip
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from tritonclient.grpc import service_pb2 as pb

from serving.control.auth import Auth
from serving.gateway import coding
from serving.gateway.budget import InflightBudget
from serving.gateway.grpc import SERVICE, GrpcGateway
from serving.gateway.http import HttpGateway
from serving.protocol import oip_grpc, oip_json, tensors
from serving.transport.grpc_calls import GrpcReply
from tests.support.gateway import InProcessGateway, published
from tests.support.http_exchange import Answer, Client

INVALID, EXHAUSTED, NOT_FOUND = 3, 8, 5


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[InProcessGateway]:
    async with published(tmp_path, {"candidate": ""}) as running:
        yield running


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions that have looked at elements."""
    seen: list[str] = []
    for module, name in ((tensors, "_strings"), (oip_json, "from_json"), (oip_grpc, "_from_contents")):
        real = getattr(module, name)

        def watched(*given: Any, name: str = name, real: Any = real) -> Any:
            seen.append(name)
            return real(*given)

        monkeypatch.setattr(module, name, watched)
    return seen


class Clients:
    """One client of each protocol."""

    def __init__(self, gateway: InProcessGateway) -> None:
        auth, budget = Auth.from_config("none", None), InflightBudget(256 << 20)
        self.budget = budget
        self._http = Client(HttpGateway(gateway.config, gateway.plane, auth, gateway.clock, budget))
        self._grpc = GrpcGateway(gateway.config, gateway.plane, auth, gateway.clock, budget)

    async def json(self, *inputs: dict[str, Any]) -> Answer:
        return await self._http.infer({"inputs": inputs})

    async def binary(self, tail: bytes, **entry: Any) -> Answer:
        head = orjson.dumps({"inputs": [{**entry, "parameters": {"binary_data_size": len(tail)}}]})
        return await self._http.infer(head + tail, inference_header_content_length=str(len(head)))

    async def grpc(self, message: Any, method: str = "ModelInfer", *, packed: bool = False) -> GrpcReply:
        body = message if isinstance(message, bytes) else message.SerializeToString()
        body = gzip.compress(body) if packed else body
        path = method if method.startswith("/") else f"/{SERVICE}/{method}"
        headers = {b":path": path.encode(), b"content-type": b"application/grpc", b"grpc-encoding": b"gzip"}
        call = self._grpc.begin(headers, "127.0.0.1")
        try:
            if not call.receive(len(body) + 5):
                assert call.refusal is not None
                return call.refusal
            return await call.respond(bytes((packed,)) + len(body).to_bytes(4) + body)
        finally:
            call.end()


@pytest.fixture
def clients(gateway: InProcessGateway) -> Clients:
    return Clients(gateway)


def infer(model: str = "tiny", **tensor: Any) -> Any:
    message = pb.ModelInferRequest(model_name=model)
    message.inputs.add(**{"name": "text", "datatype": "BYTES", "shape": [1], **tensor})
    return message


TEXT = {"name": "text", "datatype": "BYTES"}
MANY = 1_000_000


async def test_more_rows_than_the_queue_holds_are_refused_before_they_are_decoded(
    clients: Clients, decoded: list[str]
) -> None:
    words = "a request of 1000000 rows is more than the queue of teacher holds (256 rows)"
    for answer in (
        await clients.binary(bytes(4 * MANY), **TEXT, shape=[MANY]),
        await clients.json({**TEXT, "shape": [MANY], "data": [""] * MANY}),
    ):
        assert answer.status == 413
        assert words in answer.json()["error"]
    raw = infer(shape=[MANY])
    raw.raw_input_contents.append(bytes(4 * MANY))
    typed = infer(shape=[MANY])
    typed.inputs[0].contents.bytes_contents.extend([b""] * MANY)
    for message in (raw, typed):
        reply = await clients.grpc(message)
        assert reply.status == EXHAUSTED
        assert words in reply.message
    assert decoded == []
    assert clients.budget.held == 0


async def test_inputs_of_another_kind_are_refused_before_they_are_decoded(clients: Clients, decoded: list[str]) -> None:
    for entry in ({**TEXT, "shape": [1, MANY]}, {**TEXT, "name": "texts", "shape": [MANY]}):
        answer = await clients.binary(bytes(4 * MANY), **entry)
        assert answer.status == 400
    reply = await clients.grpc(infer(shape=[1, MANY]))
    assert (reply.status, "expected BYTES [-1], got BYTES [1, 1000000]" in reply.message) == (INVALID, True)
    reply = await clients.grpc(infer("nope", shape=[1]))
    assert (reply.status, "unknown model 'nope'" in reply.message) == (NOT_FOUND, True)
    assert decoded == []


async def test_more_inputs_than_the_limit_are_refused(clients: Clients, decoded: list[str]) -> None:
    answer = await clients.json(*({**TEXT, "name": str(at), "shape": [0], "data": []} for at in range(257)))
    assert (answer.status, answer.json()["error"]) == (400, "inputs: 257 are over the limit of 256")
    message = infer()
    for at in range(5000):
        message.inputs.add(name=str(at))
    reply = await clients.grpc(message)
    assert (reply.status, "has more than" in reply.message) == (INVALID, True)
    assert decoded == []


async def test_a_dimension_that_no_replica_can_be_sent_is_refused(clients: Clients) -> None:
    shape = [1, 3, 0, 3_000_000_000]
    words = "inputs[0].shape: 3000000000 is over the limit of 2147483647"
    for answer in (
        await clients.json({"name": "x", "datatype": "FP32", "shape": shape, "data": []}),
        await clients.binary(b"", name="x", datatype="FP32", shape=shape),
    ):
        assert (answer.status, answer.json()["error"]) == (400, words)
    reply = await clients.grpc(infer(datatype="FP32", shape=shape))
    assert (reply.status, reply.message) == (INVALID, words)


@pytest.mark.parametrize(("inline", "on_loop"), [(1, False), (1 << 20, True)])
async def test_much_is_decoded_off_the_loop(
    clients: Clients, monkeypatch: pytest.MonkeyPatch, inline: int, on_loop: bool
) -> None:
    monkeypatch.setattr(coding, "INLINE_JSON", inline)
    monkeypatch.setattr(coding, "INLINE_BODY", inline)
    seen: list[bool] = []
    for module in (oip_json, oip_grpc):
        real = module.check_count

        def watched(*given: Any, real: Any = real) -> None:
            seen.append(threading.current_thread() is threading.main_thread())
            real(*given)

        monkeypatch.setattr(module, "check_count", watched)
    assert (await clients.json({**TEXT, "shape": [1], "data": ["spam"]})).status == 200
    assert (await clients.binary(b"\4\0\0\0spam", **TEXT, shape=[1])).status == 200
    message = infer()
    message.inputs[0].contents.bytes_contents.append(b"spam")
    assert (await clients.grpc(message)).status == 0
    assert set(seen) == {on_loop}


@pytest.mark.parametrize("method", ["ServerLive", "ServerMetadata", "/grpc.health.v1.Health/Check"])
async def test_who_asks_no_model_needs_no_large_message(clients: Clients, method: str) -> None:
    large = b"\x7a" + (1 << 20).to_bytes(1 + 2, "big") + bytes(1 << 20)
    for packed in (False, True):
        reply = await clients.grpc(large, method, packed=packed)
        assert reply.status == EXHAUSTED
    assert clients.budget.held == 0
    assert (await clients.grpc(b"\x7a\x80\x01" + bytes(128), method)).status == 0
