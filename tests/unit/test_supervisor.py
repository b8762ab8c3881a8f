"""`canarium up` while it waits and watches: what candidate, monitor, disk and terminal cannot do to it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from serving import processes, serve_env, supervisor
from serving.config import ServerConfig, parse_config
from serving.control.actor import ControlSettings
from serving.errors import StartError
from serving.paths import Paths

BASELINE, CANDIDATE = ("m", 1), ("m", 2)


class Clock:
    """Stands in for `time`: sleeping advances it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Process:
    """A child that ended at once, or still runs."""

    def __init__(self, code: int | None = None) -> None:
        self.returncode = code

    def poll(self) -> int | None:
        return self.returncode


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(supervisor, "time", clock)
    return clock


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def instance(tmp_path: Path, said: io.StringIO) -> Any:
    variants = {name: {"artifact": f"m/{name}:1"} for name in ("base", "next")}
    models = {"m": {"baseline": "base", "variants": variants}}
    document = {"apiVersion": "canarium/v1", "models": models, "state": {"dir": str(tmp_path / "state")}}
    made = supervisor._Instance(parse_config(document), tmp_path / "canarium.yaml", Console(file=said, width=400))
    made._paths.log_dir.mkdir(parents=True)
    made._baselines = {BASELINE}
    made._cluster = Process()  # type: ignore[assignment]
    made._monitor = Process()  # type: ignore[assignment]
    return made


def cluster_says(instance: Any, text: str) -> None:
    with instance._log("cluster").open("a") as log:
        log.write(text)


# ---------------------------------------------------------------- candidates


def test_a_candidate_without_a_worker_is_named_after_a_while_and_that_is_all(
    instance: Any, clock: Clock, said: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "_unserved", lambda: {CANDIDATE})
    began = clock.now
    instance._wait_variants()
    assert supervisor.VARIANTS_GRACE_S <= clock.now - began < supervisor.VARIANTS_GRACE_S + 1
    (line,) = said.getvalue().splitlines()
    assert line.startswith("note: m version 2 has no worker yet; its traffic is answered by the baseline")
    assert str(instance._paths.log_dir) in line


def test_a_candidate_that_is_known_not_to_start_is_not_waited_for(
    instance: Any, clock: Clock, said: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_says(instance, f"{serve_env.did_not_start(*CANDIDATE)}: ValueError: no\n")
    monkeypatch.setattr(instance, "_unserved", lambda: {CANDIDATE})
    began = clock.now
    instance._wait_variants()
    assert clock.now == began
    assert said.getvalue() == "note: m version 2 did not start: ValueError: no\n"


def test_only_a_baseline_that_does_not_start_ends_the_start(
    instance: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def not_ready(_: object) -> int | None:
        asked.append(clock.now)
        return 503 if clock.now < 1120 else 200

    monkeypatch.setattr(instance, "_ask", not_ready)
    cluster_says(instance, f"{serve_env.did_not_start(*CANDIDATE)}: ValueError: no\n")
    instance._wait_ready()
    assert clock.now >= 1120  # a slow baseline is waited for, whatever the candidate does
    clock.now = 1000
    cluster_says(instance, f"{serve_env.did_not_start(*BASELINE)}: ValueError: damaged\n")
    with pytest.raises(StartError, match="m version 1 did not start: ValueError: damaged"):
        instance._wait_ready()
    assert clock.now < 1000 + supervisor.FAILED_GRACE_S + 1


def test_a_gateway_that_never_answers_is_an_error_and_not_ready(
    instance: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "_ask", lambda _: None)
    with pytest.raises(StartError, match="not ready after 240 s: the gateway does not answer"):
        instance._wait_ready()


def test_notes_are_said_once_and_whole(instance: Any, said: io.StringIO) -> None:
    cluster_says(instance, "old line\nnote: fi")
    instance._repeat_notes()
    assert said.getvalue() == ""
    cluster_says(instance, "rst\nsomething else\nnote: second\n")
    for _ in range(3):
        instance._repeat_notes()
    assert said.getvalue().splitlines() == ["note: first", "note: second"]


# ---------------------------------------------------------------- the monitor


def test_a_monitor_that_cannot_be_restarted_does_not_end_serving(
    instance: Any, clock: Clock, said: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float] = []

    def full(*_: object) -> None:
        tried.append(clock.now)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(instance, "_spawn", full)
    instance._monitor = Process(1)
    began = clock.now
    while clock.now < began + 120:
        instance._watch()
        clock.sleep(0.2)
    waits = [round(later - earlier) for earlier, later in pairwise(tried)]
    assert waits[:4] == [2, 4, 8, 16]  # and then 30
    assert len(tried) < 10
    lines = said.getvalue().splitlines()
    assert len(lines) <= 2  # once a minute at most
    assert "No space left on device" in lines[-1]


def test_a_monitor_that_ended_is_started_again_with_the_same_settings(
    instance: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[object, ...]] = []
    monkeypatch.setattr(instance, "_spawn", lambda *given: started.append(given) or Process())
    instance._monitor = Process(-9)
    instance._watch()
    assert not started
    clock.sleep(1.1)
    instance._watch()
    instance._watch()
    assert started == [("monitor", "monitoring.sidecar", instance._paths.run_dir / "monitor.json")]


# ---------------------------------------------------------------- what a crash left behind

#: A cluster process: told to end, it still has something to do, and does that once its input is closed.
LEAVES = """
import pathlib, signal, sys

def leave(*_):
    sys.stdin.read()
    pathlib.Path(sys.argv[1]).touch()
    sys.exit()

signal.signal(signal.SIGTERM, leave)
print("up", flush=True)
while True:
    signal.pause()
"""


class Gate(Clock):
    """A clock by which a child has done what it has to do `after_s` seconds from now, and not before."""

    def __init__(self, child: subprocess.Popen[str], after_s: float) -> None:
        super().__init__()
        self._child, self._opens = child, self.now + after_s

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if self.now >= self._opens:
            self._child.communicate()


@pytest.mark.parametrize(("address", "left"), [("127.0.0.1:1", True), ("", False)])
def test_down_gives_who_joined_a_cluster_the_time_to_leave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, left: bool
) -> None:
    mark = {serve_env.INSTANCE_VARIABLE: Paths.of(tmp_path / "state").instance, "RAY_ADDRESS": address}
    with subprocess.Popen(
        [sys.executable, "-c", LEAVES, str(tmp_path / "left")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **mark},
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "up\n"
            monkeypatch.setattr(processes, "time", Gate(child, 30.0))
            assert supervisor.down(tmp_path / "state") == 1
            child.wait()
        finally:
            child.kill()
    assert (tmp_path / "left").exists() is left


# ---------------------------------------------------------------- the terminal


class Dead(io.StringIO):
    """A terminal that has been closed."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def test_a_closed_terminal_does_not_stop_the_words_from_being_said_to_nobody(
    instance: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance._console = Console(file=Dead())
    instance._paths.run_dir.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(supervisor, "sys", SimpleNamespace(stdout=Dead()))
    monkeypatch.setattr("builtins.print", lambda *_, **__: Dead().write(""))
    for _ in range(2):
        instance._say("stopping …")
        instance._announce()
    assert instance._paths.up_file.exists()


# ---------------------------------------------------------------- addresses and limits


@pytest.mark.parametrize(
    ("host", "http", "grpc"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000", "127.0.0.1:8001"),
        ("0.0.0.0", "http://127.0.0.1:8000", "127.0.0.1:8001"),
        ("::1", "http://[::1]:8000", "[::1]:8001"),
        ("::", "http://[::1]:8000", "[::1]:8001"),
        ("fd00::7", "http://[fd00::7]:8000", "[fd00::7]:8001"),
    ],
)
def test_urls_can_be_used_whatever_the_host(host: str, http: str, grpc: str) -> None:
    urls = ServerConfig(host=host).urls()
    assert (urls["http"], urls["grpc"]) == (http, grpc)


def test_a_host_that_makes_no_url_is_named(instance: Any) -> None:
    server = instance._config.server.model_copy(update={"host": "a b\0"})
    instance._config = instance._config.model_copy(update={"server": server})
    with pytest.raises(StartError, match=r"server\.host"):
        instance._ask(lambda client, base: client.get(base))


HANDLE = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"


def test_a_batch_over_a_handle_may_be_twice_the_largest_body_as_far_as_grpc_can_count() -> None:
    given = serve_env.local_environment("i", "t", max_body_mib=8)
    assert int(given[HANDLE]) == 256 << 20
    assert int(serve_env.local_environment("i", "t", max_body_mib=512)[HANDLE]) == 1024 << 20
    assert serve_env.handle_limit(2047) < 1 << 31
    assert (given["RAY_AUTH_MODE"], given["RAY_AUTH_TOKEN"]) == ("token", "t")


def test_a_node_may_have_a_higher_limit_and_no_lower_one() -> None:
    assert serve_env.missing(serve_env.REQUIRED) == []
    assert serve_env.missing({**serve_env.REQUIRED, HANDLE: str(1 << 30)}, max_body_mib=512) == []
    assert serve_env.missing(serve_env.REQUIRED, max_body_mib=129) == [f"{HANDLE}={258 << 20}"]
    assert serve_env.missing({**serve_env.REQUIRED, HANDLE: "much"}) == [f"{HANDLE}={256 << 20}"]
    for name in serve_env.REQUIRED:
        (lacking,) = serve_env.missing({key: value for key, value in serve_env.REQUIRED.items() if key != name})
        assert lacking == f"{name}={serve_env.REQUIRED[name]}"


def test_other_settings_have_another_digest() -> None:
    settings = {"variants": {}, "state_dir": "s", "word_path": "w", "host": "h", "port": 1, "monitor_url": "u"}
    digests = {ControlSettings(instance="i", config=config, **settings).digest() for config in ("a", "b", "a")}  # type: ignore[arg-type]
    assert len(digests) == 2
