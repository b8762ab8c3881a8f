"""The real monitor process over spools of the real writer, beside a small stand-in for the control plane."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.contract import Cause, ControlWord, Latch, slot_key
from tests.support.monitor import ROOT, Control, Gateway, Monitor, until
from tests.support.prometheus import need

pytestmark = pytest.mark.integration


def consumed(monitor: Monitor, number: int) -> None:
    until(lambda: monitor.metric("canarium_events_consumed_total") >= number, f"{number} records read", monitor)


def configured(monitor: Monitor) -> None:
    until(lambda: monitor.get("/healthz")["snapshot_rev"] is not None, "the snapshot arrived", monitor)


def distinct(posts: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """What the control plane was asked for, each once, however often."""
    return [post for number, post in enumerate(posts) if post not in posts[:number]]


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
    until(lambda: 0 <= time.monotonic_ns() - word.last_beat_ns < 3e9, "a heartbeat in the word", monitor)
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
    until(lambda: len(control.posts) >= 3, "the control plane acknowledged at the third attempt", monitor)
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
    # One that took longer than the monitor waits was asked for again, and is the same.
    assert distinct(control.posts) == [(path, body)]
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
    until(lambda: len(distinct(control.posts)) == 2, "a second kill", monitor)
    assert distinct(control.posts)[1][1]["kill_seq"] == 2


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
