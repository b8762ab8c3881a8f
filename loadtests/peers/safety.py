"""What it costs Canarium to be watched: the same load with and without a canary, its reference and the monitor.

The canary is a second registration of the baseline's file, so that the computation is equal and what is left is the
work of routing, recording, scoring again and watching. The reference's own computation is part of the row and known:
its share of the canary's requests is computed twice.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loadtests import load
from loadtests.peers import cases
from loadtests.peers.cases import Case
from loadtests.peers.processes import Processes
from loadtests.peers.registry import Peer, canarium_command, canarium_document
from loadtests.peers.visit import Plan, new_start, running, settle, wait_until_right
from serving.client import AdminClient
from serving.processes import free_ports

CONNECTIONS = 32
CANARY_PERCENT, REFERENCE_PERCENT = 10, 5
ROWS = (
    ("no canary, monitor stopped", 0, False),
    ("no canary, monitor on", 0, True),
    (f"{CANARY_PERCENT} % canary, {REFERENCE_PERCENT} % reference, monitor on", CANARY_PERCENT, True),
)


def measure(peer: Peer, case: Case, plan: Plan, rounds: int) -> Iterator[dict[str, Any]]:
    """One record a row and round, all of one instance with both variants loaded; the rows take turns."""
    start = new_start(peer, case.model)
    monitor_port, control_port = free_ports(2)
    placement = "colocated" if "colocated" in peer.name else "isolated"
    document = canarium_document(start, placement, (monitor_port, control_port))
    model = document["models"][case.model]
    model["variants"]["candidate"] = model["variants"]["baseline"] | {"artifact": f"{case.model}/candidate"}
    requests = cases.requests(case, "oip-binary", peer.path(case.model))
    with running(peer, start, canarium_command(start, document)) as server:
        wait_until_right(server, start.http_port, case, "oip-binary", requests)
        settle(server)
        for number in range(1, rounds + 1):
            for name, canary, watched in ROWS:
                _set_traffic(control_port, case.model, canary)
                with contextlib.nullcontext() if watched else _paused(server, "monitoring.sidecar"):
                    before = server.cpu_seconds()
                    result = load.run(
                        start.http_port,
                        requests,
                        connections=CONNECTIONS,
                        seconds=plan.seconds,
                        warmup=plan.warmup,
                        **cases.good(case, "oip-binary"),
                    )
                    after = server.cpu_seconds()
                scale = plan.seconds / (plan.seconds + plan.warmup)
                used = {process: after[process] - before.get(process, 0.0) for process in after}
                yield {
                    **{"round": number, "peer": peer.name, "case": case.name, "row": name},
                    "result": result.as_json(),
                    "cpu_s": {process: round(seconds * scale, 4) for process, seconds in used.items()},
                }


def _set_traffic(port: int, model: str, canary: float) -> None:
    with AdminClient(f"http://127.0.0.1:{port}") as client:
        client.traffic(
            model,
            weights={"candidate": canary},
            reference_percent=REFERENCE_PERCENT,
            override_pause=True,
            reason="cost of safety",
        )


@contextlib.contextmanager
def _paused(server: Processes, word: str) -> Iterator[None]:
    """Stop the monitor's process for a while, which is what a hung one looks like to the gateways."""
    pids = [pid for pid in server.pids() if word in Path(f"/proc/{pid}/cmdline").read_text(errors="replace")]
    if not pids:
        raise load.LoadError(f"no process with {word!r} in its command line")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
