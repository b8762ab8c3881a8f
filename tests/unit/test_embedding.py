"""How far inputs are from the training rows, as the model sees them: what is measured, and what follows from it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import qdq_kit
from onnx import TensorProto, helper, numpy_helper

from monitoring.config import GuardSettings, MonitorModel, MonitorVariant, OodSettings
from monitoring.event import Event
from monitoring.guard import ModelGuards
from monitoring.verdicts import Verdict
from serving.build.familiar import fit
from serving.clock import FakeClock
from serving.config_monitoring import GuardsConfig, OodGuard, SaturationGuard
from serving.contract import GUARD_ROLES, Kind, RouteTable, Snapshot, VariantEntry
from serving.gateway.auditor import auditor_of
from serving.registry.manifest import EMBEDDING_FILE, File
from serving.runtimes.audit import RowAudit
from serving.runtimes.embedding import Familiar, pooled, tail_of

RNG_SEED = 3


def two_classes(rows: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    classes = random.integers(0, 2, rows)
    return np.stack([6.0 * classes, 0.0 * classes, -6.0 * classes], axis=1) + random.normal(0, 1, (rows, 3)), classes


@pytest.fixture(scope="module")
def familiar() -> Familiar:
    random = np.random.default_rng(RNG_SEED)
    known, classes = two_classes(2000, random)
    return fit(known, classes, two_classes(1000, random)[0])


class TestFamiliar:
    def test_one_percent_of_held_out_rows_is_over_the_threshold(self, familiar: Familiar) -> None:
        fresh, _ = two_classes(20_000, np.random.default_rng(RNG_SEED + 1))
        assert np.mean(familiar.distances(fresh) > 1) == pytest.approx(0.01, abs=0.005)

    def test_what_lies_between_the_classes_is_far(self, familiar: Familiar) -> None:
        """The mean of all rows is nobody's place: distances are to the nearest class, not to the middle."""
        at_home, between = familiar.distances(np.array([[6.0, 0.0, -6.0], [3.0, 0.0, -3.0]]))
        assert at_home < 0.2
        assert between > 1.0

    def test_directions_count_by_how_much_rows_vary_in_them(self) -> None:
        random = np.random.default_rng(RNG_SEED)
        rows = random.normal(0, 1, (3000, 2)) * [10.0, 0.1]
        found = fit(rows[:2000], np.zeros(2000, int), rows[2000:])
        along, across = found.distances(np.array([[15.0, 0.0], [0.0, 15.0]]))
        assert along < 1 < 30 < across

    @pytest.mark.parametrize("rows", [1, 64])
    def test_of_many_classes_little_memory_is_taken(self, rows: int) -> None:
        """All gaps at once would be 64 × 2000 × 96 numbers of 8 bytes."""
        random = np.random.default_rng(RNG_SEED)
        whitening = np.linalg.cholesky(np.cov(random.normal(0, 1, (96, 400)))).astype(np.float32)
        found = Familiar(random.normal(0, 1, (2000, 96)).astype(np.float32), whitening, 2.0)
        asked = random.normal(0, 1, (rows, 96))
        tracemalloc.start()
        distances = found.distances(asked)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 24e6
        gaps = [(row - found.means.astype(float)) @ whitening.astype(float) for row in asked]
        expected = [np.sqrt(np.square(each).sum(axis=1).min()) / 2.0 for each in gaps]
        assert distances == pytest.approx(expected, rel=1e-9)

    def test_what_is_no_number_is_at_no_distance(self, familiar: Familiar) -> None:
        assert np.isnan(familiar.distances(np.array([[np.nan, 0.0, 0.0]]))).all()

    def test_a_unit_that_never_fires_does_not_break_it(self) -> None:
        rows = np.random.default_rng(RNG_SEED).normal(0, 1, (800, 3)) * [1.0, 1.0, 0.0]
        found = fit(rows[:400], np.zeros(400, int), rows[400:])
        assert np.isfinite(found.distances(np.array([[0.0, 0.0, 5.0]]))).all()

    def test_it_is_read_as_it_was_written(self, familiar: Familiar, tmp_path: Path) -> None:
        path = tmp_path / EMBEDDING_FILE
        familiar.write(path)
        row = np.array([[1.0, 2.0, 3.0]])
        assert Familiar.read(path).distances(row) == familiar.distances(row)
        again = tmp_path / "again"
        familiar.write(again)
        assert path.read_bytes() == again.read_bytes()

    @pytest.mark.parametrize("damage", ["cut", "shape", "missing"])
    def test_a_damaged_file_is_refused_by_name(self, familiar: Familiar, tmp_path: Path, damage: str) -> None:
        path = tmp_path / EMBEDDING_FILE
        if damage == "shape":
            familiar._replace(whitening=np.eye(2, dtype=np.float32)).write(path)
        elif damage == "missing":
            from safetensors.numpy import save_file

            save_file({"means": familiar.means}, path)
        else:
            familiar.write(path)
            path.write_bytes(path.read_bytes()[:-5])
        with pytest.raises(ValueError, match=r"^embedding\.safetensors: "):
            Familiar.read(path)

    def test_tokens_count_together(self) -> None:
        assert pooled(np.arange(12.0).reshape(1, 3, 4)).tolist() == [[4.0, 5.0, 6.0, 7.0]]


def graph(*nodes: onnx.NodeProto, **weights: np.ndarray) -> onnx.ModelProto:
    return helper.make_model(
        helper.make_graph(
            list(nodes), "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
            [numpy_helper.from_array(value, name) for name, value in weights.items()],
        )
    )  # fmt: skip


WEIGHT, BIAS = np.ones((4, 2), np.float32), np.ones(2, np.float32)


class TestTail:
    def test_of_a_layer_with_a_bias_that_is_added(self) -> None:
        model = graph(
            helper.make_node("Relu", ["x"], ["hidden"]),
            helper.make_node("MatMul", ["hidden", "w"], ["y"]),
            helper.make_node("Add", ["b", "y"], ["logits"]),
            w=WEIGHT, b=BIAS,
        )  # fmt: skip
        assert tail_of(model, "logits") == "hidden"

    def test_of_a_layer_whose_weights_are_8_bits(self, tmp_path: Path) -> None:
        assert tail_of(onnx.load(qdq_kit.write_model(tmp_path)), "logits") == "xd"

    def test_of_a_layer_that_is_quantized_as_it_runs(self) -> None:
        model = graph(
            helper.make_node("Relu", ["x"], ["hidden"]),
            helper.make_node("DynamicQuantizeLinear", ["hidden"], ["q", "scale", "zero"]),
            helper.make_node("MatMulInteger", ["q", "w8", "zero"], ["whole"]),
            helper.make_node("Cast", ["whole"], ["real"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["real", "scale"], ["logits"]),
            w8=WEIGHT.astype(np.int8),
        )
        assert tail_of(model, "logits") == "hidden"

    def test_a_product_of_activations_is_no_layer(self) -> None:
        """As in attention: neither factor is a weight."""
        with pytest.raises(ValueError, match="no linear layer leads to 'logits'"):
            tail_of(graph(helper.make_node("MatMul", ["x", "x"], ["logits"])), "logits")


def wanted(saturation_s: float, embedding_s: float) -> GuardsConfig:
    return GuardsConfig(saturation=SaturationGuard(every_s=saturation_s), ood=OodGuard(every_s=embedding_s))


class TestAudit:
    FAMILIAR = Familiar(np.zeros((1, 4), np.float32), np.eye(4, dtype=np.float32), 2.0)
    ROW = np.array([[0.0, 3.0, 0.0, 4.0]], np.float32)

    def test_one_session_tells_both(self, tmp_path: Path) -> None:
        path = qdq_kit.write_model(tmp_path, range_=8.0, hidden_range=2.0)
        audit = RowAudit(path, familiar=(self.FAMILIAR, "logits")).run({"x": self.ROW})
        assert audit.distance == pytest.approx(2.5, rel=0.02)  # through 8 bits
        assert audit.share == 0.25

    def test_without_ranges_the_distance_alone(self, tmp_path: Path) -> None:
        model = graph(helper.make_node("Gemm", ["x", "w", "b"], ["logits"]), w=WEIGHT, b=BIAS)
        model.ir_version, model.opset_import[0].version = 8, 17
        onnx.save(model, tmp_path / "model.onnx")
        audit = RowAudit(tmp_path / "model.onnx", saturation=False, familiar=(self.FAMILIAR, "logits"))
        found = audit.run({"x": self.ROW})
        assert found.distance == 2.5
        assert np.isnan(found.share)

    @pytest.mark.parametrize(
        ("method", "brought", "guards", "expected"),
        [
            ("static QDQ", True, wanted(4.0, 2.0), {"saturation", "distance"}),
            ("static QDQ", True, wanted(4.0, 0.0), {"saturation"}),
            ("static QDQ", False, wanted(0.0, 2.0), set()),
            ("dynamic", True, wanted(4.0, 2.0), {"distance"}),
            ("dynamic", False, wanted(4.0, 2.0), set()),
        ],
    )
    def test_what_is_wanted_and_can_be_had_is_looked_at(
        self, tmp_path: Path, method: str, brought: bool, guards: GuardsConfig, expected: set[str]
    ) -> None:
        qdq_kit.write_model(tmp_path)
        self.FAMILIAR.write(tmp_path / EMBEDDING_FILE)
        files = {"model.onnx": File("0" * 64, 0)} | ({EMBEDDING_FILE: File("0" * 64, 0)} if brought else {})
        manifest = qdq_kit.manifest(files=files, quantization={"method": method})
        auditor = auditor_of(manifest, tmp_path, guards, FakeClock())
        assert (auditor is None) == (not expected)
        if auditor is not None:
            auditor._start = lambda work: work()  # at once
            auditor.offer({"x": self.ROW})
            (audit,) = auditor.take()
            seen = {"saturation": not np.isnan(audit.share), "distance": not np.isnan(audit.distance)}
            assert {name for name, there in seen.items() if there} == expected


DAY_NS = 86_400_000_000_000


def guards(every_s: float = 1.0, embeddings: bool = True) -> ModelGuards:
    variants = {name: MonitorVariant(n, embeddings=embeddings) for n, name in enumerate(("teacher", "int8"), 1)}
    settings = GuardSettings(ood=OodSettings(every_s=every_s))
    watched = ModelGuards("m", MonitorModel("teacher", "teacher", variants, guards=settings))
    entries = {name: VariantEntry(name, n, f"m/{name}:1") for n, name in enumerate(variants, 1)}
    table = RouteTable("m", 1, "s", "teacher", "teacher", entries, {"int8": ((0, 1000),)}, {"int8": 1})
    watched.configure(Snapshot(1, 1, {"m": table}))
    return watched


def audit(variant: str, distance: float, **more: object) -> Event:
    given = {"prob": float("nan"), "ref_prob": float("nan"), "energy": distance, "wall_ns": DAY_NS, **more}
    return Event(Kind.AUDIT, variant, epoch=1, **given)  # type: ignore[arg-type]


def of(watched: ModelGuards, variant: str) -> Verdict:
    return next(one for one in watched.verdicts() if (one.guard, one.variant) == ("embedding", variant))


class TestGuard:
    def test_unfamiliar_rows_are_told_of_either_arm_and_trip_nobody(self) -> None:
        watched = guards()
        for n in range(100):
            for variant in ("teacher", "int8"):
                watched.observe(audit(variant, 1.5 if n % 5 == 0 else 0.7))
        for variant in ("teacher", "int8"):
            verdict = of(watched, variant)
            assert (verdict.verdict, verdict.action) == ("fail", "alert")
            assert verdict.sentence.startswith(
                f"20 of 100 audited rows of {variant} (20.0 %) are further from its training rows"
            )
        assert watched.trips() == []
        assert not GUARD_ROLES["embedding"].passes

    def test_an_audit_of_saturation_alone_says_nothing_of_it(self) -> None:
        watched = guards()
        watched.observe(audit("int8", float("nan"), prob=0.0, ref_prob=0.0))
        assert of(watched, "int8").verdict == "no_data"

    def test_it_is_stored_and_goes_on(self) -> None:
        watched, resumed = guards(), guards()
        for variant in ("teacher", "int8"):
            watched.observe(audit(variant, 2.0))
        resumed.load(msgspec.msgpack.decode(msgspec.msgpack.encode(watched.state())))
        assert resumed.state() == watched.state()
        assert of(resumed, "teacher").statistic["observations"] == 1

    @pytest.mark.parametrize("missing", [{"every_s": 0.0}, {"embeddings": False}])
    def test_what_nobody_measures_has_no_guard(self, missing: dict[str, float]) -> None:
        watched = guards(**missing)  # type: ignore[arg-type]
        watched.observe(audit("teacher", 5.0))
        assert not [one for one in watched.verdicts() if one.guard == "embedding"]
