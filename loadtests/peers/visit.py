"""One visit to one server: start it, check its answers, measure every case of one model, end it."""

from __future__ import annotations

import http.client
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from tritonclient.utils import InferenceServerException

from loadtests import load
from loadtests.peers import cases, grpc_load, stock_client
from loadtests.peers.cases import Case, Wire
from loadtests.peers.processes import Processes
from loadtests.peers.registry import Peer, Start, scratch
from serving.processes import free_ports

START_TIMEOUT_S = 90.0
#: A server has settled once it uses less than this share of a core while nobody asks; looked at how often, and at most
#: how long, seconds.
SETTLED_SHARE, SETTLE_EVERY_S, SETTLE_LIMIT_S = 0.2, 0.4, 8.0
#: Rows of each case that are compared with the bare session's answers before anything is timed.
CHECKED = 8
#: INT8 rounds differently when a row is padded, and JSON shortens numbers.
TOLERANCE = 2e-3
#: At this many connections the capacity is taken, of which the open loops are shares.
REFERENCE_CONNECTIONS = 32
#: Connections an open loop may use.
OPEN_CONNECTIONS = 512


class Unusable(Exception):
    """A server does not give the bare session's answers, or ended; the message says what was seen."""


class NotStarted(Unusable):
    """A server never answered."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured; seconds are those of each measurement."""

    connections: tuple[int, ...]
    seconds: float
    warmup: float
    open_shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Extras:
    """What is measured besides HTTP for servers that speak gRPC, in `GRPC_CASES`."""

    grpc_connections: tuple[int, ...] = ()
    stock_s: float = 0.0


NO_EXTRAS = Extras()
GRPC_CASES = ("overhead, binary", "transformer, 32 tokens")


@contextmanager
def running(peer: Peer, start: Start, command: tuple[list[str], dict[str, str]] | None = None) -> Iterator[Processes]:
    """A started server, ended and its files removed whatever happens."""
    words, env = command or peer.launch(start)
    server = Processes(words, env=env, log=start.folder.with_suffix(".log"))
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(start.folder, ignore_errors=True)


def new_start(peer: Peer, model: str, mixed: bool = False, shape: tuple[int, int] | None = None) -> Start:
    """Free ports and the peer's own workers and threads."""
    http_port, grpc_port = free_ports(2)
    workers, threads = shape or peer.shape[model]
    return Start(model, http_port, grpc_port if peer.grpc else 0, scratch(peer, model), workers, threads, mixed)


def visit(
    peer: Peer,
    model: str,
    wanted: Sequence[Case],
    plan: Plan,
    *,
    extras: Extras = NO_EXTRAS,
    shape: tuple[int, int] | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure cases of one model, on servers started for it.

    Yields:
        ("records", one HTTP measurement, or `error` for a case that could not be measured),
        ("grpc", one gRPC measurement), ("stock", one comparison by tritonclient).
    """
    for group in _groups(peer, wanted):
        start = new_start(peer, model, group[0].mixed, shape)
        left = list(group)
        try:
            with running(peer, start) as server:
                for case in group:
                    yield from _attempt(peer, start, server, case, plan, extras)
                    left.remove(case)
        except (NotStarted, OSError) as error:
            for case in left:
                yield "records", {"peer": peer.name, "case": case.name, "error": str(error)}


def _attempt(
    peer: Peer, start: Start, server: Processes, case: Case, plan: Plan, extras: Extras
) -> Iterator[tuple[str, dict[str, Any]]]:
    """One case over both protocols; what is wrong with it alone is its record. Raises `NotStarted`."""
    try:
        for record in _case(peer, start, server, case, plan):
            yield "records", record
    except NotStarted:
        raise
    except (Unusable, load.LoadError, OSError, http.client.HTTPException) as error:
        yield "records", {"peer": peer.name, "case": case.name, "error": str(error) or repr(error)}
    if peer.grpc and case.name in GRPC_CASES:
        yield from _grpc(peer, start, server, case, plan, extras)


def _groups(peer: Peer, wanted: Sequence[Case]) -> list[list[Case]]:
    groups = [list(wanted)] if not peer.apart else []
    if peer.apart:
        groups = [[case for case in wanted if case.mixed is mixed] for mixed in (False, True)]
    return [group for group in groups if group]


def _case(peer: Peer, start: Start, server: Processes, case: Case, plan: Plan) -> Iterator[dict[str, Any]]:
    wire = peer.wire(case)
    if wire is None:
        yield {"peer": peer.name, "case": case.name, "error": "takes no binary bodies"}
        return
    requests = cases.requests(case, wire, peer.path(start.model), peer.text_shape)
    wait_until_right(server, start.http_port, case, wire, requests)
    settle(server)
    base = {"peer": peer.name, "case": case.name, "wire": wire, "workers": start.workers, "threads": start.threads}
    capacity = 0.0
    loads: list[dict[str, Any]] = [{"connections": count} for count in plan.connections]
    loads += [{"connections": OPEN_CONNECTIONS, "share": share} for share in plan.open_shares]
    for options in loads:
        share = options.pop("share", None)
        if share is not None:
            if capacity <= 0:
                continue
            options["rate"] = capacity * share
        before = server.cpu_seconds()
        result = load.run(
            start.http_port, requests, seconds=plan.seconds, warmup=plan.warmup, **options, **cases.good(case, wire)
        )
        used = _difference(before, server.cpu_seconds())
        if server.ended:
            raise Unusable(f"ended under load:\n{server.output()}")
        if options["connections"] == REFERENCE_CONNECTIONS:
            capacity = result.rate
        # The counters were read around warm-up and window together; the shares of both are alike.
        scale = plan.seconds / (plan.seconds + plan.warmup)
        yield {
            **base,
            "connections": options["connections"],
            "share": share,
            "target_rate": options.get("rate"),
            "result": result.as_json(),
            "cpu_s": {name: seconds * scale for name, seconds in used.items()},
            "memory_mib": round(server.memory_mib(), 1),
        }


def settle(server: Processes) -> None:
    """Wait until the work of starting is over (Ray's controller is busy for seconds after its first answer)."""
    deadline = time.monotonic() + SETTLE_LIMIT_S
    used = sum(server.cpu_seconds().values())
    while time.monotonic() < deadline:
        time.sleep(SETTLE_EVERY_S)
        before, used = used, sum(server.cpu_seconds().values())
        if used - before < SETTLED_SHARE * SETTLE_EVERY_S:
            return


def _grpc(
    peer: Peer, start: Start, server: Processes, case: Case, plan: Plan, extras: Extras
) -> Iterator[tuple[str, dict[str, Any]]]:
    base = {"peer": peer.name, "case": case.name}
    try:
        payloads = grpc_load.messages(case)
        if extras.grpc_connections:
            got, want = grpc_load.first_output(grpc_load.ask(start.grpc_port, payloads[0])), cases.expected(case)[0]
            if got.shape != want.shape or not np.allclose(got, want, atol=TOLERANCE):
                raise Unusable(f"{got[:4]} instead of {want[:4]}")
        yield from _grpc_loads(base, start, server, payloads, plan, extras)
        if extras.stock_s and peer.binary == "oip-binary":
            yield "stock", base | stock_client.compare(start.http_port, start.grpc_port, case, extras.stock_s)
    except (Unusable, grpc.RpcError, InferenceServerException) as error:
        said = error.details() if isinstance(error, grpc.Call) else str(error)
        yield "grpc", base | {"error": f"gRPC: {said}"}


def _grpc_loads(
    base: dict[str, Any], start: Start, server: Processes, payloads: Sequence[bytes], plan: Plan, extras: Extras
) -> Iterator[tuple[str, dict[str, Any]]]:
    for count in extras.grpc_connections:
        before = server.cpu_seconds()
        result = grpc_load.run(start.grpc_port, payloads, connections=count, seconds=plan.seconds, warmup=plan.warmup)
        used = _difference(before, server.cpu_seconds())
        yield "grpc", {**base, "connections": count, "result": result.as_json(), "cpu_s": used}


def wait_until_right(server: Processes, port: int, case: Case, wire: Wire, requests: Sequence[bytes]) -> None:
    """Wait until the server answers, then compare its answers with the bare session's. Raises `Unusable`."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            status, headers, body = ask(port, requests[0])
            if status == 200:
                break
            last = f"status {status}: {body[:300]!r}"
        except (OSError, http.client.HTTPException) as error:
            last = repr(error)
        if server.ended or time.monotonic() > deadline:
            raise NotStarted(f"did not start ({last}):\n{server.output()}")
        time.sleep(0.1)
    for index in range(CHECKED):
        status, headers, body = ask(port, requests[index])
        want = cases.expected(case)[index]
        try:
            got = cases.answer(case, wire, headers, body)
        except (ValueError, KeyError) as error:
            raise Unusable(f"status {status}, no answer in {body[:200]!r} ({error!r})") from None
        if got.shape != want.shape or not np.allclose(got, want, atol=TOLERANCE):
            raise Unusable(f"row {index}: {got[:4]} instead of {want[:4]}")


def ask(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send one prebuilt request; status, headers in lower case, body."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        headers = dict(line.split(": ", 1) for line in lines)
        connection.request(first.split(" ")[0], first.split(" ")[1], body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def _difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    used = {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}
    return {name: round(seconds, 3) for name, seconds in used.items() if seconds > 0.005}
