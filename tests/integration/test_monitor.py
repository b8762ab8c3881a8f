"""The real monitor process over spools of the real writer, beside a small stand-in for the control plane."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.clock import SystemClock
from serving.contract import (
    C_LIVE_ERROR,
    C_LIVE_OK,
    Cause,
    ControlWord,
    Flag,
    Kind,
    Latch,
    Reason,
    RouteTable,
    Snapshot,
    VariantEntry,
    slot_key,
)
from serving.gateway.spool import SpoolWriter, latency_buckets_ms
from tests.support.prometheus import free_port, need

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
BOUNDS = latency_buckets_ms([100.0])
LIVE = Flag.LIVE | Flag.BASELINE_VALID


def table(weight_bp: int = 5000, epoch: int = 3) -> RouteTable:
    candidates = {"int8": ((0, weight_bp),)} if weight_bp else {}
    return RouteTable(
        model="moderation",
        epoch=epoch,
        salt="s",
        baseline="teacher",
        teacher="teacher",
        variants={
            name: VariantEntry(name, at, f"moderation/{name}:1") for at, name in enumerate(("teacher", "int8"), 1)
        },
        candidates=candidates,
        since=dict.fromkeys(candidates, epoch),
        reference_bp=500,
    )


class Control:
    """The control plane as the monitor sees it: answers, remembers, and can refuse."""

    def __init__(self) -> None:
        self.snapshot = Snapshot(rev=1, lease=1, tables={"moderation": table()})
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self.heartbeats: list[dict[str, Any]] = []
        self.refuse = 0  # mutations still to be answered with 503
        self._changed = threading.Condition()
        outer = self

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """Clients that are killed are part of the tests."""

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
                with outer._changed:
                    if outer.snapshot.rev == int(query["rev"]):
                        outer._changed.wait(min(float(query["wait_s"]), 2.0))
                    body = msgspec.json.encode(outer.snapshot)
                self._answer(200, body)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if self.path == "/admin/v1/monitor/heartbeat":
                    outer.heartbeats.append(body)
                    self._answer(200, b"{}")
                    return
                refused = outer.refuse > 0
                outer.refuse -= refused
                outer.posts.append((self.path, body))
                self._answer(503 if refused else 200, b"{}")

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def publish(self, **changes: Any) -> None:
        with self._changed:
            self.snapshot = msgspec.structs.replace(self.snapshot, rev=self.snapshot.rev + 1, **changes)
            self._changed.notify_all()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Monitor:
    """One monitor process; `start` may be called again after `kill`."""

    def __init__(self, folder: Path, control: Control) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.word_path = folder / "control.word"
        self.log = folder / "monitor.log"
        self.config = folder / "monitor.json"
        self.config.write_text(
            json.dumps(
                {
                    "instance": "test",
                    "host": "127.0.0.1",
                    "port": self.port,
                    "control_url": control.url,
                    "token": None,
                    "spool_dir": str(folder / "spool"),
                    "state_dir": str(folder / "monitor"),
                    "word_path": str(self.word_path),
                    "poll_ms": 20,
                    "commit_s": 0.2,
                    "models": {
                        "moderation": {
                            "baseline": "teacher",
                            "teacher": "teacher",
                            "slo": [
                                {"name": "latency", "objective": 0.99, "threshold_ms": 100, "window_s": 2592000},
                                {"name": "availability", "objective": 0.999, "window_s": 2592000},
                            ],
                            "guards": {"false_rollback": 0.01, "monitor_loss": "baseline"},
                            "variants": {
                                "teacher": {"version": 1},
                                "int8": {"version": 2, "reference_disagreement": 0.01},
                            },
                            "labels": ["ham", "spam"],
                        }
                    },
                }
            )
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "monitoring.sidecar", "--config", str(self.config)],
                cwd=ROOT,
                stderr=log,
                stdout=log,
            )
        until(lambda: self._healthy(), "the monitor answers", self)

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def get(self, path: str) -> Any:
        response = httpx.get(self.url + path, timeout=10)
        response.raise_for_status()
        return response.json()

    def metrics(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        text = httpx.get(f"{self.url}/metrics", timeout=10).text
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics().get((name, tuple(sorted(labels.items()))), 0.0)

    def verdict(self, guard: str, variant: str = "int8") -> dict[str, Any]:
        found = [
            v
            for v in self.get("/v1/verdicts")["verdicts"]["moderation"]
            if (v["guard"], v["variant"]) == (guard, variant)
        ]
        return found[0] if found else {"verdict": "absent", "statistic": {"observations": 0}}

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(15)


class Gateway:
    """Writes what a gateway would."""

    def __init__(self, folder: Path, name: str = "g0") -> None:
        self.clock = SystemClock()
        self.spool = SpoolWriter.create(folder / "spool", name, self.clock)
        self.spool.set_model("moderation", BOUNDS, ["ham", "spam"])
        self.ids = {name: self.spool.series_id("moderation", name) for name in ("teacher", "int8")}
        self.sent = 0

    def request(
        self, variant: str, cause: Cause = Cause.NONE, status: int = 200, total_us: int = 2000, **more: Any
    ) -> int:
        self.sent += 1
        series, now = self.ids[variant], self.clock.monotonic_ns()
        answered = self.ids["teacher"] if cause else series
        self.spool.record(
            Kind.REQUEST, LIVE, Reason.FALLBACK if cause else Reason.CANARY, cause, now, self.clock.wall_ns(),
            request_key=self.sent, batch_key=self.sent, series=series, answered=answered, status=status, rows=1,
            epoch=3, total_us=total_us, **more,
        )  # fmt: skip
        self.spool.observe_status(series, status)
        self.spool.add(series, C_LIVE_ERROR if cause else C_LIVE_OK)
        self.spool.observe_latency(series, BOUNDS, total_us * 1000)
        return self.sent

    def pair(self, key: int, flip: bool, kind: Kind = Kind.REFERENCE) -> None:
        self.spool.record(
            kind, LIVE, mono_ns=self.clock.monotonic_ns(), wall_ns=self.clock.wall_ns(), request_key=key,
            series=self.ids["int8"], answered=self.ids["teacher"], status=200, rows=1, epoch=3, cls=int(flip),
            ref_cls=0, flips=int(flip),
        )  # fmt: skip

    def label(self, key: int, cls: int) -> None:
        self.spool.record(
            Kind.LABEL, 0, mono_ns=self.clock.monotonic_ns(), wall_ns=self.clock.wall_ns(), request_key=key,
            series=self.ids["int8"], answered=self.ids["int8"], status=202, cls=cls,
        )  # fmt: skip


def until(check: Callable[[], Any], what: str, monitor: Monitor, timeout_s: float = 20.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = check()
        if found:
            return found
        time.sleep(0.05)
    pytest.fail(f"within {timeout_s} s not: {what}\n{monitor.log.read_text()[-4000:]}")


@pytest.fixture
def control() -> Iterator[Control]:
    server = Control()
    yield server
    server.close()


@pytest.fixture
def monitor(tmp_path: Path, control: Control) -> Iterator[Monitor]:
    process = Monitor(tmp_path, control)
    yield process
    if process.process is not None and process.process.poll() is None:
        process.process.kill()
        process.process.wait()


def consumed(monitor: Monitor, number: int) -> None:
    until(lambda: monitor.metric("canarium_events_consumed_total") >= number, f"{number} records read", monitor)


def configured(monitor: Monitor) -> None:
    until(lambda: monitor.get("/healthz")["snapshot_rev"] is not None, "the snapshot arrived", monitor)


def test_healthy_traffic_is_counted_once_charted_and_judged(monitor: Monitor, control: Control, tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    monitor.start()
    configured(monitor)
    for _ in range(600):
        gateway.request("teacher")
        gateway.pair(gateway.request("int8"), flip=False)
    consumed(monitor, 1800)
    seen = monitor.metrics()
    labels = (("code", "200"), ("model", "moderation"), ("variant", "int8"))
    assert seen["canarium_requests_total", labels] == 600
    assert seen["canarium_events_written_total", ()] == 1800
    assert seen["canarium_agreement_ratio", labels[1:]] == 1.0
    assert seen["canarium_traffic_weight", labels[1:]] == 0.5
    bucket = (("le", "0.1"), ("model", "moderation"), ("variant", "int8"))
    assert seen["canarium_request_duration_seconds_bucket", bucket] == 600
    assert monitor.verdict("agreement")["verdict"] == "pass"
    assert monitor.verdict("errors")["verdict"] == "inconclusive"  # 600 clean requests do not show 0.1 %
    assert monitor.verdict("harm")["verdict"] == "no_data"
    chart = monitor.get("/v1/series?model=moderation&seconds=60")
    assert len(chart["at"]) == 60
    assert sum(chart["variants"]["int8"]["rps"]) <= 600  # the second in progress is not shown
    assert {status["name"] for status in chart["slo"]} == {"latency", "availability"}
    heartbeat = until(lambda: control.heartbeats[-1:], "a heartbeat reached the control plane", monitor)[0]
    assert heartbeat["mode"] == "ok"
    assert heartbeat["instance"] == "test"
    assert set(heartbeat["verdicts"]) == {"moderation"}
    word = ControlWord.open(monitor.word_path)
    assert 0 <= time.monotonic_ns() - word.last_beat_ns < 3e9
    assert control.posts == []
    assert httpx.get(f"{monitor.url}/v1/series?model=nobody").status_code == 404
    assert httpx.get(f"{monitor.url}/v1/series?model=moderation&seconds=0").status_code == 400
    assert monitor.stop() == 0


def test_promtool_finds_nothing_to_say(monitor: Monitor, tmp_path: Path) -> None:
    promtool = need("promtool", "prometheus")
    gateway = Gateway(tmp_path)
    monitor.start()
    configured(monitor)
    gateway.pair(gateway.request("int8"), flip=True)
    gateway.label(1, 0)
    consumed(monitor, 3)
    text = httpx.get(f"{monitor.url}/metrics").content
    verdict = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, timeout=30, check=False)
    assert (verdict.returncode, verdict.stdout + verdict.stderr) == (0, b"")


def test_a_failing_candidate_is_rolled_back_once_through_both_paths(
    monitor: Monitor, control: Control, tmp_path: Path
) -> None:
    control.refuse = 2
    gateway = Gateway(tmp_path)
    monitor.start()
    configured(monitor)
    for _ in range(60):
        gateway.request("teacher")
        gateway.request("int8", Cause.ERROR)
    word = ControlWord.open(monitor.word_path)
    until(lambda: (word.latch(slot_key("moderation", "int8")) or Latch()).on, "the veto is in the word", monitor)
    until(lambda: len(control.posts) == 3, "the control plane acknowledged at the third attempt", monitor)
    path, body = control.posts[-1]
    assert path == "/admin/v1/models/moderation:rollback"
    assert (body["variant"], body["actor"]) == ("int8", "monitor")
    assert body["reason"] == body["evidence"]["sentence"]
    assert "int8 caused" in body["reason"]
    assert body["evidence"]["statistic"]["log_evidence"] >= body["evidence"]["statistic"]["log_threshold"]
    for _ in range(100):
        gateway.request("int8", Cause.ERROR)
    consumed(monitor, 220)
    assert monitor.verdict("errors")["verdict"] == "fail"
    assert monitor.stop() == 0
    monitor.start()
    consumed(monitor, 220)
    time.sleep(0.5)
    assert len(control.posts) == 3
    assert word.latch(slot_key("moderation", "int8")) == Latch(1, 0)


def test_a_rearmed_candidate_is_judged_anew(monitor: Monitor, control: Control, tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    monitor.start()
    configured(monitor)
    for _ in range(5):
        gateway.request("int8", Cause.INVALID_OUTPUT)
    until(lambda: control.posts, "the kill reached the control plane", monitor)
    path, body = control.posts[0]
    assert path == "/admin/v1/models/moderation:kill"
    assert body["kill_seq"] == 1
    assert "3 invalid outputs" in body["reason"] or "invalid outputs in" in body["reason"]
    word = ControlWord.open(monitor.word_path)
    assert word.latch(slot_key("moderation")) == Latch(1, 0)
    assert monitor.metric("canarium_killswitch_state", model="moderation") == 1
    word.latch_off(slot_key("moderation"), 1)
    control.publish(kills={"moderation": Latch(1, 1)})
    until(lambda: monitor.verdict("invalid_output")["verdict"] == "no_data", "the evidence was dropped", monitor)
    assert monitor.metric("canarium_killswitch_state", model="moderation") == 0
    for _ in range(3):
        gateway.request("int8", Cause.INVALID_OUTPUT)
    until(lambda: len(control.posts) == 2, "a second kill", monitor)
    assert control.posts[1][1]["kill_seq"] == 2


def test_a_killed_monitor_replays_exactly_once(monitor: Monitor, tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    monitor.start()
    configured(monitor)

    def traffic(number: int) -> None:
        for n in range(number):
            gateway.request("teacher", total_us=1000 + n % 50)
            gateway.pair(gateway.request("int8", total_us=1000 + n % 50), flip=n % 40 == 0)

    for _ in range(4):
        before = gateway.spool.written
        traffic(300)
        consumed(monitor, before + 1)
        monitor.stop(signal.SIGKILL)
        traffic(50)
        monitor.start()
    total = gateway.spool.written
    consumed(monitor, total)
    seen = monitor.metrics()
    assert seen["canarium_events_consumed_total", ()] == seen["canarium_events_written_total", ()] == total
    agreement = monitor.verdict("agreement")["statistic"]
    assert agreement["observations"] == 4 * 350
    assert agreement["events"] == 4 * (8 + 2)
    assert monitor.verdict("invalid_output")["statistic"]["observations"] == 4 * 350


def test_a_gone_gateway_leaves_its_counts_and_no_file(monitor: Monitor, tmp_path: Path) -> None:
    first, second = Gateway(tmp_path, "g0"), Gateway(tmp_path, "g1")
    monitor.start()
    configured(monitor)
    for _ in range(100):
        first.request("teacher")
        second.request("teacher")
    consumed(monitor, 200)
    first.request("teacher")
    first.spool.close()
    until(lambda: not first.spool.path.exists(), "the finished spool was removed", monitor)
    labels = {"code": "200", "model": "moderation", "variant": "teacher"}
    assert monitor.metric("canarium_requests_total", **labels) == 201
    monitor.stop(signal.SIGKILL)
    monitor.start()
    consumed(monitor, 201)
    assert monitor.metric("canarium_requests_total", **labels) == 201
    assert monitor.metric("canarium_events_written_total") == 201


def test_damaged_files_do_not_stop_it(monitor: Monitor, tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    (tmp_path / "spool" / "garbage.spool").write_bytes(os.urandom(50_000))
    (tmp_path / "spool" / "empty.spool").write_bytes(b"")
    (tmp_path / "monitor").mkdir()
    (tmp_path / "monitor" / "state.msgpack").write_bytes(b"\x93not a state")
    monitor.start()
    for _ in range(50):
        gateway.request("teacher")
    consumed(monitor, 50)
    until(lambda: monitor.metric("canarium_spool_files_refused_total") == 2, "two files were refused", monitor)
    assert (tmp_path / "monitor" / "state.msgpack.bad").exists()


def test_a_taken_port_is_one_clear_line(monitor: Monitor) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", monitor.port))
        holder.listen()
        done = subprocess.run(
            [sys.executable, "-m", "monitoring.sidecar", "--config", str(monitor.config)],
            cwd=ROOT, capture_output=True, timeout=30, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"cannot listen on 127.0.0.1:{monitor.port}" in done.stderr
    assert "ddress already in use" in done.stderr


def test_it_works_without_a_control_plane(monitor: Monitor, control: Control, tmp_path: Path) -> None:
    monitor.start()
    configured(monitor)
    gateway = Gateway(tmp_path)
    consumed(monitor, 0)
    control.close()
    for _ in range(5):
        gateway.request("int8", Cause.INVALID_OUTPUT)
    word = ControlWord.open(monitor.word_path)
    until(lambda: (word.latch(slot_key("moderation")) or Latch()).on, "the kill is in the word", monitor)
    assert monitor.metric("canarium_actuations_waiting") == 1
    assert monitor.stop() == 0
