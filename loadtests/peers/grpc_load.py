"""A gRPC client for the Open Inference Protocol: closed loop, messages serialised beforehand, answers not parsed.

Python costs about ten times what `load.c` does a request, on the cores that the server shares. So its CPU is
reported with every result, and gRPC rates are compared with each other and not with those over HTTP. One channel a
connection, since channels to one address would otherwise share a socket.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import uvloop
from tritonclient.grpc import service_pb2

from loadtests.load import Result
from loadtests.peers import models
from loadtests.peers.cases import Case, rows
from loadtests.percentiles import QUANTILES, Histogram, label

METHOD = "/inference.GRPCInferenceService/ModelInfer"
TIMEOUT_S = 10.0
START_TIMEOUT_S = 10.0


def messages(case: Case) -> list[bytes]:
    """Serialised requests with raw tensor contents, one a row."""
    made = []
    for row in rows(case):
        request = service_pb2.ModelInferRequest(model_name=case.model)
        for spec in models.about(case.model)["inputs"]:
            data = row[spec["name"]]
            request.inputs.add(name=spec["name"], datatype=spec["datatype"], shape=[1, *data.shape])
            request.raw_input_contents.append(data.tobytes())
        made.append(request.SerializeToString())
    return made


def first_output(answer: bytes) -> np.ndarray:
    """The first tensor of an answer, FP32, from raw or typed contents."""
    response = service_pb2.ModelInferResponse.FromString(answer)
    if response.raw_output_contents:
        return np.frombuffer(response.raw_output_contents[0], np.float32)
    return np.array(response.outputs[0].contents.fp32_contents, np.float32)


def run(port: int, payloads: Sequence[bytes], *, connections: int, seconds: float, warmup: float = 1.0) -> Result:
    """Load 127.0.0.1:`port` and return what was measured, in the form of `load.run`."""
    return uvloop.run(_run(f"127.0.0.1:{port}", payloads, connections, seconds, warmup))


def ask(port: int, payload: bytes) -> bytes:
    """One request, tried again for a while: servers may open gRPC later than HTTP. Raises `grpc.RpcError`."""
    deadline = time.monotonic() + START_TIMEOUT_S
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        while True:
            try:
                answer: bytes = channel.unary_unary(METHOD)(payload, timeout=TIMEOUT_S)
                return answer
            except grpc.RpcError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)


async def _run(target: str, payloads: Sequence[bytes], connections: int, seconds: float, warmup: float) -> Result:
    histogram, codes = Histogram(), Counter[str]()
    received = 0
    began = time.perf_counter() + warmup
    ended = began + seconds

    async def user(index: int, channel: Any) -> None:
        nonlocal received
        call = channel.unary_unary(METHOD)
        at = index
        while (sent := time.perf_counter()) < ended:
            code = "OK"
            size = 0
            try:
                size = len(await call(payloads[at % len(payloads)], timeout=TIMEOUT_S))
            except grpc.aio.AioRpcError as error:
                code = error.code().name
                await asyncio.sleep(0.01)
            now = time.perf_counter()
            at += connections
            if not began <= now < ended:
                continue
            codes[code] += 1
            if code == "OK":
                received += size
                histogram.add((now - sent) * 1e6)

    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(target, options=options) for _ in range(connections)]
    users = [asyncio.create_task(user(index, channel)) for index, channel in enumerate(channels)]
    await asyncio.sleep(warmup)
    before = _cpu_seconds()
    await asyncio.sleep(seconds)
    used = _cpu_seconds() - before
    await asyncio.gather(*users)
    for channel in channels:
        await channel.close()
    latency = {} if not histogram.count else {label(q): histogram.quantile(q) or 0.0 for q in QUANTILES}
    if histogram.count:
        latency |= {"mean": histogram.mean or 0.0, "max": float(histogram.max_us)}
    rate = histogram.count / seconds
    return Result(histogram.count, seconds, rate, latency, used, dict(codes), {}, bytes=received)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
