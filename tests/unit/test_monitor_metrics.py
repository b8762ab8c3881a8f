"""Every metric of the monitor: its name, kind, labels and where its numbers come from."""

from __future__ import annotations

import math
import re
from pathlib import Path

import httpx
import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric

from monitoring.actuate import Actuator
from monitoring.api import allowed_hosts, build_app
from monitoring.config import MonitorConfig, MonitorModel, MonitorVariant, SloTarget
from monitoring.intervals import wilson
from monitoring.metrics import MonitorCollector
from monitoring.reports import Reports
from monitoring.state import read, write
from monitoring.watch import Watch
from serving.clock import FakeClock
from serving.contract import (
    C_FALLBACK,
    C_SHADOW_SHED,
    C_WORKERS,
    ROLLOUT_STATES,
    Cause,
    ControlWord,
    Flag,
    Kind,
    Latch,
    RouteTable,
    Snapshot,
    VariantEntry,
    slot_key,
)
from serving.gateway.spool import SpoolWriter, latency_buckets_ms
from serving.packing import pack_divergence

BOUNDS = latency_buckets_ms([120.0])
#: Name -> (kind, labels), as the dashboards, rules and documentation know them.
EXPECTED = {
    "canarium_requests": ("counter", {"model", "variant", "code"}),
    "canarium_pinned_requests": ("counter", {"model", "variant", "code"}),
    "canarium_live_requests": ("counter", {"model", "variant", "result"}),
    "canarium_fallbacks": ("counter", {"model", "variant", "cause"}),
    "canarium_shadow": ("counter", {"model", "variant", "result"}),
    "canarium_reference": ("counter", {"model", "variant", "result"}),
    "canarium_rows": ("counter", {"model", "variant"}),
    "canarium_pairs": ("counter", {"model", "variant"}),
    "canarium_pair_flips": ("counter", {"model", "variant"}),
    "canarium_shed_requests": ("counter", {"model", "variant"}),
    "canarium_cancelled_requests": ("counter", {"model", "variant"}),
    "canarium_sampled_rows": ("counter", {"model", "variant"}),
    "canarium_sampled_rows_dropped": ("counter", {"model", "variant"}),
    "canarium_input_drift_score": ("gauge", {"model", "variant", "feature"}),
    "canarium_input_drift_threshold": ("gauge", {"model", "variant", "feature"}),
    "canarium_input_drift_share": ("gauge", {"model", "variant"}),
    "canarium_report_timestamp_seconds": ("gauge", {"model", "variant"}),
    "canarium_reports": ("counter", {"result"}),
    "canarium_golden_accuracy_ratio": ("gauge", {"model", "variant"}),
    "canarium_golden_flips_ratio": ("gauge", {"model", "variant"}),
    "canarium_golden_equal_ratio": ("gauge", {"model", "variant"}),
    "canarium_golden_requests": ("counter", {"model", "variant", "result"}),
    "canarium_batches": ("counter", {"model", "variant"}),
    "canarium_queue_rows": ("gauge", {"model", "variant"}),
    "canarium_workers": ("gauge", {"model", "variant"}),
    "canarium_request_duration_seconds": ("histogram", {"model", "variant", "le"}),
    "canarium_request_stage_duration_seconds": ("summary", {"model", "variant", "stage"}),
    "canarium_batch_rows": ("histogram", {"model", "variant", "le"}),
    "canarium_activation_audits": ("counter", {"model", "variant"}),
    "canarium_activation_saturation_ratio": ("gauge", {"model", "variant"}),
    "canarium_activation_sqnr_decibels": ("gauge", {"model", "variant"}),
    "canarium_ood_ratio": ("gauge", {"model", "variant", "score"}),
    "canarium_agreement_ratio": ("gauge", {"model", "variant"}),
    "canarium_agreement_ratio_lower": ("gauge", {"model", "variant"}),
    "canarium_agreement_ratio_upper": ("gauge", {"model", "variant"}),
    "canarium_top_k_agreement_ratio": ("gauge", {"model", "variant", "k"}),
    "canarium_top_k_agreement_ratio_lower": ("gauge", {"model", "variant", "k"}),
    "canarium_top_k_agreement_ratio_upper": ("gauge", {"model", "variant", "k"}),
    "canarium_teacher_noise_ratio": ("gauge", {"model"}),
    "canarium_teacher_noise_ratio_lower": ("gauge", {"model"}),
    "canarium_teacher_noise_ratio_upper": ("gauge", {"model"}),
    "canarium_js_divergence": ("gauge", {"model", "variant"}),
    "canarium_js_divergence_lower": ("gauge", {"model", "variant"}),
    "canarium_js_divergence_upper": ("gauge", {"model", "variant"}),
    "canarium_kl_divergence": ("gauge", {"model", "variant"}),
    "canarium_kl_divergence_lower": ("gauge", {"model", "variant"}),
    "canarium_kl_divergence_upper": ("gauge", {"model", "variant"}),
    "canarium_calibration_error": ("gauge", {"model", "variant", "reference"}),
    "canarium_calibration_error_lower": ("gauge", {"model", "variant", "reference"}),
    "canarium_calibration_error_upper": ("gauge", {"model", "variant", "reference"}),
    "canarium_brier_score": ("gauge", {"model", "variant"}),
    "canarium_labels_joined": ("counter", {"model", "variant"}),
    "canarium_labels_unjoined": ("counter", {"model", "reason"}),
    "canarium_join_evictions": ("counter", {"model"}),
    "canarium_kpis_joined": ("counter", {"model"}),
    "canarium_kpis_unjoined": ("counter", {"model"}),
    "canarium_detector_log_evidence": ("gauge", {"model", "variant", "guard"}),
    "canarium_detector_log_threshold": ("gauge", {"model", "variant", "guard"}),
    "canarium_guard_verdict": ("gauge", {"model", "variant", "guard", "verdict"}),
    "canarium_slo_objective_ratio": ("gauge", {"model", "variant", "slo"}),
    "canarium_slo_burn_rate": ("gauge", {"model", "variant", "slo", "window"}),
    "canarium_slo_error_budget_remaining_ratio": ("gauge", {"model", "variant", "slo"}),
    "canarium_traffic_weight": ("gauge", {"model", "variant"}),
    "canarium_rollout_state": ("gauge", {"model", "variant", "state"}),
    "canarium_killswitch_state": ("gauge", {"model"}),
    "canarium_rollback_headroom_ratio": ("gauge", {"model"}),
    "canarium_killswitch_actuation_seconds": ("histogram", {"le"}),
    "canarium_actuations_waiting": ("gauge", set()),
    "canarium_actuation_failures": ("counter", set()),
    "canarium_events_written": ("counter", set()),
    "canarium_events_consumed": ("counter", set()),
    "canarium_events_dropped": ("counter", {"reason"}),
    "canarium_events_unused": ("counter", {"reason"}),
    "canarium_spool_header_errors": ("counter", set()),
    "canarium_events_pending": ("gauge", set()),
    "canarium_event_lag_seconds": ("gauge", set()),
    "canarium_spool_files": ("gauge", set()),
    "canarium_spool_files_refused": ("counter", set()),
    "canarium_monitor_loop_errors": ("counter", {"loop"}),
    "canarium_monitor_heartbeat_timestamp_seconds": ("gauge", set()),
    "canarium_build_info": ("gauge", {"version"}),
}

#: What was promised when the metrics were designed, as scraped.
PROMISED = """
    requests_total request_duration_seconds request_stage_duration_seconds queue_rows batch_rows fallbacks_total
    shadow_total agreement_ratio agreement_ratio_lower agreement_ratio_upper calibration_error brier_score
    labels_joined_total detector_log_evidence detector_log_threshold guard_verdict activation_saturation_ratio
    slo_objective_ratio slo_burn_rate slo_error_budget_remaining_ratio traffic_weight rollback_headroom_ratio
    rollout_state killswitch_state killswitch_actuation_seconds events_written_total events_consumed_total
    events_dropped_total event_lag_seconds monitor_heartbeat_timestamp_seconds build_info
"""


class Bench:
    """A monitor without its loops, and one gateway's spool."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.folder = folder
        variants = {"teacher": MonitorVariant(1), "int8": MonitorVariant(2)}
        slo = [SloTarget("latency", 0.99, 120.0), SloTarget("availability", 0.999)]
        self.config = MonitorConfig(
            "i", str(folder / "spool"), str(folder / "state"), str(folder / "word"), "http://127.0.0.1:1",
            {"m": MonitorModel("teacher", "teacher", variants, slo)},
        )  # fmt: skip
        self.watch = Watch(self.config, self.clock)
        self.actuator = Actuator(
            self.clock,
            httpx.AsyncClient(),
            lambda: ControlWord.open(self.config.word_path),
            lambda: self.watch.snapshot,
            "i",
        )
        entries = {name: VariantEntry(name, item.version, f"m/{name}:1") for name, item in variants.items()}
        table = RouteTable("m", 1, "s", "teacher", "teacher", entries, {"int8": ((0, 2500),)}, {"int8": 1})
        self.watch.apply(Snapshot(1, 1, {"m": table}))
        self.spool = SpoolWriter.create(self.config.spool_dir, "g0", self.clock, 64)
        self.spool.set_model("m", BOUNDS, ["a", "b"])
        self.ids = {name: self.spool.series_id("m", name) for name in variants}

    def pair(self, flip: bool, key: int = 0) -> None:
        self.spool.record(
            Kind.REFERENCE, Flag.LIVE, request_key=key, series=self.ids["int8"], answered=self.ids["teacher"],
            status=200, rows=1, epoch=1, flips=int(flip), cls=int(flip), ref_cls=0, wall_ns=self.clock.wall_ns(),
            prob=0.9, ref_prob=0.5, extra=pack_divergence(0.02, 0.3),
        )  # fmt: skip

    def read(self) -> None:
        self.watch.tick()
        while self.watch.step()[0]:
            pass
        self.watch.tick()

    def collect(self) -> dict[str, Metric]:
        collector = MonitorCollector(self.watch, self.actuator, {"ingest": 0})
        registry = CollectorRegistry(auto_describe=False)
        registry.register(collector)
        generate_latest(registry)
        families = list(collector.collect())
        assert len({family.name for family in families}) == len(families)
        return {family.name: family for family in families}

    def value(self, name: str, **labels: str) -> float:
        found = [
            sample.value
            for family in self.collect().values()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert len(found) == 1, found
        return found[0]


def no_reports(watch: Watch) -> Reports:
    return Reports(watch.config, watch.clock, watch.beside, watch.sampled)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_every_metric_is_declared_and_no_other(bench: Bench) -> None:
    bench.pair(True)
    bench.spool.observe_latency(0, BOUNDS, 1000)
    bench.read()
    families = bench.collect()
    assert {name: family.type for name, family in families.items()} == {
        name: kind for name, (kind, _) in EXPECTED.items()
    }
    for name, family in families.items():
        for sample in family.samples:
            assert set(sample.labels) <= EXPECTED[name][1], name
        assert re.fullmatch(r"canarium_[a-z_]+", name)
        assert family.documentation.endswith(".")


def test_what_was_read_and_not_used_is_told_by_why(bench: Bench) -> None:
    table = bench.watch.snapshot.tables["m"]
    bench.watch.apply(Snapshot(2, 1, {"m": msgspec.structs.replace(table, epoch=5, since={"int8": 5})}))
    bench.pair(True)  # of epoch 1, before the candidate was armed again
    bench.read()
    assert bench.value("canarium_events_unused_total", reason="before_arming") == 1
    assert bench.value("canarium_events_unused_total", reason="foreign") == 0


def test_a_guard_that_pauses_shows_evidence_over_its_threshold(bench: Bench) -> None:
    for number in range(1600):
        bench.pair(number % 25 == 0, key=number + 1)  # over the limit, under the gross limit
        if number % 40 == 39:
            bench.read()
    verdict = next(one for one in bench.watch.verdicts()["m"] if one.guard == "agreement")
    assert (verdict.verdict, verdict.action) == ("fail", "pause")
    shown = bench.value("canarium_detector_log_evidence", variant="int8", guard="agreement")
    assert shown >= bench.value("canarium_detector_log_threshold", variant="int8", guard="agreement")


def test_every_promised_metric_is_exported_under_its_name() -> None:
    suffix = {"counter": "_total"}
    exported = {name + suffix.get(kind, "") for name, (kind, _) in EXPECTED.items()}
    assert {f"canarium_{name}" for name in PROMISED.split()} <= exported


def test_a_threshold_is_a_bucket_and_buckets_are_cumulative(bench: Bench) -> None:
    for milliseconds in (1, 119, 120, 121, 90_000):
        bench.spool.observe_latency(1, BOUNDS, milliseconds * 1_000_000)
    bench.read()
    assert bench.value("canarium_request_duration_seconds_bucket", variant="int8", le="0.12") == 3
    assert bench.value("canarium_request_duration_seconds_bucket", variant="int8", le="+Inf") == 5
    assert bench.value("canarium_request_duration_seconds_count", variant="int8") == 5
    assert bench.value("canarium_request_duration_seconds_sum", variant="int8") == pytest.approx(90.361)
    buckets = [
        s
        for s in bench.collect()["canarium_request_duration_seconds"].samples
        if s.labels.get("variant") == "int8" and "le" in s.labels
    ]
    assert [s.value for s in buckets] == sorted(s.value for s in buckets)


def test_counters_are_those_of_the_aggregates_and_outlive_their_gateway(bench: Bench) -> None:
    bench.spool.observe_status(1, 200)
    bench.spool.observe_status(1, 418)
    bench.spool.add(1, C_FALLBACK + Cause.TIMEOUT, 3)
    bench.spool.add(1, C_SHADOW_SHED, 4)
    bench.read()
    bench.spool.close()
    for _ in range(2):
        assert bench.value("canarium_requests_total", variant="int8", code="200") == 1
        assert bench.value("canarium_requests_total", variant="int8", code="other") == 1
        assert bench.value("canarium_fallbacks_total", variant="int8", cause="timeout") == 3
        assert bench.value("canarium_shadow_total", variant="int8", result="shed") == 4
        bench.read()
    assert bench.watch.ingest.gateways == []


def test_agreement_has_an_interval(bench: Bench) -> None:
    for n in range(40):
        bench.pair(n % 10 == 0, key=n)
    bench.read()
    assert bench.value("canarium_agreement_ratio", variant="int8") == pytest.approx(0.9, abs=0.02)
    assert bench.value("canarium_agreement_ratio_lower", variant="int8") < 0.8
    assert bench.value("canarium_agreement_ratio_upper", variant="int8") > 0.96
    assert bench.value("canarium_js_divergence", variant="int8") == pytest.approx(0.02, abs=1e-6)
    assert bench.value("canarium_kl_divergence", variant="int8") == pytest.approx(0.3, abs=1e-6)
    assert bench.value("canarium_kl_divergence_lower", variant="int8") < 0.3
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == pytest.approx(1)


async def test_calibration_by_the_teacher_is_a_metric_and_on_the_api(bench: Bench) -> None:
    for n in range(40):
        bench.pair(False, key=n)
    bench.read()
    error = bench.value("canarium_calibration_error", variant="int8", reference="teacher")
    assert error == pytest.approx(0.4)  # 0.9 sure, and the teacher gave 0.5
    assert bench.value("canarium_calibration_error_lower", variant="int8", reference="teacher") <= error
    assert bench.value("canarium_calibration_error_upper", variant="int8", reference="teacher") >= error
    app = build_app(
        CollectorRegistry(),
        dict,
        lambda _model, _seconds: None,
        bench.watch.calibration,
        lambda: {"ok": True},
        no_reports(bench.watch),
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        found = (await client.get("/v1/calibration/m")).json()
        assert (await client.get("/v1/calibration/nobody")).status_code == 404
    (report,) = found["reports"]
    assert (report["variant"], report["reference"], report["answers"]) == ("int8", "teacher", 40)
    assert report["ece_debiased"] == error


def test_exactly_one_verdict_holds(bench: Bench) -> None:
    bench.read()
    for guard in ("errors", "latency", "agreement", "harm", "invalid_output"):
        words = {
            sample.labels["verdict"]: sample.value
            for sample in bench.collect()["canarium_guard_verdict"].samples
            if sample.labels["guard"] == guard
        }
        assert sum(words.values()) == 1
        assert words["no_data"] == 1
        assert math.isfinite(bench.value("canarium_detector_log_threshold", guard=guard))


def test_objectives_are_shown_for_the_model_and_each_variant(bench: Bench) -> None:
    bench.read()
    bench.clock.advance(60)
    for status in [200] * 990 + [500] * 10:
        bench.spool.observe_status(0, status)
    bench.read()
    assert bench.value("canarium_slo_objective_ratio", variant="*", slo="availability") == 0.999
    assert bench.value("canarium_slo_burn_rate", variant="*", slo="availability", window="1h") == pytest.approx(10)
    assert bench.value("canarium_slo_error_budget_remaining_ratio", variant="*", slo="availability") == pytest.approx(
        -9
    )
    assert bench.value("canarium_slo_burn_rate", variant="int8", slo="latency", window="5m") == 0


def test_weights_and_kill_switch(bench: Bench) -> None:
    assert bench.value("canarium_traffic_weight", variant="int8") == 0.25
    assert bench.value("canarium_traffic_weight", variant="teacher") == 0.75
    bench.actuator.beat()
    assert bench.value("canarium_killswitch_state", model="m") == 0
    ControlWord.open(bench.config.word_path).latch_on(slot_key("m"))
    assert bench.value("canarium_killswitch_state", model="m") == 1
    assert bench.watch.snapshot is not None
    cleared = Snapshot(2, 1, bench.watch.snapshot.tables, {"m": Latch(1, 1), "*": Latch(2, 1)})
    assert bench.watch.apply(cleared)
    assert bench.value("canarium_killswitch_state", model="m") == 0
    assert bench.value("canarium_killswitch_state", model="*") == 1


def test_loss_degrades_the_verdicts(bench: Bench) -> None:
    bench.read()
    bench.clock.advance(1)
    for n in range(100):
        bench.pair(False, key=n)
    bench.read()
    assert bench.value("canarium_events_dropped_total", reason="overwritten") == 36
    assert bench.value("canarium_events_written_total") == 100
    assert bench.value("canarium_events_consumed_total") == 64
    assert "36.0 % of the last minute's records were lost" in bench.watch.degraded
    assert bench.value("canarium_guard_verdict", guard="agreement", verdict="degraded") == 1
    bench.clock.advance(120)
    bench.read()
    bench.read()
    assert bench.watch.degraded == ""


def test_a_snapshot_of_an_older_lease_is_refused(bench: Bench) -> None:
    assert bench.watch.snapshot is not None
    newer = Snapshot(5, 3, bench.watch.snapshot.tables)
    assert bench.watch.apply(newer)
    assert not bench.watch.apply(Snapshot(9, 2, {}))
    assert bench.watch.snapshot == newer


def test_everything_survives_a_restart(bench: Bench, tmp_path: Path) -> None:
    for n in range(30):
        bench.pair(n % 3 == 0, key=n)
    bench.spool.record(Kind.LABEL, request_key=3, series=1, answered=1, cls=0, wall_ns=bench.clock.wall_ns())
    bench.spool.record(
        Kind.REQUEST, Flag.LIVE, request_key=3, series=1, answered=1, status=200, epoch=1, wall_ns=bench.clock.wall_ns()
    )
    bench.read()
    before = {name: str(family.samples) for name, family in bench.collect().items()}
    write(tmp_path / "state", bench.watch.state(bench.actuator.state()))
    stored = read(tmp_path / "state")
    assert stored is not None
    bench.watch = Watch(bench.config, bench.clock)
    bench.watch.restore(stored)
    bench.actuator.load(stored.actuator)
    bench.read()
    after = {name: str(family.samples) for name, family in bench.collect().items()}
    assert after == before
    assert bench.value("canarium_labels_joined_total", variant="int8") == 1


@pytest.mark.parametrize("damage", [b"", b"\x00", b"\x85\xa7version"])
def test_a_damaged_state_is_set_aside(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "state.msgpack").write_bytes(damage)
    assert read(tmp_path) is None
    assert (tmp_path / "state.msgpack.bad").read_bytes() == damage
    assert read(tmp_path) is None


def test_a_heartbeat_that_stops_shows(bench: Bench) -> None:
    bench.actuator.beat()
    at = bench.clock.wall_ns() / 1e9
    bench.clock.advance(30)
    assert bench.value("canarium_monitor_heartbeat_timestamp_seconds") == at


@pytest.mark.parametrize(
    ("configured", "named", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8002", 200),
        ("127.0.0.1", "LOCALHOST:8002", 200),
        ("127.0.0.1", "evil.example:8002", 403),
        ("127.0.0.1", "127.0.0.1:9999", 403),
        ("127.0.0.1", "127.0.0.1", 403),
        ("10.1.2.3", "10.1.2.3:8002", 200),
        ("::1", "[::1]:8002", 200),
        ("monitor.internal", "monitor.internal:8002", 200),
        ("0.0.0.0", "any.name:1", 200),
    ],
)
async def test_only_its_own_names_are_served(tmp_path: Path, configured: str, named: str, status: int) -> None:
    watch = Bench(tmp_path).watch
    app = build_app(
        CollectorRegistry(),
        dict,
        lambda _model, _seconds: None,
        lambda _model: None,
        lambda: {"ok": True},
        no_reports(watch),
        allowed_hosts(configured, 8002),
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        for path in ("/metrics", "/healthz", "/v1/verdicts", "/v1/reports"):
            answer = await client.get(path, headers={"host": named})
            assert answer.status_code == status


def test_the_state_of_a_rollout_is_one_of_all_states(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    tables = bench.watch.snapshot.tables if bench.watch.snapshot else {}
    bench.watch.apply(Snapshot(2, 1, tables, rollouts={"m/int8": "ramping"}))
    (family,) = [family for name, family in bench.collect().items() if name == "canarium_rollout_state"]
    states = {sample.labels["state"]: sample.value for sample in family.samples}
    assert set(states) == set(ROLLOUT_STATES)
    assert {state for state, value in states.items() if value} == {"ramping"}


def test_a_heartbeat_counts_what_rollouts_wait_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for flip in (True, False, True):
        bench.pair(flip)
    bench.spool.set_gauge(bench.ids["int8"], C_WORKERS, 2)
    bench.read()
    assert bench.watch.counts()["m"]["int8"] == {"live": 0, "pairs": 3, "suspect": 2.0, "workers": 2}


def test_a_heartbeat_says_what_predictions_rest_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for _ in range(30):
        bench.spool.record(
            Kind.REQUEST, Flag.LIVE, series=bench.ids["teacher"], answered=bench.ids["teacher"], status=200, rows=1,
            epoch=1, total_us=900, wall_ns=bench.clock.wall_ns(),
        )  # fmt: skip
    bench.clock.advance(5)
    bench.read()
    said = bench.watch.assumptions()["m"]["int8"]
    assert (said["rate"], said["errors"]) == (0.5, pytest.approx(0.001))
    assert set(said) == {"rate", "reference", "agreement", "disagreement", "errors", "alpha", "pass_alpha"}
