"""Starting, refusing to start, ending: one clear line and exit code, and no process left behind."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from serving import processes
from tests.integration.conftest import tiny_document
from tests.support.stack import ROOT, Stack, running, wait_for

pytestmark = pytest.mark.integration


def _up(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serving.cli", "up", "-f", str(config)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)


def test_a_crash_leaves_nothing_that_down_cannot_end_the_store_wins_over_the_file_and_ctrl_c_leaves_no_process(
    tmp_path: Path,
) -> None:
    with running(tiny_document(tmp_path / "registry", {"good": ""}), tmp_path) as stack:
        stack.traffic("tiny", weights={"good": 30})
        assert stack.process is not None
        os.kill(stack.process.pid, signal.SIGKILL)
        stack.process.wait(60)
        assert processes.members(stack.paths.instance)
        ended = stack.canarium("down", "--state-dir", str(stack.paths.state_dir))
        assert "ended" in ended.stdout
        assert processes.members(stack.paths.instance) == []

        stack.log.write_text("")
        stack.start()
        assert "ready after" in stack.output()
        assert "note:" in stack.output()  # `up` says where file and store differ
        shares = {variant["name"]: variant["weight"] for variant in stack.model("tiny")["variants"]}
        assert shares == {"teacher": 70, "good": 30}
        assert stack.infer("tiny", "spam").status_code == 200

        second = _up(stack.config_file)
        assert (second.returncode, f"in use by process {stack.process.pid}" in second.stderr) == (1, True)

        assert stack.stop() == 0
        assert wait_for(lambda: not processes.members(stack.paths.instance))
        assert not stack.paths.up_file.exists()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", stack.http_port), timeout=2)


def test_drained_gateways_finish_and_take_nothing_more(tmp_path: Path) -> None:
    with running(tiny_document(tmp_path / "registry", {}), tmp_path) as stack:
        kept = http.client.HTTPConnection("127.0.0.1", stack.http_port, timeout=30)
        kept.request("GET", "/v2/health/ready")
        answer = kept.getresponse()
        assert (answer.status, answer.read()) == (200, b"")
        with ThreadPoolExecutor(1) as threads:
            drain = threads.submit(stack.canarium, "drain", "-f", str(stack.config_file))
            assert wait_for(lambda: stack.http.get("/v2/health/ready").status_code == 503)
            kept.request("GET", "/v2/health/ready")  # on the same connection, which ends behind the answer
            answer = kept.getresponse()
            assert (answer.status, answer.getheader("connection")) == (503, "close")
            answer.read()
            assert stack.infer("tiny", "spam").status_code == 200
            assert drain.result().stdout == "drained\n"
        assert stack.canarium("drain", "-f", str(stack.config_file)).stdout == "no gateway takes requests here\n"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An instance that soon misses its monitor, and is patient with a worker that stands still."""
    folder = tmp_path_factory.mktemp("watched")
    document = tiny_document(folder / "registry", {"good": ""}, teacher={"hang_timeout_s": 120})
    document["models"]["tiny"]["guards"] = {"monitor_loss_s": 8}
    # SIGHUP as a terminal's programs have it, also where the tests themselves run under `nohup`.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with running(document, folder) as stack:
            yield stack
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_dead_mans_switch_puts_a_canary_on_the_baseline(watched: Stack) -> None:
    stack = watched

    def answering() -> str | None:
        return stack.infer("tiny", "ham").headers.get("x-canarium-variant")

    epoch = stack.traffic("tiny", weights={"good": 100})["epoch"]
    wait_for(lambda: stack.infer("tiny", "ham").headers.get("x-canarium-epoch") == str(epoch))
    wait_for(lambda: answering() == "good")
    monitor = stack.pid("monitoring.sidecar")
    os.kill(monitor, signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        first = answering()
        assert first == "good" or time.monotonic() - stopped > 3
        wait_for(lambda: answering() == "teacher")
        assert time.monotonic() - stopped > 3
    finally:
        os.kill(monitor, signal.SIGCONT)
    wait_for(lambda: answering() == "good")


def test_a_closed_terminal_ends_everything_after_the_open_requests(watched: Stack) -> None:
    """The last with this instance."""
    stack = watched
    worker = stack.pid(":teacher")

    def takes_requests() -> bool:
        try:
            return httpx.get(f"{stack.http.base_url}/v2/health/live", timeout=0.2, trust_env=False).is_success
        except httpx.TransportError:
            return False

    os.kill(worker, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as pool:
            chosen = {"x_canarium_variant": "teacher", "x_canarium_timeout_ms": "60000"}
            open_request = pool.submit(lambda: stack.infer("tiny", "spam", **chosen))
            time.sleep(3)  # until it is at the worker
            assert stack.process is not None
            stack.process.send_signal(signal.SIGHUP)
            began = time.monotonic()
            # A gateway that ends waits for four seconds: the worker is to go on as soon as the wait has begun.
            wait_for(lambda: not takes_requests(), every_s=0.02)
            assert not open_request.done()
            os.kill(worker, signal.SIGCONT)
            assert open_request.result(60).status_code == 200
            assert stack.process.wait(120) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCONT)
    assert time.monotonic() - began < 60
    assert processes.members(stack.paths.instance) == []


def test_a_taken_port_is_refused_in_one_line(tmp_path: Path) -> None:
    stack = Stack(tiny_document(tmp_path / "registry", {}), tmp_path)
    with socket.create_server(("127.0.0.1", stack.grpc_port)):
        done = _up(stack.config_file)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [done.stderr.strip()]
    assert f"server.grpc_port: port {stack.grpc_port}" in done.stderr


def test_a_missing_registry_is_refused_in_one_line(tmp_path: Path) -> None:
    document = tiny_document(tmp_path / "registry", {})
    document["registry"]["dir"] = str(tmp_path / "nowhere")
    done = _up(Stack(document, tmp_path).config_file)
    assert (done.returncode, "canarium build" in done.stderr) == (1, True)


def test_a_damaged_artifact_is_refused_with_the_file(tmp_path: Path) -> None:
    stack = Stack(tiny_document(tmp_path / "registry", {}), tmp_path)
    (blob, *_) = [path for path in (tmp_path / "registry").rglob("model.onnx") if path.is_file()]
    target = blob.resolve()
    target.chmod(0o644)
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 0xFF
    target.write_bytes(data)
    done = _up(stack.config_file)
    assert done.returncode == 1
    assert "model.onnx" in done.stderr
    assert "sha256" in done.stderr.lower() or "digest" in done.stderr.lower()


def test_a_wrong_configuration_is_refused_with_its_path(tmp_path: Path) -> None:
    document = tiny_document(tmp_path / "registry", {"good": ""})
    document["models"]["tiny"]["routing"]["weights"] = {"good": 105}
    done = _up(Stack(document, tmp_path).config_file)
    assert done.returncode == 1
    assert "models.tiny.routing.weights.good: 105 is over 100" in done.stderr


class NewConnections:
    """`clients` threads that ask again and again, each time on a new connection. Use it as a context manager."""

    def __init__(self, port: int, clients: int) -> None:
        self._port, self._clients = port, clients
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(clients)
        #: When each request began (monotonic seconds), and its status or what went wrong.
        self.outcomes: list[tuple[float, str]] = []

    def __enter__(self) -> NewConnections:
        self._working = [self._pool.submit(self._work) for _ in range(self._clients)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for each in self._working:
            each.result(150)
        self._pool.shutdown()

    def since(self, moment: float) -> list[str]:
        return [outcome for began, outcome in list(self.outcomes) if began >= moment]

    def _work(self) -> None:
        body = '{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["ham"]}]}'
        while not self._stopped.is_set():
            began = time.monotonic()
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
            try:
                connection.request("POST", "/v2/models/tiny/infer", body)
                outcome = str(connection.getresponse().status)
            except (OSError, http.client.HTTPException) as error:
                outcome = type(error).__name__
            finally:
                connection.close()
            self.outcomes.append((began, outcome))
            time.sleep(0.02)


@pytest.fixture(scope="module")
def crippled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An instance with a candidate that cannot start."""
    folder = tmp_path_factory.mktemp("crippled")
    document = tiny_document(folder / "registry", {"good": "", "broken": ""}, broken={"runtime": "torch"})
    with running(document, folder) as stack:
        yield stack


def test_a_candidate_that_cannot_start_costs_the_baseline_nothing(crippled: Stack) -> None:
    stack = crippled
    (broken,) = [one["version"] for one in stack.model("tiny")["variants"] if one["name"] == "broken"]
    note = f"note: tiny version {broken} did not start"
    (line,) = wait_for(lambda: [line for line in stack.output().splitlines() if line.startswith(note)], 180)
    assert "onnx" in line  # why
    assert "logs" in line  # and where to read on
    assert stack.infer("tiny", "spam").headers["x-canarium-variant"] == "teacher"
    epoch = stack.traffic("tiny", weights={"broken": 100})["epoch"]
    wait_for(lambda: stack.infer("tiny", "ham").headers.get("x-canarium-epoch") == str(epoch))
    answer = stack.infer("tiny", "spam")
    assert (answer.status_code, answer.headers["x-canarium-variant"]) == (200, "teacher")
    stack.traffic("tiny", weights={"broken": 0})


def test_a_killed_gateway_costs_what_it_held_and_a_dead_raylet_ends_the_instance_with_the_reason(
    crippled: Stack,
) -> None:
    """The last with this instance."""
    stack = crippled
    gateway = stack.pid("ServeReplica:canarium:Gateway")
    with NewConnections(stack.http_port, 8) as clients:
        wait_for(lambda: len(clients.outcomes) > 50)
        os.kill(gateway, signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{gateway}").exists() or gateway not in stack.pids("ServeReplica"))
        dead = time.monotonic()
        wait_for(lambda: set(stack.pids("ServeReplica:canarium:Gateway")) - {gateway}, 120)
        wait_for(lambda: len(clients.since(dead)) > 100, 120)
    assert "ConnectionRefusedError" not in clients.since(0)
    assert set(clients.since(dead)) == {"200"}  # its successor answers those that came meanwhile
    assert len([outcome for outcome in clients.since(0) if outcome != "200"]) <= 8  # what it was answering
    os.kill(stack.pid("raylet/raylet"), signal.SIGKILL)
    assert stack.process is not None
    assert stack.process.wait(180) == 1
    assert "Ray" in stack.output().splitlines()[-1]
    assert wait_for(lambda: not processes.members(stack.paths.instance))
