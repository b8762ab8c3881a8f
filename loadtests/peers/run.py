"""The whole run: environments and models made, then rounds over all servers, one at a time."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loadtests import load
from loadtests.peers import environments, models, safety
from loadtests.peers.cases import Case
from loadtests.peers.ceiling import ceiling
from loadtests.peers.registry import Peer
from loadtests.peers.visit import Extras, Plan, visit
from serving.build.cpu import cpu_info

Say = Callable[[str], None]
QUICKSTART = Path(".canarium/registry")


@dataclass(frozen=True, slots=True)
class Effort:
    """How long and how often; seconds are those of one measurement."""

    plan: Plan
    rounds: int
    ceiling_s: float
    safety_rounds: int
    safety_s: float
    extras: Extras
    #: The servers whose cost of safety is measured.
    safety_of: tuple[str, ...] = ("Canarium, isolated", "Canarium, colocated")


FULL = Effort(
    Plan((1, 8, 32, 128), 1.2, 0.4, (0.5, 0.8)), 3, 0.5, 8, 4.0, Extras(grpc_connections=(1, 8, 32), stock_s=3.0)
)
QUICK = Effort(
    *(Plan((1, 32), 1.0, 0.3, ()), 1, 0.25, 3, 3.0, Extras(grpc_connections=(1, 32), stock_s=1.5)),
    safety_of=("Canarium, isolated",),
)


def prepare(peers: Sequence[Peer], wanted: Sequence[Case], say: Say) -> dict[str, str]:
    """Environments, the load generator, the quickstart's models and the others. Returns what failed by environment."""
    load.compiled()
    with ThreadPoolExecutor(1) as pool:
        names = [peer.environment for peer in peers if peer.environment]
        faults = pool.submit(environments.build, names, say)
        if any(case.model == "text" for case in wanted):
            say("making the quickstart's models, if they are not there")
            subprocess.run(["make", "--silent", "quickstart"], check=True)
        models.build(QUICKSTART, only=tuple(dict.fromkeys(case.model for case in wanted)))
        return faults.result()


def measure(
    peers: Sequence[Peer], wanted: Sequence[Case], effort: Effort, *, command: str, safe: bool, say: Say, keep: Path
) -> dict[str, Any]:
    """Measure everything and return the document of which `table.render` makes tables; kept in `keep` as it grows."""
    faults = prepare(peers, wanted, say)
    document: dict[str, Any] = {
        "about": _about(command, effort),
        "peers": [{"name": peer.name, "settings": peer.settings} for peer in peers],
        "ceilings": {case.name: [] for case in wanted},
        **{"records": [], "grpc": [], "stock": [], "safety": []},
    }
    for peer in peers:
        if peer.environment in faults:
            error = f"does not install: {faults[peer.environment]}"
            document["records"] += [{"peer": peer.name, "case": case.name, "error": error} for case in wanted]
    able = [peer for peer in peers if peer.environment not in faults]
    for number in range(1, effort.rounds + 1):
        for case in wanted:
            say(f"round {number} of {effort.rounds}: bare session, {case.name}")
            document["ceilings"][case.name] += ceiling(case, effort.ceiling_s)
        for peer in able:
            for model in dict.fromkeys(case.model for case in wanted):
                began = time.monotonic()
                own = [case for case in wanted if case.model == model]
                for kind, record in visit(peer, model, own, effort.plan, extras=effort.extras):
                    document[kind].append({"round": number, **record})
                _keep(document, keep)
                say(f"round {number} of {effort.rounds}: {peer.name}, {model}: {time.monotonic() - began:.0f} s")
    if safe:
        _measure_safety(document, able, wanted, effort, say)
        _keep(document, keep)
    return document


def _measure_safety(
    document: dict[str, Any], peers: Sequence[Peer], wanted: Sequence[Case], effort: Effort, say: Say
) -> None:
    case = next((case for case in wanted if case.model == "minilm"), None)
    if case is None:
        return
    plan = Plan((), effort.safety_s, 1.0, ())
    for peer in peers:
        if peer.name in effort.safety_of:
            say(f"cost of safety: {peer.name}")
            document["safety"] += safety.measure(peer, case, plan, effort.safety_rounds)


def _about(command: str, effort: Effort) -> dict[str, Any]:
    cpu = cpu_info()
    flags = cpu["flags"]
    assert isinstance(flags, list)
    cores = len(os.sched_getaffinity(0))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    names = ("onnxruntime", "ray", "tokenizers", "numpy", "uvicorn", "uvloop")
    pins = [
        line
        for name in ("mosec", "nvidia-pytriton", "litserve", "mlserver", "bentoml", "kserve")
        for file in environments.REQUIREMENTS.glob("*.txt")
        for line in file.read_text().splitlines()
        if line.startswith(f"{name}==")
    ]
    return {
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"Machine: {cores} cores of {cpu['model']} ({', '.join(flags)}), {memory_gib:.0f} GiB, "
        f"Linux {platform.release()}, Python {platform.python_version()}; client included.",
        "versions": ", ".join(
            [*(f"{name} {version(name)}" for name in names), *(pin.replace("==", " ") for pin in pins)]
        ),
        "effort": asdict(effort),
    }


def _keep(document: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
