"""What a build says of a variant beside its accuracy: flips, slices, perturbations, saturation, drift."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import build_kit
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving.build.cache import BuildError
from serving.build.evidence import adversarial, drift, flips, perturb, saturation, slices
from serving.build.runner import BuildResult, build
from serving.governance.gate import failures, judge
from serving.governance.policy import BUILT_IN
from serving.registry.store import Registry


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Registry, BuildResult]:
    folder = tmp_path_factory.mktemp("build")
    document = build_kit.recipe() | {"requirements": {"slice_floor": 0.5, "memory_mb_ceiling": 900}}
    recipe = build_kit.write(folder, document, build_kit.rows())
    registry = Registry(folder / "registry")
    return registry, build(recipe, registry, cache_dir=folder / "cache")


# ---------------------------------------------------------------- what a build binds to its variants


def test_the_manifest_says_where_a_variant_loses_and_what_it_takes(built: tuple[Registry, BuildResult]) -> None:
    evaluation = built[0].resolve("tiny/int8").evaluation
    assert {"class=ham", "class=spam"} <= set(evaluation["slices"]["slices"])
    assert set(evaluation["perturbations"]) == set(perturb.TEXT)
    assert evaluation["hostile"]["rows"] == 60
    assert set(evaluation["latency_ms"]) >= {"batch_1", "batch_4", "batch_16", "batch_32"}
    assert evaluation["saturation"]["pairs"] > 0
    assert evaluation["activations"]["tensors"] > 0
    assert 0 <= evaluation["activations"]["share"] <= evaluation["activations"]["worst"] <= 1
    assert 20 < evaluation["activations"]["sqnr_db"] < 60
    assert evaluation["activations"]["layers"]
    assert all(5 < ratio < 60 for ratio in evaluation["activations"]["layers"].values())
    assert evaluation["uncalibrated"]["nll"] > 0
    assert 0 < evaluation["memory"]["model_bytes"] < evaluation["memory"]["peak_bytes"]
    teacher = built[0].resolve("tiny/teacher").evaluation
    assert (teacher["saturation"]["pairs"], teacher["activations"]) == (0, None)


def test_the_trusted_variant_is_as_fragile_as_itself(built: tuple[Registry, BuildResult]) -> None:
    for each in built[0].resolve("tiny/teacher").evaluation["perturbations"].values():
        assert each["flip_rate"] == each["teacher_flip_rate"]
        assert each["differs_from_teacher"] == 0


def test_the_report_has_a_section_for_each(built: tuple[Registry, BuildResult]) -> None:
    text = built[1].report_path.read_text()
    for title in (
        "Slices",
        "Perturbed inputs",
        "Calibration before and after",
        "Memory and overflow",
        "Quantization noise",
    ):
        assert f"## {title}" in text
    assert "\nFitted on the calibration split, measured here on test.\n" in text  # nothing was searched
    evaluation = built[0].resolve("tiny/int8").evaluation
    lowest = evaluation["slices"]["lowest"]
    assert f"| int8 | {lowest['slice']} | {lowest['rows']} | {lowest['accuracy']:.4f} (" in text
    assert "| +0.0 | – | – | – | – |" in text  # the teacher, against itself
    assert "calibration rows against 160 training rows" in text


def test_a_variant_that_fails_one_slice_is_kept_out(tmp_path: Path, built: tuple[Registry, BuildResult]) -> None:
    document = build_kit.recipe() | {"requirements": {"slice_floor": 1.0}}
    recipe = build_kit.write(tmp_path, document, build_kit.rows())
    with pytest.raises(BuildError, match=r"slice 0\.\d+ is under requirements\.slice_floor 1\.0"):
        build(recipe, Registry(tmp_path / "registry"), cache_dir=built[0].root.parent / "cache")


# ---------------------------------------------------------------- flips


def test_flips_count_losses_and_gains_apart() -> None:
    truth = np.zeros(100, np.int64)
    teacher, variant = truth.copy(), truth.copy()
    teacher[:10] = 1  # wrong on ten rows
    variant[5:8] = 1  # wrong on three of those
    variant[90:92] = 1  # and on two of its own
    found = flips.paired_flips(variant, teacher, truth)
    assert (found["teacher_flips"], found["negative_flips"], found["positive_flips"]) == (9, 2, 7)
    assert found["accuracy_change"] == pytest.approx(0.05)
    assert found["mcnemar_p"] == pytest.approx(2 * (1 + 9 + 36) / 2**9)
    assert found["negative_flip_upper"] > 0.02


def test_two_models_that_agree_are_not_claimed_to_be_equal_for_certain() -> None:
    same = np.zeros(50, np.int64)
    found = flips.paired_flips(same, same, same)
    assert found["accuracy_change"] == 0
    low, high = found["accuracy_change_ci"]
    assert low < 0 < high
    assert found["negative_flip_upper"] == pytest.approx(1 - 0.05 ** (1 / 50))


def test_the_interval_of_a_paired_change_covers_the_truth_as_often_as_it_says() -> None:
    chance = np.random.default_rng(4)
    up, down, rows = 0.03, 0.06, 300
    draws = chance.multinomial(rows, [up, down, 1 - up - down], size=2000)
    held = [
        low <= up - down <= high
        for low, high in (flips.paired_change_interval(gained, lost, rows) for gained, lost, _ in draws)
    ]
    assert 0.93 < np.mean(held) < 0.99


# ---------------------------------------------------------------- slices


def test_a_slice_that_alone_pays_for_compression_is_singled_out() -> None:
    rows = 600
    teacher_right = np.ones(rows, bool)
    right = teacher_right.copy()
    right[:40] = False  # all losses fall on the first hundred rows
    small = np.zeros(rows, bool)
    small[:10] = True
    masks = {"few": small, "victims": np.arange(rows) < 100, "others": np.arange(rows) >= 100}
    found = slices.compare_slices(masks, right, teacher_right)
    worst = found["worst"]
    assert worst["slice"] == "victims"  # though the ten rows of `few` lost more: they are too few to tell
    assert worst["change"] == pytest.approx(-0.4)
    assert worst["excess"] == pytest.approx(-0.4 + 40 / 600)
    assert worst["singled_out"]
    assert slices.lowest_accuracy(found) == ("victims", pytest.approx(0.6))
    assert found["lowest"] | {"accuracy_ci": None} == {
        "slice": "victims", "rows": 100, "accuracy": pytest.approx(0.6), "accuracy_ci": None,
    }  # fmt: skip
    low, high = found["lowest"]["accuracy_ci"]
    alone_low, alone_high = worst["accuracy_ci"]
    assert low < alone_low < alone_high < high  # it holds for all three slices at once


def test_a_slice_that_is_bad_in_both_models_is_named_though_nobody_loses_there() -> None:
    right = np.ones(200, bool)
    right[150:190] = False
    masks = {"a": np.arange(200) < 150, "bad": np.arange(200) >= 150}
    found = slices.compare_slices(masks, right, right)
    assert (found["worst"]["slice"], found["worst"]["change"]) == ("a", 0)
    assert (found["lowest"]["slice"], found["lowest"]["accuracy"]) == ("bad", pytest.approx(0.2))
    (rule,) = [rule for rule in BUILT_IN["high"].rules if rule.evidence.endswith("lowest.accuracy")]
    policy = BUILT_IN["high"].model_copy(update={"rules": (rule,)})
    assert failures(judge(policy, {"evaluation": {"slices": found}})) == [
        "evaluation.slices.lowest.accuracy is 0.2, under 0.8"
    ]


def test_where_no_slice_is_large_enough_none_is_named_and_no_policy_passes() -> None:
    right = np.ones(19, bool)
    found = slices.compare_slices({"few": right}, right, right)
    assert (found["worst"], found["lowest"], slices.lowest_accuracy(found)) == (None, None, None)
    assert "evaluation.slices.lowest.accuracy: not measured" in failures(
        judge(BUILT_IN["high"], {"evaluation": {"slices": found}})
    )


def test_losses_spread_by_chance_single_nobody_out() -> None:
    chance = np.random.default_rng(8)
    alarms = 0
    for _ in range(200):
        teacher_right = chance.random(400) < 0.95
        right = teacher_right & (chance.random(400) > 0.03)
        part = chance.integers(0, 5, 400)
        masks = {str(index): part == index for index in range(5)}
        alarms += slices.compare_slices(masks, right, teacher_right)["worst"]["singled_out"]
    assert alarms < 20


def test_terciles_are_cut_where_the_other_rows_say() -> None:
    edges = slices.tercile_edges(np.arange(300.0))
    masks = slices.tercile_slices("length", np.array([0.0, 150.0, 299.0, 150.0]), edges)
    assert [int(mask.sum()) for mask in masks.values()] == [1, 2, 1]
    assert sum(masks.values()).tolist() == [1, 1, 1, 1]


# ---------------------------------------------------------------- perturbations


@pytest.mark.parametrize("name", perturb.TEXT)
def test_text_perturbations_change_the_text_the_same_way_each_time(name: str) -> None:
    texts = ["Please confirm the meeting about the quarterly report tomorrow", "", "ab", "x y"]
    once, again = perturb.perturb_texts(name, texts), perturb.perturb_texts(name, texts)
    assert once == again
    assert once[0] != texts[0]
    assert perturb.perturb_texts("typos", texts, seed=1) != perturb.perturb_texts("typos", texts, seed=2)


def test_homoglyphs_look_the_same_and_are_not() -> None:
    text = "a case of peaceful paper cooperation" * 3
    changed = perturb.homoglyphs(text, random.Random(1))
    assert len(changed) == len(text)
    assert 0 < sum(a != b for a, b in zip(text, changed, strict=True)) < len(text) / 3


def test_numeric_perturbations_keep_type_and_shape() -> None:
    values = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    spread, typical = values.std(axis=0), np.median(values, axis=0)
    noisy = perturb.perturb_values("sensor noise", values, spread, typical)
    lost = perturb.perturb_values("missing values", values, spread, typical)
    assert noisy.dtype == lost.dtype == np.float32
    assert np.abs(noisy - values).std() < 0.1
    assert 0.05 < (lost == typical.astype(np.float32)).mean() < 0.15


def test_divergence_blames_the_variant_only_for_what_the_teacher_does_not_do_too() -> None:
    clean = np.zeros(200, np.int64)
    shaken = clean.copy()
    shaken[:30] = 1
    same = perturb.divergence(clean, shaken, clean, shaken)
    assert same["flip_rate"] == same["teacher_flip_rate"] == 0.15
    assert perturb.more_fragile({"typos": same}) == []
    alone = perturb.divergence(clean, shaken, clean, clean)
    assert alone["differs_from_teacher"] == 0.15
    assert perturb.more_fragile({"typos": alone}) == ["typos"]


# ---------------------------------------------------------------- saturation


def test_the_audit_counts_exactly_the_pairs_that_some_activations_can_clip() -> None:
    chance = np.random.default_rng(3)
    weights = chance.integers(-128, 128, (7, 5)).astype(np.int8)
    expected = 0
    padded = np.vstack([weights, np.zeros((1, 5), np.int8)]).astype(int)
    for k, n in itertools.product(range(0, 8, 2), range(5)):
        sums = [a * padded[k, n] + b * padded[k + 1, n] for a in (0, 255) for b in (0, 255)]
        expected += max(sums) > 32767 or min(sums) < -32768
    assert saturation.clipping_pairs(weights) == (expected, 20)
    assert expected > 0


def test_reduced_range_cannot_clip() -> None:
    weights = np.random.default_rng(3).integers(-64, 65, (64, 64)).astype(np.int8)
    assert saturation.clipping_pairs(weights)[0] == 0


def test_the_audit_reads_a_quantized_model(tmp_path: Path) -> None:
    weights = np.array([[100, 1], [100, 1], [-5, 2], [3, -4]], np.int8)
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wf"]),
            helper.make_node("MatMul", ["x", "wf"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.float32(0.1), "s"),
            numpy_helper.from_array(np.int8(0), "z"),
        ],
    )
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    found = saturation.audit(tmp_path / "model.onnx")
    assert (found["possible"], found["pairs"]) == (1, 4)
    assert found["layers"] == {"w": {"possible": 1, "pairs": 4}}


# ---------------------------------------------------------------- drift of the calibration data


def test_calibration_rows_from_the_same_source_are_not_called_shifted() -> None:
    chance = np.random.default_rng(6)
    false = sum(
        bool(drift.drift_of_values("abc", chance.normal(size=(400, 3)), chance.normal(size=(150, 3)))["shifted"])
        for _ in range(20)
    )
    assert false <= 2


def test_a_shift_of_one_feature_is_named() -> None:
    chance = np.random.default_rng(6)
    moved = chance.normal([0, 0.8, 0], size=(200, 3))
    found = drift.drift_of_values(["left", "middle", "right"], chance.normal(size=(800, 3)), moved)
    assert any(line.startswith("middle: Kolmogorov-Smirnov") for line in found["shifted"])
    assert not any(line.startswith(("left", "right")) for line in found["shifted"])
    assert found["classifier"]["auc"] > 0.6


def test_a_shift_of_words_is_found_though_every_length_is_the_same() -> None:
    chance = random.Random(2)

    def texts(words: str, count: int) -> list[str]:
        return [" ".join(chance.choices(words.split(), k=12)) for _ in range(count)]

    same = drift.drift_of_texts(texts("mail list code patch", 300), texts("mail list code patch", 120))
    assert same["shifted"] == []
    other = drift.drift_of_texts(texts("mail list code patch", 300), texts("play fist core match", 120))
    assert any("a classifier tells the sets apart" in line for line in other["shifted"])


def test_a_feature_that_is_always_the_same_has_no_shift() -> None:
    assert drift.stability_index(np.zeros(50), np.zeros(20)) == pytest.approx(0, abs=1e-12)


# ---------------------------------------------------------------- attacks


class TestAttacks:
    """On a classifier whose boundary is known: the second class from x0 = 0 on; x0 varies by 2, x1 by 1."""

    @staticmethod
    def answers(rows: np.ndarray) -> np.ndarray:
        return (rows[:, 0] > 0).astype(np.int64)

    @staticmethod
    def target(starts: np.ndarray | None = None) -> adversarial.Target:
        random_ = np.random.default_rng(4)
        rows = np.array([[1.0, 0.5], [-4.0, 0.0], [2.0, -1.0], [-1.0, 3.0]], np.float32)
        if starts is None:
            starts = (random_.normal(0, 1, (200, 2)) * [2.0, 1.0]).astype(np.float32)
        return adversarial.Target("x", rows, np.array([1, 0, 0, 0]), starts, np.array([2.0, 1.0]))

    def test_a_row_is_moved_about_as_far_as_it_must_be(self) -> None:
        found = adversarial.distances(self.answers, 2, self.target())
        least = np.array([0.5, 2.0, 0.0, 0.5])  # the third is wrong as it is
        assert (found >= least).all()
        assert found == pytest.approx(least, rel=0.02)

    def test_it_finds_the_same_again_and_leaves_the_global_generator_alone(self) -> None:
        np.random.seed(1)
        expected = np.random.random()
        np.random.seed(1)
        first, again = (adversarial.distances(self.answers, 2, self.target()) for _ in range(2))
        assert np.random.random() == expected
        assert first.tolist() == again.tolist()

    def test_without_any_row_answered_otherwise_nothing_is_found(self) -> None:
        starts = np.full((10, 2), 3.0, np.float32)
        found = adversarial.distances(lambda rows: np.ones(len(rows), np.int64), 2, self.target(starts))
        assert found.tolist() == [np.inf, 0.0, 0.0, 0.0]

    def test_a_variant_that_is_easier_to_fool_is_told_from_the_trusted_one(self) -> None:
        trusted = np.linspace(0.5, 2.0, 40)
        compared = adversarial.compare(trusted / 2, trusted)
        assert compared["median_distance"] == pytest.approx(compared["trusted_median_distance"] / 2)
        assert compared["p_value"] < 1e-6
        assert adversarial.compare(trusted, trusted)["p_value"] == 1.0
        assert adversarial.compare(np.full(5, np.inf), trusted[:5])["median_distance"] is None
