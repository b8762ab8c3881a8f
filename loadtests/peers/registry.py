"""The servers that are compared: how each is started, what it speaks, and which settings it got and why."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from loadtests.load import BUILD
from loadtests.peers import models
from loadtests.peers.cases import Case, Wire

SERVERS = Path(__file__).parent / "servers"
VENVS = BUILD / "venv"


@dataclass(frozen=True, slots=True)
class Start:
    """One start of one server: its model, its ports, and a folder for its files."""

    model: str
    http_port: int
    grpc_port: int
    folder: Path
    workers: int
    threads: int
    mixed: bool = False

    @property
    def model_folder(self) -> Path:
        return (models.FOLDER / self.model).resolve()


Launch = Callable[[Start], tuple[list[str], dict[str, str]]]


@dataclass(frozen=True, slots=True)
class Peer:
    """A server.

    Attributes:
        launch: command and environment variables for a start.
        json, binary: how it takes either kind of body; a server without a binary form gets JSON where a case asks for
            binary, except in the case that is about the body.
        shape: workers and threads of each by model.
        environment: folder below `VENVS`; None for Canarium's own.
        settings: one line for the table.
        apart: mixed lengths need a start of their own.
        text_shape: of a protocol tensor that holds one text.
    """

    name: str
    launch: Launch
    json: Wire
    binary: Wire | None
    shape: Mapping[str, tuple[int, int]]
    settings: str
    environment: str | None = None
    grpc: bool = False
    apart: bool = False
    text_shape: tuple[int, ...] = (1,)

    def wire(self, case: Case) -> Wire | None:
        """How this server gets the case's rows; None if the case is about a form that it lacks."""
        if case.body == "json":
            return self.json
        return self.binary or (None if case.model == "mlp" else self.json)

    def path(self, model: str) -> str:
        return f"/v2/models/{model}/infer" if self.json == "oip-json" else "/predict"


def python(environment: str | None) -> str:
    """The interpreter of an environment."""
    return sys.executable if environment is None else str(VENVS / environment / "bin" / "python")


def script(environment: str | None, name: str) -> Launch:
    """A server that is one script with the common command line."""

    def launch(start: Start) -> tuple[list[str], dict[str, str]]:
        command = [python(environment), str(SERVERS / name), str(start.model_folder)]
        command += ["--port", str(start.http_port), "--grpc-port", str(start.grpc_port)]
        command += ["--workers", str(start.workers), "--threads", str(start.threads)]
        return command, {"PEER_FOLDER": str(start.folder.resolve())}

    return launch


def _mlserver(start: Start) -> tuple[list[str], dict[str, str]]:
    """`mlserver start` on a folder with its two settings files."""
    start.folder.mkdir(parents=True, exist_ok=True)
    server = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": start.http_port,
        "grpc_port": start.grpc_port,
        "metrics_endpoint": None,
        "parallel_workers": start.workers if start.workers > 1 else 0,
        "logging_settings": {"version": 1, "root": {"level": "ERROR"}},
    }
    model: dict[str, Any] = {
        "name": start.model,
        "implementation": "mlserver_model.Peer",
        "parameters": {"extra": {"folder": str(start.model_folder), "threads": start.threads}},
    }
    if not start.mixed:
        model |= {"max_batch_size": 32, "max_batch_time": 0.001}
    (start.folder / "settings.json").write_text(json.dumps(server))
    (start.folder / "model-settings.json").write_text(json.dumps(model))
    command = [str(VENVS / "mlserver" / "bin" / "mlserver"), "start", str(start.folder)]
    return command, {"PYTHONPATH": str(SERVERS)}


def _bentoml(start: Start) -> tuple[list[str], dict[str, str]]:
    command = [python("bentoml"), "-m", "bentoml", "serve", "bentoml_service:Peer", "--working-dir", str(SERVERS)]
    return [*command, "--host", "127.0.0.1", "--port", str(start.http_port)], {
        "PEER_MODEL": str(start.model_folder),
        "PEER_WORKERS": str(start.workers),
        "PEER_THREADS": str(start.threads),
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(start.folder),
    }


def canarium_document(start: Start, placement: str, ports: tuple[int, int]) -> dict[str, Any]:
    """The configuration file of a one-model instance.

    A gateway keeps one core busy with its own work, so that a model which takes less than that wants two of them;
    colocated, a gateway holds one session.
    """
    gateways = 2 if placement == "colocated" or start.model == "mlp" else 1
    variant = {
        "artifact": models.artifact(start.model),
        "placement": placement,
        "replicas": 1 if placement == "colocated" else start.workers,
        "threads": start.threads,
    }
    return {
        "apiVersion": "canarium/v1",
        "server": {
            "gateways": gateways,
            "http_port": start.http_port,
            "grpc_port": start.grpc_port,
            "monitor_port": ports[0],
            "control_port": ports[1],
        },
        "state": {"dir": str(start.folder / "state")},
        "registry": {"dir": str(models.REGISTRY.resolve())},
        "models": {
            start.model: {
                "baseline": "baseline",
                "variants": {"baseline": variant},
                "routing": {"queue": {"max_rows": 1024, "default_timeout_ms": 10_000}},
            }
        },
    }


def canarium_command(start: Start, document: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """`canarium up` on a file of that content."""
    start.folder.mkdir(parents=True, exist_ok=True)
    file = start.folder / "canarium.yaml"
    file.write_text(yaml.safe_dump(document))
    return [str(Path(sys.executable).with_name("canarium")), "up", "-f", str(file)], {}


def _canarium(placement: Literal["isolated", "colocated"]) -> Launch:
    def launch(start: Start) -> tuple[list[str], dict[str, str]]:
        from serving.processes import free_ports

        first, second = free_ports(2)
        return canarium_command(start, canarium_document(start, placement, (first, second)))

    return launch


_ONE = {"mlp": (1, 1), "text": (2, 1), "minilm": (2, 1)}

PEERS: tuple[Peer, ...] = (
    Peer(
        "Canarium, isolated",
        _canarium("isolated"),
        "oip-json",
        "oip-binary",
        _ONE,
        "default placement; one gateway, two for the MLP",
        grpc=True,
    ),
    Peer(
        "Canarium, colocated",
        _canarium("colocated"),
        "oip-json",
        "oip-binary",
        {"mlp": (2, 1), "text": (2, 1), "minilm": (2, 1)},
        "a session in each of two gateways",
        grpc=True,
    ),
    Peer(
        "uvicorn, bare",
        script(None, "uvicorn_server.py"),
        "plain-json",
        "plain-bytes",
        _ONE,
        "uvloop, httptools, greedy batcher, one process",
    ),
    Peer(
        "mosec",
        script("mosec", "mosec_server.py"),
        "plain-json",
        "plain-bytes",
        _ONE,
        "max_batch_size 32, max_wait_time 1 ms",
        environment="mosec",
    ),
    Peer(
        "Triton",
        script("triton", "triton_server.py"),
        "oip-json",
        "oip-binary",
        _ONE,
        "2.51 with the Python backend, instances by model, dynamic batcher without delay",
        environment="triton",
        grpc=True,
        text_shape=(1, 1),
    ),
    Peer(
        "LitServe",
        script("litserve", "litserve_server.py"),
        "plain-json",
        None,
        _ONE,
        "max_batch_size 32, batch_timeout 1 ms, fast_queue, two API servers",
        environment="litserve",
    ),
    Peer(
        "MLServer",
        _mlserver,
        "oip-json",
        None,
        _ONE,
        "adaptive batching 32, 1 ms; parallel workers when more than one",
        environment="mlserver",
        grpc=True,
        apart=True,
    ),
    Peer(
        "BentoML",
        _bentoml,
        "plain-rows",
        None,
        _ONE,
        "batchable, max_batch_size 32, max_latency_ms 1000",
        environment="bentoml",
    ),
    Peer(
        "KServe",
        script("kserve", "kserve_server.py"),
        "oip-json",
        "oip-binary",
        {"mlp": (2, 1), "text": (2, 1), "minilm": (2, 1)},
        "uvicorn workers; its Python server does not batch",
        environment="kserve",
        grpc=True,
    ),
    Peer(
        "Ray Serve",
        script(None, "ray_server.py"),
        "plain-json",
        "plain-bytes",
        _ONE,
        "@serve.batch 32, 1 ms; max_ongoing_requests 1024",
    ),
)


def named(names: tuple[str, ...]) -> tuple[Peer, ...]:
    """Peers whose names begin so, in any case of letters; all for none."""
    return tuple(
        peer for peer in PEERS if not names or any(peer.name.lower().startswith(name.lower()) for name in names)
    )


def scratch(peer: Peer, model: str) -> Path:
    """A short folder for one start's files (sockets have short paths)."""
    return BUILD / "run" / f"{peer.name.split(',')[0].lower().replace(' ', '')}-{model}-{os.getpid()}"
