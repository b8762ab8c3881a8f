"""A streaming model is imported as it is, with its state, and its siblings are held against it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import stream_kit
import yaml
from built_kit import Built, built_in, nudged
from registry_kit import copy_of

from serving.build.cache import BuildError, Cache, versions
from serving.build.evidence import memory
from serving.build.imported import evaluate
from serving.build.imported.clustered import by_clip, interval, sign_flip_test, upper_end
from serving.build.imported.sound import expand, windows_of
from serving.build.kinds import load_recipe, plan_of
from serving.build.metrics import clopper_pearson_upper, sign_test
from serving.build.plan import Answers
from serving.build.runner import build
from serving.build.verify import compare, registered
from serving.errors import ConfigError
from serving.registry.files import file_digest
from serving.registry.manifest import Manifest
from serving.registry.store import Registry
from serving.runtimes.base import open_session
from serving.runtimes.pipeline import Pipeline

WINDOW, STEPS = 64, 10


def clips(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mu-law noise uint8 [clips, samples], and which windows are loud, uint8 [clips, windows]."""
    chance = np.random.default_rng(seed)
    loud = (chance.random((count, STEPS)) < 0.5).astype(np.uint8)
    sound = chance.normal(0, 1, (count, STEPS, WINDOW)) * np.where(loud, 0.4, 0.02)[:, :, None]
    squeezed = np.sign(sound) * np.log1p(255 * np.abs(sound).clip(0, 1)) / np.log1p(255)
    return np.round((squeezed + 1) * 127.5).astype(np.uint8).reshape(count, -1), loud


def write(folder: Path, **change: Any) -> Path:
    (folder / "model.onnx").write_bytes(stream_kit.graph().SerializeToString())
    arrays = {}
    for split, count in (("calibration", 8), ("test", 12)):
        arrays[f"{split}-sound"], arrays[f"{split}-classes"] = clips(count, count)
    np.savez(folder / "sound.npz", **change.pop("arrays", arrays))
    document = {
        "apiVersion": "canarium/recipe/v1",
        "kind": "imported",
        "model": "loud",
        "labels": ["silence", "speech"],
        "threads": 1,
        "data": {"file": "sound.npz", "source": "made up", "licence": "CC0-1.0", "pii": "none"},
        "source": {
            "file": "model.onnx",
            "sha256": hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest(),
            "origin": "made up",
            "licence": "CC0-1.0",
        },
        "inputs": [
            {"name": "input", "datatype": "FP32", "shape": [-1, WINDOW + 8]},
            {"name": "state", "datatype": "FP32", "shape": [1, -1, 1]},
            {"name": "sr", "datatype": "INT64", "shape": []},
        ],
        "outputs": [
            {"name": "output", "datatype": "FP32", "shape": [-1, 1]},
            {"name": "stateN", "datatype": "FP32", "shape": [1, -1, 1]},
        ],
        "stream": {
            "input": "input",
            "window": WINDOW,
            "context": 8,
            "states": {"stateN": "state"},
            "constants": {"sr": 16000},
            "score": "output",
        },
        **change,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("imported")
    return built_in(folder, write(folder))


def test_the_file_is_registered_byte_for_byte_and_its_siblings_name_it(built: Built) -> None:
    found = {manifest.variant: manifest for manifest in built.registry.list()}
    assert {name: manifest.lineage.relation for name, manifest in found.items()} == {
        "fp32": "root",
        "fp16": "quantized",
        "int8": "quantized",
    }
    original = hashlib.sha256((built.recipe.parent / "model.onnx").read_bytes()).hexdigest()
    assert found["fp32"].files["model.onnx"].sha256 == original
    for name in ("fp16", "int8"):
        assert found[name].lineage.parents[0].digest == found["fp32"].digest
        assert found[name].quantization["calibration"]["model_sha256"] == original
    for manifest in found.values():
        assert manifest.data["imported"] == {"origin": "made up", "licence": "CC0-1.0", "sha256": original}
    assert found["fp16"].size_bytes < found["fp32"].size_bytes


def test_siblings_agree_with_the_original_and_rows_with_themselves_alone(built: Built) -> None:
    for name in ("fp32", "fp16", "int8"):
        evaluation = built.registry.resolve(f"loud/{name}").evaluation
        assert evaluation["clips"] == 12
        assert evaluation["rows"] == 12 * STEPS
        assert evaluation["accuracy"] > 0.9
        assert evaluation["batch_neighbour_delta"] < 1e-4
        low, high = evaluation["teacher_disagreement_ci"]
        # Of 12 clips without a difference nobody knows more than that 26.5 % of clips may have one.
        assert low <= evaluation["teacher_disagreement"] <= 0.264 < high < 0.32
        assert 0.22 < evaluation["negative_flip_upper"] < high
    assert built.registry.resolve("loud/fp32").evaluation["score_difference"]["max"] == 0
    assert built.registry.resolve("loud/int8").evaluation["score_difference"]["max"] > 0


def test_what_it_takes_and_where_it_could_overflow_is_measured_and_reported(built: Built) -> None:
    found = {name: built.registry.resolve(f"loud/{name}").evaluation for name in ("fp32", "int8")}
    for evaluation in found.values():
        assert 0 < evaluation["memory"]["model_bytes"] < evaluation["memory"]["peak_bytes"]
    assert found["fp32"]["saturation"]["pairs"] == 0
    assert found["int8"]["saturation"]["pairs"] > 0
    assert "## Memory and overflow" in built.result.report_path.read_text()


def test_state_goes_in_and_comes_out_and_the_class_is_read_from_the_score(built: Built) -> None:
    manifest, folder = built.registry.open("loud/fp32")
    pipeline, session = Pipeline(manifest, folder), open_session(manifest, folder, runtime="onnxruntime", threads=1)
    quiet, loud = np.zeros(WINDOW + 8, np.float32), np.full(WINDOW + 8, 0.5, np.float32)
    feed = {
        "input": np.stack([quiet, loud, quiet]),
        "state": np.zeros((1, 3, 1), np.float32),
        "sr": np.array(16000, np.int64),
    }
    first = session.run(feed)
    assert pipeline.check(first, 3) is None
    assert pipeline.classes(first).tolist() == [0, 1, 0]
    assert pipeline.postprocess(first) is first
    summary = pipeline.summary(first)
    assert summary.cls == 0
    assert summary.prob == pytest.approx(1 - float(first["output"][0, 0]))
    assert pipeline.probability(first, 1) == pytest.approx(float(first["output"][0, 0]))
    second = session.run(feed | {"state": first["stateN"]})
    assert second["output"][1, 0] > first["output"][1, 0]
    assert (
        pipeline.check({**first, "stateN": first["stateN"][:, :2]}, 3) == "stateN has shape [1, 2, 1] for a batch of 3"
    )
    assert "which is no probability" in str(pipeline.check({**first, "output": first["output"] + 1}, 3))


def test_a_second_build_does_nothing(built: Built) -> None:
    again = build(built.recipe, built.registry, cache_dir=built.cache)
    assert again.cached
    assert again.manifests == built.result.manifests


def test_a_verification_holds_the_answers_to_golden_windows_against_each_other(built: Built, tmp_path: Path) -> None:
    recipe = load_recipe(built.recipe)
    plan = plan_of(recipe)(recipe, built.recipe.parent, Cache(tmp_path / "cache", print, dry=True))
    data, evaluation = (
        next(made.folder for made in built.result.steps if made.name == name) for name in ("data", "fp32-evaluation")
    )

    def golden(manifest: Manifest, folder: Path) -> Answers:
        return plan.golden(manifest, folder, data)

    found = golden(*built.registry.open("loud/fp32"))
    assert np.array_equal(found.probabilities[:, 1], np.load(evaluation / "scores.npy").ravel())
    assert np.array_equal(found.classes, found.probabilities[:, 1] >= 0.5)
    registry = copy_of(built.registry, tmp_path / "registry")
    nudged(registry, "loud/fp32", 1e-5, {"versions": versions() | {"onnx": "1.0"}})
    kept = registered(registry, "loud", file_digest(built.recipe))
    fp32, fp16, int8 = compare(kept, registry, built.result, built.registry, [], golden)
    assert (fp32.ref, fp32.tier, fp32.flips) == ("loud/fp32:2", "decisions", 0)
    assert 0 < fp32.largest_difference < 0.02
    assert fp32.cause.startswith("other library versions: onnx 1.0")
    assert (fp16.tier, int8.tier) == ("bytes", "bytes")


def test_another_file_than_the_recipe_names_is_refused(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    with (tmp_path / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BuildError, match=r"its SHA-256 is [0-9a-f]{64}, source\.sha256 says"):
        build(recipe, Registry(tmp_path / "registry"), cache_dir=tmp_path / "cache")


def test_states_must_name_tensors(tmp_path: Path) -> None:
    stream = {"input": "input", "window": 8, "states": {"stateN": "memory"}, "score": "output"}
    with pytest.raises(ConfigError, match=r"feed exactly the inputs \(input, sr, state\), they feed input, memory"):
        load_recipe(write(tmp_path, stream=stream))


def test_unusable_sound_is_refused_by_name(tmp_path: Path) -> None:
    sound, classes = clips(4, 1)
    good = {
        f"{split}-{what}": value
        for split in ("calibration", "test")
        for what, value in (("sound", sound), ("classes", classes))
    }
    for change, message in (
        ({"test-sound": sound.astype(np.float32)}, "test-sound is float32"),
        ({"test-classes": classes[:, :-1]}, r"test-classes has shape \[4, 9\] for sound"),
        ({"test-classes": classes + 1}, "test-classes holds 2, expected 0 to 1"),
        ({"test-classes": classes * 0}, "split test has no window of 'speech'"),
    ):
        recipe = write(tmp_path, arrays=good | change)
        with pytest.raises(BuildError, match=message):
            build(recipe, Registry(tmp_path / "registry"), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("cut", [0, WINDOW])
def test_a_clip_in_two_splits_is_refused(tmp_path: Path, cut: int) -> None:
    (sound, classes), (other, others) = clips(4, 1), clips(6, 2)
    sound[2] = other[5]
    arrays = {
        "calibration-sound": sound[:, : sound.shape[1] - cut],
        "calibration-classes": classes[:, : STEPS - cut // WINDOW],
        "test-sound": other,
        "test-classes": others,
    }
    recipe = write(tmp_path, arrays=arrays)
    with pytest.raises(BuildError, match="clip 5 of test is clip 2 of calibration: a clip may be in one split only"):
        build(recipe, Registry(tmp_path / "registry"), cache_dir=tmp_path / "cache")


def test_a_few_clips_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, held = memory.measure, list[int]()

    def measured(*given: Any, inputs: dict[str, np.ndarray], **more: Any) -> Any:
        held.append(len(inputs["input"]))
        return measure(*given, inputs=inputs, **more)

    monkeypatch.setattr(memory, "measure", measured)
    (sound, classes), (other, others) = clips(4, 1), clips(3, 2)
    names = ("calibration-sound", "calibration-classes", "test-sound", "test-classes")
    made = built_in(tmp_path, write(tmp_path, arrays=dict(zip(names, (sound, classes, other, others), strict=True))))
    evaluation = made.registry.resolve("loud/fp32").evaluation
    assert evaluation["clips"] == 3
    assert evaluation["batch_neighbour_delta"] < 1e-4
    assert held == [16] * 3  # clips come again: a batch is full whatever is measured of it


def test_batches_whose_time_is_taken_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    spied: Any = SimpleNamespace(
        preprocess=lambda feed: feed,
        postprocess=lambda answer: answer,
        run=lambda feed: seen.append(len(feed["input"])),
    )

    def once(call: Callable[[int], object], runs: int) -> dict[str, float]:
        call(0)
        return {}

    monkeypatch.setattr(evaluate, "percentiles", once)
    inputs = [{"name": "input", "datatype": "FP32", "shape": [-1, WINDOW]}]
    stream = {"input": "input", "states": {}, "constants": {}}
    windows = np.zeros((3, STEPS, WINDOW), np.float32)
    said = evaluate._latency(spied, spied, windows, {"stream": stream, "inputs": inputs})
    assert [*said] == ["threads", "batch_1", "batch_1_whole", "batch_16", "batch_16_whole"]
    assert seen == [1, 1, 16, 16]


class TestIntervals:
    """Of windows, by clips."""

    def test_no_event_in_few_clips_is_no_proof(self) -> None:
        exact = pytest.approx(1 - 0.025 ** (1 / 40))
        assert interval(np.zeros(40), 0, 1) == (0.0, exact)
        assert interval(np.ones(40), 0, 1) == (pytest.approx(0.025 ** (1 / 40)), 1.0)
        assert interval(np.zeros(1), 0, 1) == (0.0, pytest.approx(0.975))
        assert interval(np.zeros(40), -1, 1)[1] == exact

    def test_clips_that_are_all_or_nothing_have_clopper_and_pearsons_bounds(self) -> None:
        events = (np.arange(40) % 10 == 0).astype(float)
        assert upper_end(events, 1, 0.05) == pytest.approx(clopper_pearson_upper(4, 40), abs=0.003)
        assert interval(events, 0, 1) == pytest.approx((0.0279, 0.2366), abs=0.004)

    def test_a_further_event_never_gives_a_smaller_end(self) -> None:
        events = np.zeros((40, 80), bool)
        before = interval(events.mean(axis=1), 0, 1)
        for at in np.random.default_rng(4).permutation(events.size)[::40].tolist():
            events.flat[at : at + 9] = True
            after = interval(events.mean(axis=1), 0, 1)
            assert before[0] < after[0] < after[1]
            assert before[1] < after[1]
            before = after

    @pytest.mark.parametrize(
        ("clips", "inside", "usual"), [(0.02, 1.0, 0.0), (0.1, 0.9, 0.0), (0.2, 0.5, 0.0), (0.06, 1.0, 0.06)]
    )
    def test_it_covers_the_truth_where_events_come_together(self, clips: float, inside: float, usual: float) -> None:
        random, held = np.random.default_rng(3), 0
        truth = clips * inside + (1 - clips) * usual
        for _ in range(200):
            chance = np.where(random.random(40) < clips, inside, usual)
            share = (random.random((40, 20)) < chance[:, None]).mean(axis=1)
            low, high = interval(share, 0, 1)
            held += low <= truth <= high
        assert held >= 0.95 * 200

    def test_a_copy_is_bounded_no_worse_than_what_differs(self) -> None:
        truth = np.arange(800).reshape(40, 20) % 2 == 0
        answers = truth.copy()
        answers[:16, 3] ^= True
        copy, worse = (by_clip(found == truth, truth == truth, found != truth) for found in (truth, answers))
        assert copy["teacher_disagreement_ci"] == copy["bounds_if_perfect"]["teacher_disagreement_ci"]
        assert copy["negative_flip_upper"] == copy["bounds_if_perfect"]["negative_flip_upper"]
        for found in (copy, worse):
            assert found["negative_flip_upper"] < found["teacher_disagreement_ci"][1]
        assert copy["teacher_disagreement_ci"][1] < worse["teacher_disagreement_ci"][1]
        assert copy["negative_flip_upper"] < worse["negative_flip_upper"]
        assert worse["accuracy_change_ci"][0] < copy["accuracy_change_ci"][0] < 0 < copy["accuracy_change_ci"][1]

    def test_a_clip_counts_once_for_the_test_of_two_models(self) -> None:
        assert sign_flip_test(np.repeat([1, -1, 0], [9, 3, 5])) == pytest.approx(sign_test(9, 3))
        assert sign_flip_test(np.array([40, 0, 0])) == sign_flip_test(np.zeros(3, int)) == 1.0
        assert sign_flip_test(np.full(6, 7)) == pytest.approx(2 / 2**6)
        assert sign_flip_test(np.array([3, 2, -1])) == pytest.approx(4 / 8)


def test_mu_law_and_windows() -> None:
    assert expand(np.array([0, 255], np.uint8)).tolist() == [-1.0, 1.0]
    assert abs(expand(np.array([127, 128], np.uint8))).max() < 1e-3
    made = windows_of(np.arange(1, 7, dtype=np.float32)[None], window=3, context=2)
    assert made.tolist() == [[[0, 0, 1, 2, 3], [2, 3, 4, 5, 6]]]
