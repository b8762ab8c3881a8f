"""Joining a running Ray cluster by RAY_ADDRESS: refused without the Serve settings, served with them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import httpx
import pytest

from serving import processes
from serving.config import parse_config
from serving.serve_env import REQUIRED
from tests.integration.conftest import tiny_document
from tests.support.stack import ROOT, Stack, wait_for

pytestmark = pytest.mark.integration


@contextmanager
def cluster(settings: Mapping[str, str]) -> Iterator[str]:
    """A Ray head node in a session of its own; gives its address."""
    (gcs,) = processes.free_ports(1)
    environment = {
        **os.environ,
        **settings,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",  # a token of the user's in ~/.ray would be asked of those who join
        "CANARIUM_INSTANCE": f"cluster-{gcs}",
    }
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
    ray += [f"--port={gcs}", "--num-cpus=2", "--include-dashboard=false", "--object-store-memory=100000000"]
    head = subprocess.Popen(
        ray, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: any("raylet" in title for title in _titles(f"cluster-{gcs}")), 180)
        wait_for(lambda: _answers(f"127.0.0.1:{gcs}"), 180)
        yield f"127.0.0.1:{gcs}"
    finally:
        processes.end([head.pid, *processes.members(f"cluster-{gcs}")], 3)
        head.wait(10)


@pytest.fixture(scope="module")
def prepared() -> Iterator[str]:
    """A cluster with the settings; its address."""
    with cluster(REQUIRED) as address:
        yield address


def _answers(address: str) -> bool:
    """Whether one can join."""
    code = "import ray; ray.init(log_to_driver=False)"
    environment = {**os.environ, "RAY_ADDRESS": address}
    return not subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, timeout=180
    ).returncode


def _titles(mark: str) -> list[str]:
    found = []
    for pid in processes.members(mark):
        try:
            found.append(Path(f"/proc/{pid}/cmdline").read_text(errors="replace"))
        except OSError:
            continue
    return found


def _actors(address: str) -> str:
    """The names of the cluster's living actors."""
    code = "import ray, sys; ray.init(log_to_driver=False); print(ray.util.list_named_actors(all_namespaces=True))"
    environment = {**os.environ, "RAY_ADDRESS": address}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=180, check=True
    ).stdout


def _up(stack: Stack, address: str) -> subprocess.Popen[bytes]:
    with stack.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "serving.cli", "up", "-f", str(stack.config_file)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "RAY_ADDRESS": address},
        )


@contextmanager
def _joined(stack: Stack, address: str) -> Iterator[subprocess.Popen[bytes]]:
    """An instance that is ready on a cluster; whatever is left of it at the end is ended."""
    process = _up(stack, address)
    try:
        wait_for(lambda: "Ctrl-C" in stack.output() or process.poll() is not None, 400)
        assert process.poll() is None, stack.output()
        yield process
    finally:
        processes.end([process.pid, *processes.members(stack.paths.instance)], 2)


def test_a_cluster_without_the_settings_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    stack = Stack(tiny_document(tmp_path / "registry", {}), tmp_path)
    with cluster({}) as address:
        assert _up(stack, address).wait(300) == 1
    assert "lacks RAY_SERVE_THROUGHPUT_OPTIMIZED=1" in stack.output()
    assert processes.members(stack.paths.instance) == []


def test_a_prepared_cluster_is_joined_and_outlives_the_instance(tmp_path: Path, prepared: str) -> None:
    stack = Stack(tiny_document(tmp_path / "registry", {"good": ""}), tmp_path)
    with _joined(stack, prepared) as process:
        stack.traffic("tiny", weights={"good": 100})
        wait_for(lambda: stack.infer("tiny", "spam").headers.get("x-canarium-variant") == "good")
        process.send_signal(signal.SIGINT)
        assert process.wait(150) == 0
        assert "canarium-control" not in _actors(prepared)
    assert any("raylet" in title for title in _titles(f"cluster-{prepared.rpartition(':')[2]}"))


def _kill(process: subprocess.Popen[bytes], *others: int) -> None:
    for pid in (process.pid, *others):
        os.kill(pid, signal.SIGKILL)
    process.wait(10)


def _unanswered(stack: Stack) -> None:
    with suppress(httpx.HTTPError):
        stack.infer("tiny", "boom")


def test_down_lets_what_a_killed_up_left_leave_the_cluster(tmp_path: Path, prepared: str) -> None:
    stack = Stack(tiny_document(tmp_path / "registry", {"slow": "hangs?"}), tmp_path)
    with _joined(stack, prepared) as process:
        stack.traffic("tiny", weights={"slow": 100})
        wait_for(lambda: stack.infer("tiny", "spam").headers.get("x-canarium-variant") == "slow")
        Thread(target=_unanswered, args=(stack,), daemon=True).start()  # for longer than gateways wait for it
        _kill(process)
        stack.canarium("down", "--state-dir", str(stack.paths.state_dir))
        assert "canarium" not in _actors(prepared)


def test_what_nobody_is_left_to_take_down_goes_by_what_the_readme_says(tmp_path: Path, prepared: str) -> None:
    stack = Stack(tiny_document(tmp_path / "registry", {"good": ""}), tmp_path)
    (remedy,) = re.findall(r'python -c "([^"]*canarium-control[^"]*)"', (ROOT / "README.md").read_text())
    with _joined(stack, prepared) as process:
        _kill(process, *processes.members(stack.paths.instance))
        stack.canarium("down", "--state-dir", str(stack.paths.state_dir))
        assert "canarium-control" in _actors(prepared)
        environment = {**os.environ, "RAY_ADDRESS": prepared}
        subprocess.run([sys.executable, "-c", remedy], env=environment, timeout=180, check=True)
        assert "canarium" not in _actors(prepared)


#: Starts the control plane three times: as it is, again, and for a configuration with one more variant.
CONTROL = """
import json, sys, httpx, ray
from serving.app import CONTROL_NAME, NAMESPACE, control_settings, start_control
from serving.config import Config
from serving.paths import Paths
from serving.registry.store import Registry

ray.init(namespace=NAMESPACE, log_to_driver=False)
seen = []
for path in sys.argv[1:]:
    config = Config.model_validate_json(open(path).read())
    Paths.of(config.state.dir).create()
    start_control(control_settings(config, Registry(config.registry.dir)))
    actor = ray.get_actor(CONTROL_NAME, namespace=NAMESPACE)
    view = httpx.get(f"{config.server.urls()['control']}/admin/v1/models/tiny", timeout=60, trust_env=False).json()
    seen.append([actor._actor_id.hex(), [variant["name"] for variant in view["variants"]]])
print(json.dumps(seen))
"""


def test_a_control_plane_of_another_configuration_is_replaced_and_keeps_its_state(
    tmp_path: Path, prepared: str
) -> None:
    document = tiny_document(tmp_path / "registry", {"good": "", "more": ""})
    stack = Stack(document, tmp_path)
    whole = parse_config(stack.document).absolute()
    files = [tmp_path / "first.json", tmp_path / "second.json"]
    files[1].write_text(whole.model_dump_json())
    del stack.document["models"]["tiny"]["variants"]["more"]
    files[0].write_text(parse_config(stack.document).absolute().model_dump_json())
    done = subprocess.run(
        [sys.executable, "-c", CONTROL, str(files[0]), str(files[0]), str(files[1])],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": prepared},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (first, same, other) = json.loads(done.stdout.splitlines()[-1])
    assert first == same
    assert first[1] == ["teacher", "good"]
    assert other[0] != first[0]
    assert other[1] == ["teacher", "good", "more"]
