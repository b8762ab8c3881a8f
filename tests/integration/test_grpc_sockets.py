"""gRPC over real sockets with other people's clients: the gRPC library, its asyncio form, unmodified tritonclient."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.grpc import service_pb2 as pb

from serving.transport.grpc_calls import GrpcReply, timeout_s
from serving.transport.hpack import Headers
from serving.transport.http2 import Http2Server
from tests.support.http2_kit import App, Call
from tests.support.served import Served, served
from tests.support.stack import wait_for

pytestmark = pytest.mark.integration

LARGE = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@pytest.fixture
def app() -> App:
    app = App()
    app.limit = 64 << 20
    return app


@pytest.fixture
def server(app: App) -> Iterator[Served]:
    with served(lambda: Http2Server(app)) as running:
        yield running


@pytest.fixture
def channel(server: Served) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", LARGE) as channel:
        yield channel


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_384, 65_535, 1 << 20, 5_000_003, 40 << 20])
def test_messages_of_every_size_come_back(channel: grpc.Channel, app: App, size: int) -> None:
    payload = np.random.default_rng(size).bytes(size)
    echo = channel.unary_unary("/s/Echo")
    assert echo(payload, timeout=30) == payload
    assert echo(payload, timeout=30) == payload
    wait_for(lambda: app.held == 0)


def test_many_calls_at_once_on_one_connection_get_their_own_answers(channel: grpc.Channel, app: App) -> None:
    echo = channel.unary_unary("/s/Echo")

    def client(number: int) -> None:
        for turn in range(20):
            payload = b"%d-%d" % (number, turn) * (1 + number * turn * 10)
            assert echo(payload, timeout=30) == payload

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(client, range(64)))
    assert len(app.asked) == 64 * 20


async def test_hundreds_of_calls_of_the_asyncio_client(server: Served, app: App) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", LARGE) as channel:
        echo = channel.unary_unary("/s/Echo")
        payloads = [bytes([number % 256]) * (number * 977 % 200_000) for number in range(600)]
        answers = await asyncio.gather(*(echo(payload, timeout=60) for payload in payloads))
    assert list(answers) == payloads


def test_a_message_that_the_client_packs_comes_as_it_was_sent(server: Served, app: App) -> None:
    packed = [*LARGE, ("grpc.default_compression_algorithm", grpc.Compression.Gzip.value)]
    payload = b"spam and ham " * 100_000
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", packed) as channel:
        assert gzip.decompress(channel.unary_unary("/s/Echo")(payload, timeout=30)) == payload
    assert app.begun[0].headers[b"grpc-encoding"] == b"gzip"
    wait_for(lambda: app.held == 0)


def test_the_deadline_of_the_client_reaches_the_application(channel: grpc.Channel, app: App) -> None:
    channel.unary_unary("/s/Echo")(b"x", timeout=100)
    told_s = timeout_s(app.begun[0].headers[b"grpc-timeout"])
    assert told_s is not None
    assert 50 < told_s <= 101  # the client rounds up


def test_refusals_reach_the_client_word_for_word(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/s/No")(b"x" * 3_000_000, timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details() == "no 100 % sure: ü"


def test_a_message_over_the_limit_is_refused_and_the_channel_goes_on(channel: grpc.Channel, app: App) -> None:
    app.limit = 100_000
    for _ in range(20):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/s/Echo")(bytes(20_000_000), timeout=10)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert channel.unary_unary("/s/Echo")(b"small", timeout=10) == b"small"
    assert app.held == 0


def test_a_call_that_is_cancelled_or_late_takes_its_work_with_it(channel: grpc.Channel, app: App) -> None:
    wait = channel.unary_unary("/s/Wait")
    future = wait.future(b"x", timeout=30)
    wait_for(lambda: len(app.asked) == 1)
    future.cancel()
    for _ in range(10):  # where the machine stands still, a call may be late before its work begins
        with pytest.raises(grpc.RpcError) as caught:
            wait(b"x", timeout=1.5)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        if len(app.asked) > 1:
            break
    assert len(app.asked) > 1
    wait_for(lambda: all(call.ended for call in app.begun))
    wait_for(lambda: sum(call.cancelled for call in app.begun) == len(app.asked))


def test_draining_lets_calls_finish_and_the_client_comes_again_elsewhere(server: Served, app: App) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        future = channel.unary_unary("/s/Wait").future(b"asked", timeout=30)
        wait_for(lambda: len(app.asked) == 1)

        async def drain() -> None:
            server.loop.call_later(0.5, app.begun[0].gate.set)
            await server.server.drain(10)

        server.call(drain)
        assert future.result(10) == b"asked"
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/s/Echo")(b"next", timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_http_on_the_grpc_port_is_told(server: Served) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"GET /v2 HTTP/1.1\r\nhost: h\r\n\r\n")
        answer = b""
        while piece := client.recv(4096):
            answer += piece
    assert b"HTTP/1.1 400 Bad Request" in answer
    assert b"this port speaks gRPC" in answer


# ---------------------------------------------------------------- the unmodified Triton client


class TensorEcho(App):
    """Answers `ModelInfer` with the tensors that it was given."""

    def begin(self, given: Headers, peer: str) -> Call:
        call = TensorCall(self, given)
        self.begun.append(call)
        return call


class TensorCall(Call):
    async def respond(self, body: bytes) -> GrpcReply:
        request = pb.ModelInferRequest.FromString(body[5:])
        answer = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
        for tensor in request.inputs:
            answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        answer.raw_output_contents.extend(request.raw_input_contents)
        return GrpcReply(0, answer.SerializeToString())


@pytest.fixture
def triton() -> Iterator[Any]:
    app = TensorEcho()
    app.limit = 64 << 20
    with served(lambda: Http2Server(app)) as running:
        client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{running.port}")
        yield client
        client.close()


def tensor(rows: int) -> tuple[np.ndarray, Any]:
    array = np.random.default_rng(rows).random((rows, 1024), dtype=np.float32)
    given = tritonclient.grpc.InferInput("x", list(array.shape), "FP32")
    given.set_data_from_numpy(array)
    return array, given


@pytest.mark.parametrize("mib", [1, 4, 17, 40])
def test_large_tensors_through_tritonclient(triton: Any, mib: int) -> None:
    array, given = tensor(mib * 256)
    for _ in range(2):
        result = triton.infer("m", [given], request_id="r")
        np.testing.assert_array_equal(result.as_numpy("x"), array)
        assert result.get_response().id == "r"


def test_many_calls_of_tritonclient_at_once(triton: Any) -> None:
    def client(number: int) -> None:
        array, given = tensor(1 + number * 8)
        for _ in range(5):
            np.testing.assert_array_equal(triton.infer("m", [given]).as_numpy("x"), array)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(client, range(32)))
