"""Answers to unfamiliar inputs: when it is said, of whom, and that nothing follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import qdq_kit

from monitoring.config import GuardSettings, MonitorModel, MonitorVariant
from monitoring.detectors.ood import Ood
from monitoring.event import Event
from monitoring.guard import ModelGuards
from monitoring.verdicts import Verdict
from serving.config import parse_config
from serving.contract import GUARD_ROLES, Cause, Kind, RouteTable, Snapshot, VariantEntry
from serving.errors import RegistryError
from serving.monitor_settings import ENERGY_ROWS, _energy, monitor_settings
from serving.registry.manifest import GOLDEN_FILE, REFERENCE_FILE
from serving.registry.store import Registry

DAY_NS = 86_400_000_000_000
HOUR_NS = DAY_NS // 24


class TestDetector:
    def test_false_alarms_stay_within_the_budget(self) -> None:
        """400 streams at the very limit, looked at after each answer; over 33 by chance once in a thousand times."""
        alarms = 0
        for run in range(400):
            guard = Ood(0.0, 0.01, 0.02, alpha=0.05)
            for energy in (np.random.default_rng(run).random(1500) - 0.97).tolist():
                guard.observe(energy)
            alarms += guard.failed
        assert alarms <= 33

    def test_a_stream_like_the_held_out_rows_is_quiet(self) -> None:
        rng = np.random.default_rng(1)
        guard = Ood(float(np.quantile(rng.normal(-4, 1, 800), 0.99)), alpha=0.002)
        assert not any(guard.observe(energy) for energy in rng.normal(-4, 1, 20_000).tolist())

    def test_a_shifted_stream_is_found(self) -> None:
        guard = Ood(float(np.quantile(np.random.default_rng(1).normal(-4, 1, 800), 0.99)), alpha=0.002)
        shifted = np.random.default_rng(2).normal(-3, 1, 2000).tolist()
        assert next(n for n, energy in enumerate(shifted, 1) if guard.observe(energy)) < 200

    def test_what_is_no_number_is_no_answer(self) -> None:
        guard = Ood()
        guard.observe(float("nan"))
        assert guard.no_data


def guards(
    weights: dict[str, int] | None = None,
    shadow: dict[str, int] | None = None,
    baseline: str = "teacher",
    **more: Any,
) -> ModelGuards:
    variants = {"teacher": MonitorVariant(1, energy_threshold=-2.0), "int8": MonitorVariant(2, energy_threshold=-2.5)}
    watched = ModelGuards("m", MonitorModel("teacher", "teacher", variants, guards=GuardSettings(**more)))
    entries = {name: VariantEntry(name, one.version, f"m/{name}:1") for name, one in variants.items()}
    spans = {name: ((0, share),) for name, share in (weights or {}).items()}
    table = RouteTable("m", 1, "s", baseline, "teacher", entries, spans, dict.fromkeys(spans, 1), shadow or {})
    watched.configure(Snapshot(1, 1, {"m": table}))
    return watched


def answer(variant: str, energy: float, **more: Any) -> Event:
    given = {"answered": variant, "epoch": 1, "cls": 0, "energy": energy, "wall_ns": DAY_NS, "request_key": 7, **more}
    return Event(Kind.REQUEST, variant, **given)


def feed(watched: ModelGuards, event: Event, times: int = 1) -> None:
    for _ in range(times):
        watched.observe(event)


def of(watched: ModelGuards, variant: str) -> Verdict:
    return next(one for one in watched.verdicts() if (one.guard, one.variant) == ("ood", variant))


class TestGuard:
    def test_a_shift_is_said_of_baseline_and_candidate_and_trips_nobody(self) -> None:
        watched = guards({"int8": 1000})
        for n in range(300):
            feed(watched, answer("teacher", -1.0 if n % 10 == 0 else -5.0))
            feed(watched, answer("int8", -1.0 if n % 10 == 0 else -5.0))
        for variant in ("teacher", "int8"):
            verdict = of(watched, variant)
            assert (verdict.verdict, verdict.action) == ("fail", "alert")
            assert verdict.sentence.startswith(f"30 of 300 answers of {variant} (10.0 %) have an energy over -2")
            assert verdict.example_request_keys == [f"{7:016x}"] * 5
        assert watched.trips() == []
        assert not GUARD_ROLES["ood"].passes

    def test_an_answer_counts_for_who_gave_it(self) -> None:
        watched = guards({"int8": 1000})
        feed(watched, answer("int8", 5.0, answered="teacher", cause=Cause.ERROR), 50)  # a fallback
        feed(watched, answer("int8", 5.0, status=500, cls=-1), 50)
        assert of(watched, "int8").verdict == "no_data"

    def test_copies_are_enough_for_a_candidate(self) -> None:
        watched = guards(shadow={"int8": 5000})
        copy = Event(Kind.SHADOW, "int8", "teacher", epoch=1, cls=0, energy=-1.0, wall_ns=DAY_NS)
        feed(watched, copy, 50)
        assert of(watched, "int8").verdict == "fail"

    def test_what_is_counted_of_the_baseline_begins_anew_every_day(self) -> None:
        watched = guards()
        feed(watched, answer("teacher", -5.0), 20)
        feed(watched, answer("teacher", -5.0, wall_ns=2 * DAY_NS))
        assert of(watched, "teacher").statistic["observations"] == 1

    def test_an_alarm_of_the_baseline_lasts_a_day_with_the_numbers_that_it_rests_on(self) -> None:
        watched = guards()
        feed(watched, answer("teacher", -5.0), 10)
        feed(watched, answer("teacher", 0.0, wall_ns=DAY_NS + 3 * HOUR_NS), 20)
        threshold = of(watched, "teacher").statistic["log_threshold"]
        feed(watched, answer("teacher", -5.0, wall_ns=2 * DAY_NS + HOUR_NS), 5000)  # the next day, by what is counted
        verdict = of(watched, "teacher")
        assert (verdict.verdict, verdict.statistic["events"]) == ("fail", 20)
        assert verdict.statistic["log_threshold"] == threshold
        feed(watched, answer("teacher", -5.0, wall_ns=2 * DAY_NS + 3 * HOUR_NS), 10)
        verdict = of(watched, "teacher")
        counted = verdict.statistic["observations"], verdict.statistic["events"]
        assert (verdict.verdict, *counted) == ("inconclusive", 10, 0)

    def test_records_a_little_out_of_order_begin_no_new_day(self) -> None:
        """Files are read one after the other: that must not make the next day's traffic look like none."""
        watched = guards()
        for n in range(10_001):
            feed(watched, answer("teacher", -5.0, wall_ns=DAY_NS + n * DAY_NS // 10_000))
        threshold = of(watched, "teacher").statistic["log_threshold"]
        feed(watched, answer("teacher", -5.0, wall_ns=2 * DAY_NS - 10**9))
        assert of(watched, "teacher").statistic["log_threshold"] == threshold > 13

    def test_whoever_becomes_the_baseline_is_watched_as_one(self) -> None:
        """200,000 sound answers, then every third is odd: a test would have to forget them first."""
        promoted = guards(baseline="int8")
        feed(promoted, answer("int8", -5.0), 200_000)
        for n in range(300):
            feed(promoted, answer("int8", 0.0 if n % 3 == 0 else -5.0))
        assert of(promoted, "int8").verdict == "fail"
        for n in range(60_000):
            feed(promoted, answer("teacher", 0.0 if n % 100 == 0 else -5.0))
        assert all(one.verdict != "fail" for one in promoted.judged("teacher"))

    def test_more_traffic_means_more_evidence_for_an_alarm(self) -> None:
        """One false alarm in 90 days is one in so many more answers."""
        thresholds = []
        for step_ns in (10**10, 10**9):  # an answer in ten seconds, and one a second
            watched = guards()
            for n in range(5000):
                feed(watched, answer("teacher", -5.0, wall_ns=DAY_NS + n * step_ns))
            thresholds.append(of(watched, "teacher").statistic["log_threshold"])
        assert thresholds[1] - thresholds[0] > 1.5
        assert thresholds[1] == pytest.approx(15.87, abs=0.05)  # 86,400 answers a day for 90 days

    def test_it_is_stored_and_goes_on(self) -> None:
        watched = guards({"int8": 1000})
        feed(watched, answer("teacher", 0.0), 3)
        feed(watched, answer("int8", 0.0), 3)
        resumed = guards({"int8": 1000})
        resumed.load(msgspec.msgpack.decode(msgspec.msgpack.encode(watched.state())))
        assert resumed.state() == watched.state()

    def test_without_energies_of_held_out_rows_there_is_none(self) -> None:
        watched = ModelGuards("m", MonitorModel("teacher", "teacher", {"teacher": MonitorVariant(1)}))
        feed(watched, answer("teacher", 100.0), 50)
        assert watched.verdicts() == []


@pytest.mark.parametrize(("rows", "expected"), [(ENERGY_ROWS - 1, None), (1000, 990.0)])
def test_the_threshold_is_the_99th_percentile_of_the_builds_rows(
    tmp_path: Path, rows: int, expected: float | None
) -> None:
    qdq_kit.write_model(tmp_path)
    columns = {"energy": [float(n) for n in range(rows)], "class": ["ham"] * rows}
    reference = {"schema": "canarium.reference/v1", "split": "validation", "rows": rows, "columns": columns}
    (tmp_path / REFERENCE_FILE).write_bytes(msgspec.json.encode(reference))
    registry, made = Registry(tmp_path / "registry"), qdq_kit.manifest()
    stored = registry.register(
        "m", "v", {name: tmp_path / name for name in ("model.onnx", REFERENCE_FILE)},
        format="onnx", entry="model.onnx", signature=made.signature, session=made.session,
    )  # fmt: skip
    assert _energy(registry, stored) == expected


def test_what_the_monitor_is_given_to_read_was_verified(tmp_path: Path) -> None:
    """A blob and the tree's file are one until somebody puts another in the place of either."""
    qdq_kit.write_model(tmp_path)
    (tmp_path / REFERENCE_FILE).write_bytes(
        b'{"schema": "canarium.reference/v1", "split": "v", "rows": 0, "columns": {}}'
    )
    (tmp_path / GOLDEN_FILE).write_bytes(b"{}\n")
    registry, made = Registry(tmp_path / "registry"), qdq_kit.manifest()
    stored = registry.register(
        "m", "v", {name: tmp_path / name for name in ("model.onnx", REFERENCE_FILE, GOLDEN_FILE)},
        format="onnx", entry="model.onnx", signature=made.signature, session=made.session,
    )  # fmt: skip
    config = parse_config(
        {
            "apiVersion": "canarium/v1",
            "registry": {"dir": str(registry.root)},
            "models": {"m": {"baseline": "v", "variants": {"v": {"artifact": "m/v:1"}}}},
        }
    )
    for name in (REFERENCE_FILE, GOLDEN_FILE):
        blob, file = registry.blobs.path(stored.files[name].sha256), registry.trees.path(stored) / name
        original = blob.read_bytes()
        blob.unlink()
        blob.write_bytes(b"tampered")
        watched = monitor_settings(config).models["m"].variants["v"]
        read = watched.reference if name == REFERENCE_FILE else watched.golden
        assert Path(read).read_bytes() == original
        file.unlink()
        file.write_bytes(b"tampered")
        with pytest.raises(RegistryError, match=f"m/v:1: {name} is damaged"):
            monitor_settings(config)
        file.write_bytes(original)
    manifest_path = registry.manifest_path(stored)
    manifest_path.chmod(0o644)
    manifest_path.write_bytes(manifest_path.read_bytes().replace(b'"temperature": 1.0', b'"temperature": 9.0'))
    with pytest.raises(RegistryError, match="its manifest is damaged"):
        monitor_settings(config)
