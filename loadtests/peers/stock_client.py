"""Triton's own Python client, unmodified, one request at a time: binary tensors over HTTP and over gRPC."""

from __future__ import annotations

import time
from typing import Any

import tritonclient.grpc
import tritonclient.http

from loadtests.peers import models
from loadtests.peers.cases import Case, rows
from loadtests.percentiles import Histogram


def compare(http_port: int, grpc_port: int, case: Case, seconds: float) -> dict[str, float]:
    """p50 and p99 in microseconds at one connection, the two protocols by turns a tenth of `seconds` at a time."""
    flavours: dict[str, tuple[Any, Any]] = {
        "http": (tritonclient.http, tritonclient.http.InferenceServerClient(f"127.0.0.1:{http_port}")),
        "grpc": (tritonclient.grpc, tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{grpc_port}")),
    }
    prepared = {name: _inputs(module, case) for name, (module, _) in flavours.items()}
    found = {name: Histogram() for name in flavours}
    for turn in range(11):  # the first is the warm-up
        for name, (_, client) in flavours.items():
            until = time.perf_counter() + seconds / 10
            at = 0
            while (sent := time.perf_counter()) < until:
                client.infer(case.model, prepared[name][at % len(prepared[name])])
                if turn:
                    found[name].add((time.perf_counter() - sent) * 1e6)
                at += 1
    for _, client in flavours.values():
        client.close()
    return {
        f"{name}_{quantile}": histogram.quantile(q) or 0.0
        for name, histogram in found.items()
        for quantile, q in (("p50_us", 0.5), ("p99_us", 0.99))
    }


def _inputs(module: Any, case: Case) -> list[list[Any]]:
    made = []
    for row in rows(case):
        tensors = []
        for spec in models.about(case.model)["inputs"]:
            data = row[spec["name"]][None]
            tensor = module.InferInput(spec["name"], list(data.shape), spec["datatype"])
            tensor.set_data_from_numpy(data)
            tensors.append(tensor)
        made.append(tensors)
    return made
