"""Packing and unpacking leaves the event loop where there is much of it, over both protocols."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from serving.control.auth import Auth
from serving.gateway import coding
from serving.gateway.budget import InflightBudget
from serving.gateway.grpc import SERVICE, GrpcExchange, GrpcGateway
from serving.gateway.http import HttpGateway
from serving.protocol import compress
from serving.transport.grpc_calls import GrpcReply
from tests.support.gateway import InProcessGateway, published, status_cells
from tests.support.http_exchange import Client

TEXTS = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [200], "data": ["spam"] * 200}]}


@pytest.fixture
def on_loop(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Which of the two was done last on the thread of the event loop."""
    seen: dict[str, bool] = {}
    for name in ("compress", "decompress"):
        real = getattr(compress, name)

        def watched(*args: Any, name: str = name, real: Any = real) -> Any:
            seen[name] = threading.current_thread() is threading.main_thread()
            return real(*args)

        monkeypatch.setattr(compress, name, watched)
    return seen


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[InProcessGateway]:
    async with published(tmp_path, {}) as running:
        yield running


@pytest.fixture
def budget() -> InflightBudget:
    return InflightBudget(256 << 20)


def _call(gateway: InProcessGateway, budget: InflightBudget) -> GrpcExchange:
    app = GrpcGateway(gateway.config, gateway.plane, Auth.from_config("none", None), gateway.clock, budget)
    headers = {
        b":path": f"/{SERVICE}/ModelInfer".encode(),
        b"content-type": b"application/grpc",
        b"grpc-encoding": b"gzip",
    }
    return app.begin(headers, "127.0.0.1")


def _packed_message() -> bytes:
    message = pb.ModelInferRequest(model_name="tiny")
    tensor = message.inputs.add(name="text", datatype="BYTES", shape=[200])
    tensor.contents.bytes_contents.extend([b"spam"] * 200)
    packed = gzip.compress(message.SerializeToString())
    return b"\1" + len(packed).to_bytes(4) + packed


@pytest.mark.parametrize("more", [0, -1])
async def test_much_leaves_the_loop_and_little_does_not(on_loop: dict[str, bool], more: int) -> None:
    body = bytes(coding.INLINE + more)
    pieces, encoding = await coding.packed([body[:10], body[10:]], "gzip")
    assert (gzip.decompress(b"".join(pieces)), encoding) == (body, "gzip")
    packed = gzip.compress(body, 0)[: coding.INLINE_PACKED + more]
    with pytest.raises(Exception, match="truncated"):
        await coding.unpacked(packed, "gzip", 1 << 20)
    assert on_loop == {"compress": more < 0, "decompress": more < 0}


@pytest.mark.parametrize("inline", [1, 1 << 20])
async def test_http_bodies_and_answers(
    gateway: InProcessGateway,
    budget: InflightBudget,
    on_loop: dict[str, bool],
    monkeypatch: pytest.MonkeyPatch,
    inline: int,
) -> None:
    for name in ("INLINE", "INLINE_PACKED"):
        monkeypatch.setattr(coding, name, inline)
    client = Client(HttpGateway(gateway.config, gateway.plane, Auth.from_config("none", None), gateway.clock, budget))
    body = gzip.compress(str(TEXTS).replace("'", '"').encode())
    answer = await client.infer(body, content_encoding="gzip", accept_encoding="gzip")
    assert (answer.status, answer.headers["content-encoding"]) == (200, "gzip")
    assert b'"spam"' in gzip.decompress(answer.body)
    assert on_loop == dict.fromkeys(("compress", "decompress"), inline > 1)


@pytest.mark.parametrize("inline", [1, 1 << 20])
async def test_grpc_messages(
    gateway: InProcessGateway,
    budget: InflightBudget,
    on_loop: dict[str, bool],
    monkeypatch: pytest.MonkeyPatch,
    inline: int,
) -> None:
    monkeypatch.setattr(coding, "INLINE_PACKED", inline)
    call, body = _call(gateway, budget), _packed_message()
    assert call.receive(len(body))
    reply = await call.respond(body)
    assert reply.status == 0
    assert pb.ModelInferResponse.FromString(reply.payload).model_name == "tiny"
    assert on_loop == {"decompress": inline > 1}
    assert budget.held > len(body)
    call.end()
    assert budget.held == 0


async def test_a_call_that_is_taken_back_while_it_is_unpacked_holds_nothing(
    gateway: InProcessGateway, budget: InflightBudget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coding, "INLINE_PACKED", 1)
    go_on = threading.Event()
    real = compress.decompress

    def held_up(*args: Any) -> bytes:
        go_on.wait()
        return real(*args)

    monkeypatch.setattr(compress, "decompress", held_up)
    call, body = _call(gateway, budget), _packed_message()
    assert call.receive(len(body))
    answering: asyncio.Task[GrpcReply] = asyncio.ensure_future(call.respond(body))
    await asyncio.sleep(0)
    answering.cancel()
    call.end()
    with pytest.raises(asyncio.CancelledError):
        await answering
    go_on.set()
    assert budget.held == 0


async def test_a_call_over_the_budget_is_counted_before_and_after_its_message_is_read(
    gateway: InProcessGateway,
) -> None:
    body = _packed_message()
    call = _call(gateway, InflightBudget(len(body) - 1))
    assert not call.receive(len(body))
    assert status_cells(gateway, "teacher")[503] == 1
    call = _call(gateway, InflightBudget(len(body)))
    assert call.receive(len(body))
    assert (await call.respond(body)).status == 14
    assert status_cells(gateway, "teacher")[503] == 2
