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
from dataclasses import replace
from pathlib import Path
from typing import Any

from loadtests import load
from loadtests.peers import cases
from loadtests.peers.cases import Case
from loadtests.peers.processes import Processes
from loadtests.peers.registry import Peer, canarium_command, canarium_document
from loadtests.peers.visit import Plan, new_start, running, settle, wait_until_right
from serving.processes import free_ports

CANARY_PERCENT, REFERENCE_PERCENT = 10, 5
ROWS = (
    ("no canary, monitor stopped", False, False),
    ("no canary, monitor on", False, True),
    (f"{CANARY_PERCENT} % canary, {REFERENCE_PERCENT} % reference, monitor on", True, True),
)


def measure(peer: Peer, case: Case, plan: Plan, connections: int) -> Iterator[dict[str, Any]]:
    """One record a row, each of a fresh instance with both variants loaded."""
    for name, canary, watched in ROWS:
        start = replace(new_start(peer, case.model), workers=1)
        placement = "colocated" if "colocated" in peer.name else "isolated"
        first, second = free_ports(2)
        document = canarium_document(start, placement, (first, second))
        model = document["models"][case.model]
        model["variants"]["candidate"] = model["variants"]["baseline"] | {"artifact": f"{case.model}/candidate"}
        if canary:
            model["routing"] |= {"weights": {"candidate": CANARY_PERCENT}}
        model["routing"]["reference_percent"] = REFERENCE_PERCENT
        requests = cases.requests(case, "oip-binary", peer.path(case.model))
        with running(peer, start, canarium_command(start, document)) as server:
            wait_until_right(server, start.http_port, case, "oip-binary", requests)
            settle(server)
            with contextlib.nullcontext() if watched else _paused(server, "monitoring.sidecar"):
                before = server.cpu_seconds()
                result = load.run(
                    start.http_port,
                    requests,
                    connections=connections,
                    seconds=plan.seconds,
                    warmup=plan.warmup,
                    **cases.good(case, "oip-binary"),
                )
                after = server.cpu_seconds()
        scale = plan.seconds / (plan.seconds + plan.warmup)
        yield {
            "peer": peer.name,
            "case": case.name,
            "row": name,
            "result": result.as_json(),
            "cpu_s": {title: round((used - before.get(title, 0.0)) * scale, 4) for title, used in after.items()},
        }


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
