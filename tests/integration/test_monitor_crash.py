"""The monitor is killed wherever it happens to be, and its disk fills up: nothing is lost, nothing counts twice."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from monitoring import config, state
from monitoring.watch import Watch
from serving.clock import SystemClock
from serving.contract import SPOOL_CAPACITY, Cause, Snapshot
from tests.support.monitor import Gateway, Monitor, until

pytestmark = pytest.mark.integration

KILLS = 12


class Traffic(threading.Thread):
    """Some 1,500 records a second of a sound candidate: requests, pairs, labels, now and then an error of both arms."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(daemon=True)
        self.gateway = gateway
        self.stopping = threading.Event()
        self._random = np.random.default_rng(11)

    def run(self) -> None:
        while not self.stopping.wait(0.02) and self.gateway.spool.written < SPOOL_CAPACITY - 1000:
            for n in range(8):
                failed = Cause.DIED if self._random.random() < 0.002 else Cause.NONE
                self.gateway.request("teacher", failed, 503 if failed else 200, int(1000 + n))
                key = self.gateway.request("int8", failed, 200, int(1000 + self._random.integers(0, 100)))
                self.gateway.pair(key, flip=bool(self._random.random() < 0.004))
                if n == 0:
                    self.gateway.label(key, 0)

    def stop(self) -> None:
        self.stopping.set()
        self.join(10)


def judged(watch: Watch) -> dict[str, Any]:
    """All that the guards know, by name."""
    return {
        verdict.guard: (verdict.verdict, verdict.statistic, verdict.example_request_keys)
        for verdict in watch.models["moderation"].guards.verdicts()
    }


def test_twelve_kills_leave_the_same_evidence_as_none(monitor: Monitor, tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    random, traffic = np.random.default_rng(5), Traffic(gateway)
    traffic.start()
    for _ in range(KILLS):
        monitor.start()
        time.sleep(float(random.uniform(0.0, 0.9)))  # in the middle of a read, of a commit, of a rename
        monitor.stop(signal.SIGKILL)
    monitor.start()
    traffic.stop()
    written = gateway.spool.written
    until(lambda: monitor.metric("canarium_events_consumed_total") >= written, "everything is read", monitor)
    flow = monitor.get("/healthz")["events"]
    assert flow == {"written": written, "consumed": written, "lost": 0, "corrupt": 0, "pending": 0}
    assert monitor.stop() == 0

    settings = config.load(monitor.config)
    stored = state.read(settings.state_dir)
    assert stored is not None
    killed = Watch(settings, SystemClock())
    killed.restore(stored)
    whole = Watch(settings, SystemClock())
    whole.apply(msgspec.json.decode(stored.snapshot, type=Snapshot))
    whole.tick()
    while whole.step()[0]:
        pass
    assert judged(killed) == judged(whole)
    assert judged(whole)["agreement"][1]["observations"] > 1000
    joined = [watch.models["moderation"].joiner.state() for watch in (killed, whole)]
    assert joined[0] == joined[1]


def test_a_full_disk_delays_commits_and_stops_nothing(monitor: Monitor, tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    monitor.start()
    until(lambda: monitor.get("/healthz")["snapshot_rev"] is not None, "the snapshot arrived", monitor)
    gateway.request("teacher")
    until(lambda: (tmp_path / "monitor" / state.FILE).exists(), "a commit", monitor)
    assert monitor.process is not None
    before = resource.prlimit(monitor.process.pid, resource.RLIMIT_FSIZE, (512, resource.RLIM_INFINITY))
    for _ in range(300):
        gateway.request("teacher")
        gateway.pair(gateway.request("int8"), flip=False)
    until(lambda: monitor.metric("canarium_monitor_loop_errors_total", loop="commit") > 1, "commits fail", monitor)
    until(lambda: monitor.metric("canarium_events_consumed_total") == 901, "everything is read", monitor)
    until(lambda: monitor.verdict("agreement")["verdict"] == "pass", "everything is judged", monitor)
    # Room again: the next commit takes everything along, and a kill after it loses nothing.
    old = os.stat(tmp_path / "monitor" / state.FILE).st_mtime_ns
    resource.prlimit(monitor.process.pid, resource.RLIMIT_FSIZE, before)
    until(lambda: os.stat(tmp_path / "monitor" / state.FILE).st_mtime_ns > old, "a commit again", monitor)
    monitor.stop(signal.SIGKILL)
    monitor.start()
    until(lambda: monitor.metric("canarium_events_consumed_total") == 901, "all is known still", monitor)
    assert monitor.verdict("agreement")["statistic"]["observations"] == 300
