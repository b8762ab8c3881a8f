"""The monitor as a process, a stand-in for its control plane, and what a gateway would write."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
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
    Flag,
    Kind,
    Reason,
    RouteTable,
    Snapshot,
    VariantEntry,
)
from serving.gateway.spool import SpoolWriter, latency_buckets_ms
from tests.support.prometheus import free_port

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
        response = httpx.get(self.url + path, timeout=30)
        response.raise_for_status()
        return response.json()

    def metrics(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
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
        return self.process.wait(60)


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


def until(check: Callable[[], Any], what: str, monitor: Monitor, timeout_s: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = check()
        if found:
            return found
        time.sleep(0.05)
    pytest.fail(f"within {timeout_s} s not: {what}\n{monitor.log.read_text()[-4000:]}")
