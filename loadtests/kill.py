"""How long after a kill does a client still get an answer of the killed candidate?

    python -m loadtests.kill [--kills 200] [--case idle --case saturated …]

Starts an instance with two small models (about 3 ms a request of 16 rows) on free ports and kills the candidate again
and again: under light load, with both queues full, and with parts of the instance killed or stopped (see `killing.py`).
Exit code 1 if the 99th percentile of a case is over its target.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import yaml
from onnx import TensorProto, helper, numpy_helper, save

from loadtests.killing import Kill, KillError, Load, Situation, Target, kill_once, settle
from loadtests.peers.processes import Processes
from loadtests.transport import Request
from serving.client import AdminClient, ClientError, InferenceClient
from serving.contract import GUARDS
from serving.processes import free_ports
from serving.registry.manifest import Signature, TensorSpec
from serving.registry.store import Registry

MODEL, BASELINE, CANDIDATE = "dense", "baseline", "candidate"
#: Values a row, width and layers of the model, rows a request.
INPUTS, WIDTH, LAYERS, ROWS = 8, 512, 80, 16
#: Deadline of every request, and how long answers are watched after a kill, so that none is missed.
DEADLINE_MS, WATCH_S = 300, 0.4
READY_S = 120.0


@dataclass(frozen=True, slots=True)
class Case:
    """A situation, the load it is under, and what its 99th percentile is held to."""

    situation: Situation
    rate: float  # requests a second
    percent: float  # the candidate's weight
    target_ms: float


LIGHT, HEAVY = (50.0, 100.0), (1000.0, 50.0)
CASES = {
    "idle": Case(Situation("idle"), *LIGHT, 100),
    "saturated": Case(Situation("queues full"), *HEAVY, 250),
    "control-killed": Case(
        Situation("control actor killed before each", "ControlActor", signal.SIGKILL, word=True, asks_first=True),
        *LIGHT,
        250,
    ),
    "control-stopped": Case(
        Situation("control actor stopped during each", "ControlActor", signal.SIGSTOP, word=True), *LIGHT, 250
    ),
    "controller-killed": Case(
        Situation("Serve controller killed before each", "ServeController", signal.SIGKILL), *LIGHT, 250
    ),
    "controller-stopped": Case(
        Situation("Serve controller stopped during each", "ServeController", signal.SIGSTOP), *LIGHT, 250
    ),
    "monitor-stopped": Case(
        Situation("monitor stopped during each", "monitoring.sidecar", signal.SIGSTOP), *LIGHT, 250
    ),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One case's kills, what clients got meanwhile (by `Load.counts`), and how long it took, seconds."""

    case: str
    kills: list[Kill]
    counts: dict[str, int]
    seconds: float

    def quantile(self, q: float) -> float:
        """Milliseconds from trip to last answer, nearest rank."""
        return nearest_rank([kill.last_ms for kill in self.kills], q)

    @property
    def holds(self) -> bool:
        return self.quantile(0.99) <= CASES[self.case].target_ms


def nearest_rank(values: Sequence[float], q: float) -> float:
    """The smallest value that at least a share `q` of all does not exceed."""
    return sorted(values)[max(1, math.ceil(q * len(values))) - 1]


def measure(target: Target, case: str, kills: int) -> Row:
    """Kill so often in that situation. Raises `KillError` or `ClientError`."""
    what = CASES[case]
    with target.admin() as client:
        client.traffic(MODEL, weights={CANDIDATE: what.percent}, reason="measured")
    began = time.monotonic()
    with Load(target.http_url, requests(), what.rate, CANDIDATE) as load:
        settle(target, load)
        time.sleep(1)
        done = [kill_once(target, load, what.situation, WATCH_S) for _ in range(kills)]
        return Row(case, done, load.counts(), time.monotonic() - began)


HEADER = (
    "| situation | load | kill by | kills | without an answer after the trip | trip → last answer, p50 ms | p99 | max "
    "| the call, p50 ms | p99 | answers/s | refused/s | 504 | other failures |\n"
    "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def line(row: Row) -> str:
    """One line of the table."""
    case, calls = CASES[row.case], [kill.call_ms for kill in row.kills]
    situation = case.situation
    way = "API, then word" if situation.asks_first else "control word" if situation.word else "admin API"
    cells = [
        situation.name,
        f"{case.rate:g}/s, {case.percent:g} % to the candidate",
        way,
        len(row.kills),
        sum(kill.last_ms == 0 for kill in row.kills),
        *(f"{row.quantile(q):.1f}" for q in (0.5, 0.99, 1.0)),
        *(f"{nearest_rank(calls, q):.1f}" for q in (0.5, 0.99)),
        *(f"{row.counts[name] / row.seconds:.0f}" for name in ("answered", "refused")),
        row.counts["late"],
        row.counts["failed"],
    ]
    return f"| {' | '.join(map(str, cells))} |"


def requests(count: int = 400) -> list[Request]:
    """Requests of `ROWS` rows by that many users."""
    random = np.random.default_rng(0)
    made = []
    for number in range(count):
        values = random.normal(size=ROWS * INPUTS).round(3).tolist()
        tensor = {"name": "x", "datatype": "FP32", "shape": [ROWS, INPUTS], "data": values}
        headers = (("Content-Type", "application/json"), ("x-user-id", f"user-{number}"))
        made.append(Request(f"/v2/models/{MODEL}/infer", json.dumps({"inputs": [tensor]}).encode(), headers))
    return made


def register(folder: Path) -> None:
    """Put the model into a registry at `folder`, as a baseline and as a candidate that is its equal."""
    random = np.random.default_rng(0)
    weights = {
        "w0": random.normal(0, 0.3, (INPUTS, WIDTH)),
        "w": random.normal(0, (2 / WIDTH) ** 0.5, (WIDTH, WIDTH)),
        "w1": random.normal(0, 0.1, (WIDTH, 2)),
    }
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["h0"])]
    for layer in range(LAYERS):
        nodes.append(helper.make_node("MatMul", [f"h{layer}", "w"], [f"m{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"m{layer}"], [f"h{layer + 1}"]))
    nodes.append(helper.make_node("MatMul", [f"h{LAYERS}", "w1"], ["y"]))
    graph = helper.make_graph(
        nodes,
        MODEL,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    signature = Signature((TensorSpec("x", "FP32", (-1, INPUTS)),), (TensorSpec("y", "FP32", (-1, 2)),))
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.onnx"
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
        for variant in (BASELINE, CANDIDATE):
            Registry(folder).register(
                MODEL,
                variant,
                {"model.onnx": file},
                format="onnx",
                entry="model.onnx",
                signature=signature,
                session=signature,
            )


def document(folder: Path, ports: Sequence[int]) -> dict[str, Any]:
    """The configuration: guards that only observe, however many requests a full queue refuses."""
    names = ("http_port", "grpc_port", "monitor_port", "control_port")
    return {
        "apiVersion": "canarium/v1",
        "server": dict(zip(names, ports, strict=True)),
        "state": {"dir": str(folder / "state")},
        "registry": {"dir": str(folder / "registry")},
        "models": {
            MODEL: {
                "baseline": BASELINE,
                "variants": {name: {"artifact": f"{MODEL}/{name}:1"} for name in (BASELINE, CANDIDATE)},
                "routing": {"reference_percent": 0, "queue": {"default_timeout_ms": DEADLINE_MS}},
                "guards": {"dry_run": list(GUARDS)},
            }
        },
    }


@contextlib.contextmanager
def instance(folder: Path) -> Iterator[Target]:
    """`canarium up`, ready and watched by its monitor. Raises `KillError` if it does not come up."""
    register(folder / "registry")
    ports = free_ports(4)
    file = folder / "canarium.yaml"
    file.write_text(yaml.safe_dump(document(folder, ports)))
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    command = (sys.executable, "-m", "serving.cli", "up", "-f", str(file))
    server = Processes(command, env={}, log=folder / "up.log")
    try:
        target = Target(urls[0], urls[3], folder / "state", MODEL, CANDIDATE)
        deadline = time.monotonic() + READY_S
        with InferenceClient(urls[0], timeout_s=2) as inference, AdminClient(urls[3], timeout_s=2) as admin:
            while not _ready(inference, admin):
                if server.ended or time.monotonic() > deadline:
                    raise KillError(f"the instance did not start:\n{server.output()}")
                time.sleep(0.3)
        yield target
    finally:
        server.stop()


def _ready(inference: InferenceClient, admin: AdminClient) -> bool:
    with contextlib.suppress(ClientError):
        return inference.ready() and bool(admin.status()["monitor"]["alive"])
    return False


@click.command()
@click.option("--kills", type=click.IntRange(min=1), default=200, show_default=True, help="Of each case.")
@click.option("--case", "names", multiple=True, type=click.Choice(list(CASES)), help="Only these.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write every kill here.")
def main(kills: int, names: tuple[str, ...], path: Path | None) -> None:
    """Measure and judge."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="canarium-kill-") as folder:
        try:
            with instance(Path(folder)) as target:
                click.echo(HEADER)
                for name in names or tuple(CASES):
                    rows.append(measure(target, name, kills))
                    click.echo(line(rows[-1]))
        except (KillError, ClientError) as error:
            raise click.ClickException(str(error)) from None
    if path is not None:
        path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    late = [row.case for row in rows if not row.holds]
    click.echo(f"\nover the target: {', '.join(late)}" if late else "\nevery p99 is within its target")
    sys.exit(bool(late))


if __name__ == "__main__":
    main()
