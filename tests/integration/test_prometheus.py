"""A real Prometheus scrapes the real monitor, which reads a spool that the gateway's own recorder writes; what fires
goes through a real Alertmanager, both with the shipped configurations but for addresses and waits.

Only the control plane is a stand-in: it publishes one routing snapshot and accepts what the monitor posts.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
import yaml
from support.alertmanager import RunningAlertmanager, Webhook
from support.prometheus import RunningPrometheus, free_port, need

from deployments.grafana import generate as grafana
from monitoring.config import MonitorConfig, MonitorModel, MonitorVariant, ReliabilityMap, SloTarget
from serving import contract
from serving.clock import SystemClock
from serving.contract import Cause, Kind, Reason, RouteTable, Snapshot, VariantEntry
from serving.gateway.recorder import Recorder, Trace
from serving.gateway.spool import SpoolWriter, latency_buckets_ms
from serving.runtimes.answers import Summary
from serving.runtimes.audit import Audit

pytestmark = pytest.mark.integration

DEPLOYMENTS = Path(__file__).resolve().parents[2] / "deployments"
MODEL, BASELINE, CANDIDATE, SHADOWED = "moderation", "teacher", "int8", "distilled"
VARIANTS = (BASELINE, CANDIDATE, SHADOWED)
#: Dashboard queries that are NaN while nothing was ever rolled back or killed.
ONLY_AFTER_A_TRIP = {
    "histogram_quantile(0.99, sum by (le) (canarium_killswitch_actuation_seconds_bucket))",
}


#: As sure as they are right, by labels and by the teacher.
RELIABLE = ReliabilityMap((), (500,), (0.9,), (0.9,), (0.88,), (0.05,))


class ControlStandIn:
    """Publishes one snapshot and remembers what the monitor posts."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, dict[str, Any]]] = []
        entries = {name: VariantEntry(name, at + 1, f"{MODEL}/{name}:1") for at, name in enumerate(VARIANTS)}
        table = RouteTable(
            model=MODEL,
            epoch=1,
            salt="s",
            baseline=BASELINE,
            teacher=BASELINE,
            variants=entries,
            candidates={CANDIDATE: ((0, 4000),)},
            since={CANDIDATE: 1},
            shadow={SHADOWED: 2000},
            reference_bp=10_000,
        )
        rollouts = {f"{MODEL}/{CANDIDATE}": "ramping"}
        self._snapshot = msgspec.json.encode(Snapshot(rev=1, lease=1, tables={MODEL: table}, rollouts=rollouts))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> ControlStandIn:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if "rev=1" in self.path:
                    time.sleep(0.5)  # as a long-poll does, though shorter
                self._answer(outer._snapshot)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.posted.append((self.path, body))
                self._answer(b"{}")

            def _answer(self, body: bytes) -> None:
                with suppress(BrokenPipeError):  # the monitor is ending
                    self.send_response(200)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


class Traffic:
    """A gateway's recorder, fed by a thread: about 400 requests a second until it is told to stop."""

    def __init__(self, spool_dir: Path) -> None:
        clock = SystemClock()
        self._clock = clock
        self._recorder = Recorder(SpoolWriter.create(spool_dir, "gateway-1", clock), clock, "secret")
        self._recorder.model(MODEL, list(latency_buckets_ms([100.0])), ["ham", "spam"])
        self._random = np.random.default_rng(7)
        self._number = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)
        self._recorder.close()

    def invalid_outputs(self, count: int) -> None:
        """The candidate answers NaN where the baseline's answer is valid."""
        with self._lock:
            for _ in range(count):
                self._request(CANDIDATE, BASELINE, Reason.FALLBACK, Cause.INVALID_OUTPUT, 200)

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            with self._lock:
                self._burst()

    def _burst(self) -> None:
        for _ in range(12):
            self._request(BASELINE, BASELINE, Reason.BASELINE, Cause.NONE, 200)
        for _ in range(8):
            trace = self._request(CANDIDATE, CANDIDATE, Reason.CANARY, Cause.NONE, 200)
            self._pair(Kind.REFERENCE, CANDIDATE, trace, flipped=self._random.random() < 0.01)
            self._recorder.count(MODEL, CANDIDATE, contract.C_REFERENCE_OK)
        trace = self._request(BASELINE, BASELINE, Reason.BASELINE, Cause.NONE, 200)
        self._pair(Kind.SHADOW, SHADOWED, trace, flipped=False)
        self._recorder.count(MODEL, SHADOWED, contract.C_SHADOW_OK)
        self._recorder.count(MODEL, SHADOWED, contract.C_SHADOW_SHED)
        if self._number % 50 < 5:  # both arms fail now and then: shocks, for which no candidate is to blame
            self._request(CANDIDATE, BASELINE, Reason.FALLBACK, Cause.TIMEOUT, 200)
            self._request(BASELINE, BASELINE, Reason.BASELINE, Cause.NONE, 503)
            self._request(BASELINE, BASELINE, Reason.BASELINE, Cause.NONE, 503)
            self._request(BASELINE, BASELINE, Reason.BASELINE, Cause.NONE, 400)
        for variant in VARIANTS:
            self._recorder.batch(MODEL, variant, int(self._random.integers(1, 17)))
            self._recorder.gauge(MODEL, variant, contract.C_QUEUE_ROWS, int(self._random.integers(0, 5)))
        self._recorder.audit(MODEL, CANDIDATE, Audit(share=0.001, worst=0.01, sqnr_db=32.0, worst_sqnr_db=20.0))
        self._recorder.gauge(MODEL, BASELINE, contract.C_CAPACITY, 2_000_000)
        self._recorder.beat()

    def _request(self, routed: str, answered: str, reason: Reason, cause: Cause, status: int) -> Trace:
        self._number += 1
        infer_ns = int(self._random.gamma(4, 1e6))
        trace = Trace(
            request_id=f"r{self._number}",
            arrived_ns=self._clock.monotonic_ns() - infer_ns - 500_000,
            unit=f"user-{self._number % 997}",
            preprocess_ns=200_000,
            queue_ns=100_000,
            infer_ns=infer_ns,
            batch_key=self._number,
        )
        self._recorder.request(
            MODEL,
            routed,
            answered,
            reason=reason,
            cause=cause,
            status=status,
            epoch=1,
            trace=trace,
            summary=Summary(1, 0.9, 0.8, -2.0),
            baseline_valid=True,
        )
        return trace

    def _pair(self, kind: Kind, variant: str, trace: Trace, *, flipped: bool) -> None:
        self._recorder.pair(
            kind,
            MODEL,
            variant,
            BASELINE,
            trace=trace,
            epoch=1,
            summary=Summary(1, 0.9, 0.8, -2.0),
            classes=np.array([1]),
            ref_classes=np.array([0 if flipped else 1]),
            ref_prob=0.1 if flipped else 0.88,
            inclusion=1.0,
            infer_ns=2_000_000,
            apart=(0.02, 0.05),
            common={},
        )


@contextmanager
def running_monitor(folder: Path, control_url: str) -> Iterator[str]:
    """`python -m monitoring.sidecar`; yields its address as host:port."""
    port = free_port()
    config = MonitorConfig(
        instance="test",
        spool_dir=str(folder / "spool"),
        state_dir=str(folder / "monitor"),
        word_path=str(folder / "control.word"),
        control_url=control_url,
        port=port,
        models={
            MODEL: MonitorModel(
                baseline=BASELINE,
                teacher=BASELINE,
                variants={
                    name: MonitorVariant(at + 1, 0.01, RELIABLE, saturation=0.001, energy_threshold=-1.0)
                    for at, name in enumerate(VARIANTS)
                },
                slo=[SloTarget("latency", 0.99, 100.0), SloTarget("availability", 0.999)],
                labels=["ham", "spam"],
            )
        },
    )
    file = folder / "monitor.json"
    file.write_bytes(msgspec.json.encode(config))
    with (folder / "monitor.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "monitoring.sidecar", "--config", str(file)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=DEPLOYMENTS.parent,
        )
    try:
        _wait_healthy(process, port, folder / "monitor.log")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)


def _wait_healthy(process: subprocess.Popen[bytes], port: int, log: Path, timeout_s: float = 180.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail(f"the monitor is not healthy:\n{log.read_text(errors='replace')[-3000:]}")


class Stack:
    """What the tests of this file look at."""

    def __init__(
        self,
        control: ControlStandIn,
        traffic: Traffic,
        monitor: str,
        prometheus: RunningPrometheus,
        webhook: Webhook,
    ) -> None:
        self.control, self.traffic, self.monitor, self.prometheus = control, traffic, monitor, prometheus
        self.webhook = webhook


def shipped(monitor: str, alertmanager: str) -> str:
    """deployments/prometheus/prometheus.yml with the addresses and the pace of this test."""
    document = yaml.safe_load((DEPLOYMENTS / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    document["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), "1s")
    (job,), (alerting,) = document["scrape_configs"], document["alerting"]["alertmanagers"]
    job["static_configs"][0]["targets"] = [monitor]
    alerting["static_configs"][0]["targets"] = [alertmanager]
    return yaml.safe_dump(document)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    need("prometheus", "prometheus")
    need("prometheus-alertmanager", "prometheus-alertmanager")
    folder = tmp_path_factory.mktemp("monitor")
    with (
        ControlStandIn() as control,
        Traffic(folder / "spool") as traffic,
        running_monitor(folder, control.url) as monitor,
        Webhook() as webhook,
        RunningAlertmanager(DEPLOYMENTS / "alertmanager" / "alertmanager.yml", webhook) as alertmanager,
        RunningPrometheus(
            config=shipped(monitor, alertmanager.address), rules=[DEPLOYMENTS / "prometheus" / "rules.yml"]
        ) as prometheus,
    ):
        yield Stack(control, traffic, monitor, prometheus, webhook)


def dashboard() -> list[str]:
    """The dashboard's queries, as Grafana would send them."""
    return [grafana.concrete(expr, MODEL, "10s") for expr in grafana.expressions()]


def numbers(result: list[dict[str, Any]]) -> list[float]:
    return [float(item["value"][1]) for item in result]


def test_the_monitors_page_follows_the_conventions(stack: Stack) -> None:
    page = httpx.get(f"http://{stack.monitor}/metrics", timeout=60, trust_env=False).content
    done = subprocess.run(
        [need("promtool", "prometheus"), "check", "metrics"], input=page, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    assert done.stderr == b""


def test_every_metric_of_the_rules_exists(stack: Stack) -> None:
    rules = (DEPLOYMENTS / "prometheus" / "rules.yml").read_text(encoding="utf-8")
    wanted = set(re.findall(r"\bcanarium_[a-z_]+", re.sub(r"canarium_slo_errors:ratio_rate\w+", "", rules)))
    assert len(wanted) > 8
    page = httpx.get(f"http://{stack.monitor}/metrics", timeout=60, trust_env=False).text
    assert sorted(name for name in wanted if f"\n{name}" not in page) == []


@pytest.mark.parametrize("expr", dashboard())
def test_every_query_of_the_dashboard_has_an_answer(stack: Stack, expr: str) -> None:
    result = stack.prometheus.wait_for(expr, timeout_s=180)
    if expr not in ONLY_AFTER_A_TRIP:
        # A variant that takes no live traffic has a histogram without observations.
        assert not all(math.isnan(number) for number in numbers(result))


def test_what_prometheus_holds_is_what_happened(stack: Stack) -> None:
    prometheus = stack.prometheus
    split = 'sum(rate(canarium_requests_total{variant="int8"}[10s])) / sum(rate(canarium_requests_total[10s]))'
    prometheus.wait_for(f"abs({split} - 0.39) <= 0.05", timeout_s=180)
    assert prometheus.value('max(canarium_traffic_weight{variant="int8"})') == pytest.approx(0.4)
    prometheus.wait_for('abs(max(canarium_agreement_ratio{variant="int8"}) - 0.99) <= 0.02', timeout_s=180)
    assert prometheus.value("sum(canarium_events_dropped_total)") == 0
    assert prometheus.value("sum(canarium_killswitch_state)") == 0


def test_recorded_burn_rates_agree_with_the_monitors_own(stack: Stack) -> None:
    recorded = 'model:canarium_slo_errors:ratio_rate5m{slo="availability"}'
    own = 'max(canarium_slo_burn_rate{variant="*",slo="availability",window="5m"}) * 0.001'
    # Both are of the last five minutes, sampled at moments of their own: at the start they differ, then they meet.
    stack.prometheus.wait_for(f"abs(max({recorded} > 0) / scalar({own}) - 1) < 0.25", timeout_s=180)


def test_a_breached_objective_reaches_the_pager(stack: Stack) -> None:
    """About 1 % of the requests get a 503, where 0.1 % is the objective."""
    receiver, alert = stack.webhook.wait_for("CanariumErrorBudgetBurn", timeout_s=180)
    assert receiver == "pager"
    assert (alert["labels"]["model"], alert["labels"]["slo"]) == (MODEL, "availability")
    assert "the objective is 0.999" in alert["annotations"]["description"]


def test_nothing_alerts_while_nothing_is_wrong(stack: Stack) -> None:
    stack.prometheus.wait_for("canarium_detector_log_evidence", timeout_s=180)
    names = {alert["labels"]["alertname"] for alert in stack.prometheus.alerts() if alert["state"] == "firing"}
    assert not names - {"CanariumErrorBudgetBurn", "CanariumVariantErrorBudgetBurn"}  # the shocks burn


def test_a_kill_is_alerted_within_seconds(stack: Stack) -> None:
    """The last of this file: what it breaks stays broken."""
    stack.traffic.invalid_outputs(3)
    stack.prometheus.wait_for('ALERTS{alertname="CanariumKillSwitchOn",model="moderation",alertstate="firing"}', 180)
    stack.prometheus.wait_for('ALERTS{alertname="CanariumGuardTripped",guard="invalid_output"}', 180)
    assert any(path == "/admin/v1/models/moderation:kill" for path, _ in stack.control.posted)
    assert stack.webhook.wait_for("CanariumKillSwitchOn")[1]["labels"]["model"] == MODEL
    (query,) = ONLY_AFTER_A_TRIP
    stack.prometheus.wait_for(f"{query} > 0", 180)
    assert stack.prometheus.value(query) < 30
