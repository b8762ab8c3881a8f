"""Activations outside the ranges of an INT8 model: what an audit counts, when one is made, and what follows from it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import qdq_kit

from monitoring.config import GuardSettings, MonitorConfig, MonitorModel, MonitorVariant, SaturationSettings
from monitoring.watch import Watch
from serving.clock import FakeClock
from serving.config_monitoring import GuardsConfig, OodGuard, SaturationGuard
from serving.contract import RouteTable, Snapshot, VariantEntry
from serving.gateway.auditor import AUDIT, Auditor, auditor_of, packed, unpacked
from serving.gateway.frames import FrameKind, decode, encode
from serving.gateway.recorder import Recorder
from serving.gateway.spool import SpoolWriter
from serving.gateway.worker_server import WorkerServer
from serving.gateway.workers import HandleWorker, LocalWorker
from serving.runtimes.audit import Audit, RowAudit
from serving.runtimes.onnx import OnnxSession
from serving.runtimes.saturation import ranges_of, sqnr_db

ROW = np.array([[1.0, 2.0, 5.0, -3.0]], np.float32)


def wanted(saturation_s: float, embedding_s: float = 0.0) -> GuardsConfig:
    return GuardsConfig(saturation=SaturationGuard(every_s=saturation_s), ood=OodGuard(every_s=embedding_s))


def at_once(work: Callable[[], None]) -> None:
    work()


class TestAudit:
    def test_each_tensor_is_held_to_its_own_range(self, tmp_path: Path) -> None:
        audit = RowAudit(qdq_kit.write_model(tmp_path))
        step, hidden_step = 4 / 127, 4 / 255
        assert {one.name: (one.low, one.high) for one in audit.ranges} == {
            "x": (pytest.approx(-128.5 * step), pytest.approx(127.5 * step)),
            "hidden": (-np.inf, pytest.approx(255.5 * hidden_step)),  # zero is its end: negative values are a ReLU's
        }
        # x: 5 of four values. hidden: that was clipped to 4 on the way, which its range holds.
        assert audit.run({"x": ROW})[:2] == (0.125, 0.25)

    def test_a_scale_that_is_too_small_shows_inside(self, tmp_path: Path) -> None:
        audit = RowAudit(qdq_kit.write_model(tmp_path, range_=8.0, hidden_range=1.5))
        assert audit.run({"x": ROW})[:2] == (0.25, 0.5)

    def test_rounding_to_the_edge_is_no_saturation(self, tmp_path: Path) -> None:
        audit = RowAudit(qdq_kit.write_model(tmp_path))
        edge = np.full((1, 4), 4.0 + 0.4 * 4 / 127, np.float32)
        assert audit.run({"x": edge}).share == 0.0

    def test_what_is_no_number_is_outside(self, tmp_path: Path) -> None:
        audit = RowAudit(qdq_kit.write_model(tmp_path))
        assert audit.run({"x": np.full((1, 4), np.nan, np.float32)}).worst == 1.0

    def test_what_rounding_costs_is_told_in_decibels(self, tmp_path: Path) -> None:
        """Uniform rounding over a step has a noise of step² / 12 (Bennett, 1948); the first layer's input is ±8."""
        audit = RowAudit(qdq_kit.write_model(tmp_path, range_=8.0, hidden_range=8.0))
        x = np.random.default_rng(1).uniform(-7.5, 7.5, (500, 4)).astype(np.float32)
        expected = 10 * np.log10(np.mean(x**2) / ((8 / 127) ** 2 / 12))
        assert sqnr_db(x, audit.ranges[0].held(x)) == pytest.approx(expected, abs=0.5)
        # What is below zero in `hidden` is a ReLU's to cut, and no noise: its steps are half as wide.
        assert audit.run({"x": x}).worst_sqnr_db == pytest.approx(expected, abs=1.5)

    def test_clipping_costs_more_than_rounding(self, tmp_path: Path) -> None:
        narrow, wide = tmp_path / "narrow", tmp_path / "wide"
        for folder, range_ in ((narrow, 4.0), (wide, 6.0)):
            folder.mkdir()
            qdq_kit.write_model(folder, range_=range_, hidden_range=6.0)
        clipped, rounded = (RowAudit(folder / "model.onnx").run({"x": ROW}) for folder in (narrow, wide))
        assert clipped.worst_sqnr_db < 20 < rounded.worst_sqnr_db
        assert clipped.worst_sqnr_db < clipped.sqnr_db

    def test_a_tensor_without_a_signal_has_no_ratio(self, tmp_path: Path) -> None:
        audit = RowAudit(qdq_kit.write_model(tmp_path)).run({"x": np.zeros((1, 4), np.float32)})
        assert np.isnan([audit.sqnr_db, audit.worst_sqnr_db]).all()

    def test_a_model_without_fixed_ranges_has_none(self, tmp_path: Path) -> None:
        model = onnx.load(qdq_kit.write_model(tmp_path))
        kept = [node for node in model.graph.node if node.op_type != "QuantizeLinear"]
        del model.graph.node[:]
        model.graph.node.extend(kept)
        assert ranges_of(model) == []
        onnx.save(model, tmp_path / "plain.onnx")
        with pytest.raises(ValueError, match="no activation is quantized"):
            RowAudit(tmp_path / "plain.onnx")


class Scripted:
    """Audits whose shares are given, and the rows that it saw."""

    def __init__(self, fails: bool = False) -> None:
        self.rows: list[Mapping[str, np.ndarray]] = []
        self._fails = fails

    def run(self, inputs: Mapping[str, np.ndarray]) -> Audit:
        self.rows.append(inputs)
        if self._fails:
            raise RuntimeError("no")
        return Audit(0.1, 0.2)


class TestAuditor:
    def test_one_row_every_so_many_seconds(self) -> None:
        clock, scripted = FakeClock(), Scripted()
        auditor = Auditor(lambda: scripted, {}, every_s=2, clock=clock, start=at_once)
        batch = {"x": np.arange(8.0).reshape(2, 4)}
        for _ in range(100):  # 5 seconds
            auditor.offer(batch)
            clock.advance(0.05)
        batch["x"][:] = -1
        assert [row["x"].tolist() for row in scripted.rows] == [[[0, 1, 2, 3]]] * 3
        assert auditor.take() == [Audit(0.1, 0.2)] * 3
        assert auditor.take() == []

    def test_never_two_at_once(self) -> None:
        clock, waiting = FakeClock(), list[Callable[[], None]]()
        auditor = Auditor(Scripted, {}, every_s=1, clock=clock, start=waiting.append)
        for _ in range(5):
            auditor.offer({"x": ROW})
            clock.advance(10)
        assert len(waiting) == 1
        waiting[0]()
        auditor.offer({"x": ROW})
        assert len(waiting) == 2

    def test_what_fails_is_said_once_and_hurts_nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said: list[str] = []
        monkeypatch.setattr("serving.gateway.auditor.log.warning", lambda text, *values: said.append(text % values))
        clock, scripted = FakeClock(), Scripted(fails=True)
        auditor = Auditor(lambda: scripted, {}, every_s=1, clock=clock, start=at_once)
        for _ in range(5):
            auditor.offer({"x": ROW})
            clock.advance(10)
        assert (len(scripted.rows), auditor.take()) == (1, [])
        assert said == ["no row is audited: no"]

    def test_other_artifacts_have_none(self, tmp_path: Path) -> None:
        clock = FakeClock()
        assert auditor_of(qdq_kit.manifest(), tmp_path, wanted(1.0), clock) is not None
        assert auditor_of(qdq_kit.manifest(), tmp_path, wanted(0.0), clock) is None
        assert auditor_of(qdq_kit.manifest(quantization={"method": "dynamic"}), tmp_path, wanted(1.0), clock) is None

    def test_a_damaged_tensor_is_no_audit(self) -> None:
        assert unpacked(packed([Audit(0.5, 1.0, 0.25, 32.0, 16.0)])) == [Audit(0.5, 1.0, 0.25, 32.0, 16.0)]
        assert unpacked(np.zeros(3, np.float32)) == []


class TestWorkers:
    async def test_an_audit_goes_with_a_later_answer_of_a_replica(self, tmp_path: Path) -> None:
        qdq_kit.write_model(tmp_path)
        clock, made = FakeClock(), qdq_kit.manifest()
        auditor = Auditor(
            lambda: RowAudit(tmp_path / "model.onnx"), made.layout.inputs, every_s=1, clock=clock, start=at_once
        )
        server = WorkerServer(OnnxSession(made, tmp_path), None, clock=clock, auditor=auditor)
        frames: list[frozenset[str]] = []

        async def call(frame: bytes) -> bytes:
            answer = await server.handle_frame(frame)
            frames.append(frozenset(decode(answer).tensors))
            return answer

        worker, told = HandleWorker("w", call), list[Audit]()
        worker.on_audits = told.extend
        for _ in range(3):
            assert list(await worker.run({"x": ROW})) == ["logits"]
        assert frames == [{"logits"}, {"logits", AUDIT}, {"logits"}]
        assert [audit[:2] for audit in told] == [(0.125, 0.25)]
        await worker.close()
        await server.close()

    async def test_an_audit_that_does_not_fit_is_left_out(self) -> None:
        outputs = {"y": np.zeros(4, np.float32)}
        room = sum(map(len, encode(FrameKind.OK, 1, outputs)))
        auditor = Auditor(Scripted, {}, every_s=0.001, clock=FakeClock(), start=at_once)

        class Constant:
            def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
                return outputs

            def close(self) -> None:
                pass

        server = WorkerServer(Constant(), None, max_frame=room, auditor=auditor)
        request = b"".join(encode(FrameKind.RUN, 1, {"x": np.zeros(1, np.float32)}))
        for _ in range(2):
            frame = decode(await server.handle_frame(request))
            assert (frame.kind, list(frame.tensors)) == (FrameKind.OK, ["y"])
        await server.close()

    async def test_a_replica_tells_how_long_a_batch_ran_whatever_waited_before_it(self) -> None:
        clock = FakeClock()

        class Slow:
            def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
                clock.advance(0.25)
                return {"y": inputs["x"]}

            def close(self) -> None:
                pass

        server = WorkerServer(Slow(), None, clock=clock)
        workers = [HandleWorker(f"gateway-{n}", server.handle_frame) for n in range(2)]
        await asyncio.gather(*(worker.run({"x": ROW}) for worker in workers))
        assert [worker.ran_ns for worker in workers] == [250_000_000] * 2
        for worker in workers:
            await worker.close()
        await server.close()

    async def test_a_colocated_worker_tells_likewise(self, tmp_path: Path) -> None:
        qdq_kit.write_model(tmp_path)
        auditor = Auditor(lambda: RowAudit(tmp_path / "model.onnx"), {}, every_s=1, clock=FakeClock(), start=at_once)
        worker, told = LocalWorker("w", OnnxSession(qdq_kit.manifest(), tmp_path), auditor), list[Audit]()
        worker.on_audits = told.extend
        for _ in range(2):
            await asyncio.wait_for(worker.run({"x": ROW}), 10)
        assert [audit[:2] for audit in told] == [(0.125, 0.25)]
        await worker.close()
        assert worker.on_audits is None


class Bench:
    """A gateway's spool and the monitor that reads it."""

    def __init__(self, folder: Path, measured: float | None = 0.0, **settings: float) -> None:
        self.clock = FakeClock()
        variants = {"teacher": MonitorVariant(1), "int8": MonitorVariant(2, saturation=measured)}
        guards = GuardSettings(saturation=SaturationSettings(**settings))
        self.config = MonitorConfig(
            "i", str(folder / "spool"), str(folder / "state"), str(folder / "word"), "http://127.0.0.1:1",
            {"m": MonitorModel("teacher", "teacher", variants, guards=guards)},
        )  # fmt: skip
        self.watch = Watch(self.config, self.clock)
        entries = {name: VariantEntry(name, item.version, f"m/{name}:1") for name, item in variants.items()}
        self.watch.apply(
            Snapshot(1, 1, {"m": RouteTable("m", 1, "s", "teacher", "teacher", entries, shadow={"int8": 500})})
        )
        self.spool = SpoolWriter.create(self.config.spool_dir, "g0", self.clock, 4096)
        self.recorder = Recorder(self.spool, self.clock, "")
        self.recorder.model("m", [1.0], [])

    def audits(self, share: float, times: int) -> None:
        for _ in range(times):
            self.recorder.audit("m", "int8", Audit(share, 2 * share, sqnr_db=30.0, worst_sqnr_db=12.0))
        self.watch.tick()
        while self.watch.step()[0]:
            pass

    def verdict(self) -> tuple[str, str, str]:
        found = next(one for one in self.watch.verdicts()["m"] if one.guard == "saturation")
        return found.verdict, found.action, found.sentence


class TestGuard:
    def test_a_wrong_scale_pauses(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path)
        assert bench.verdict()[0] == "no_data"
        bench.audits(0.08, 12)
        verdict, action, sentence = bench.verdict()
        assert (verdict, action) == ("fail", "pause")
        assert sentence.startswith(
            "8.00 % of int8's activations are outside their calibrated ranges, on 12 audited rows (one tensor up to "
            "16.00 %), over the limit of 1.00 %: evidence e^"
        )
        assert bench.watch.models["m"].saturation.means == {"int8": pytest.approx(0.08)}
        assert bench.watch.models["m"].noise.means == {"int8": 30.0}
        assert bench.watch.flow().consumed == 12
        assert bench.watch.flow().dropped == 0

    def test_a_sound_one_passes_in_time(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path)
        bench.audits(0.0005, 100)
        assert bench.verdict()[0] == "inconclusive"
        bench.audits(0.0005, 700)
        assert bench.verdict()[0] == "pass"

    @pytest.mark.parametrize(("measured", "limit"), [(0.0, 0.01), (0.001, 0.01), (0.01, 0.05), (0.5, 0.95)])
    def test_the_limit_is_five_times_what_was_measured_and_at_least_one_percent(
        self, tmp_path: Path, measured: float, limit: float
    ) -> None:
        guard = Bench(tmp_path, measured).watch.models["m"].guards.candidates["int8"].guards["saturation"]
        assert guard.detector.numbers()["limit"] == pytest.approx(limit)

    def test_nobody_is_watched_who_has_no_ranges_or_no_audits(self, tmp_path: Path) -> None:
        for name, bench in (
            ("fp32", Bench(tmp_path / "a", None)),
            ("unaudited", Bench(tmp_path / "b", 0.0, every_s=0.0)),
        ):
            assert "saturation" not in bench.watch.models["m"].guards.candidates["int8"].guards, name

    def test_a_restart_of_the_monitor_loses_nothing(self, tmp_path: Path) -> None:
        from monitoring.state import read, write

        bench = Bench(tmp_path)
        bench.audits(0.004, 30)
        write(bench.config.state_dir, bench.watch.state({}))
        resumed = Watch(bench.config, bench.clock)
        stored = read(bench.config.state_dir)
        assert stored is not None
        resumed.restore(stored)
        for each in ("saturation", "noise"):
            assert getattr(resumed.models["m"], each).means == getattr(bench.watch.models["m"], each).means != {}
        assert resumed.models["m"].guards.state() == bench.watch.models["m"].guards.state()
