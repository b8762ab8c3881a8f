"""A build of an anomaly detector: what it makes, what its report says, what data it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anomaly_kit
import numpy as np
import pytest
from built_kit import Built, built_in

from monitoring.golden import read
from serving.build.anomaly.report import parts
from serving.build.cache import BuildError
from serving.build.kinds import load_recipe
from serving.build.runner import build
from serving.errors import ConfigError
from serving.registry.manifest import EMBEDDING_FILE
from serving.registry.store import Registry
from serving.runtimes.audit import RowAudit
from serving.runtimes.base import open_session
from serving.runtimes.embedding import Familiar
from serving.runtimes.pipeline import Pipeline


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("anomaly")
    return built_in(folder, anomaly_kit.write(folder, anomaly_kit.recipe(), anomaly_kit.rows()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "weather"}, "kind: 'weather' is not one of text, anomaly, imported"),
        ({"labels": ["a", "b", "c"]}, "labels: an anomaly detector has two, the normal one first"),
        ({"tokenizer": {}}, "tokenizer: unknown key"),
        ({"student": {"train": {"epochs": 0}}}, "student.train.epochs: 0: input should be greater than or equal to 1"),
        ({"requirements": {"average_precision_floor": 2}}, "requirements.average_precision_floor: 2: input should be"),
    ],
)
def test_recipe_errors_carry_file_and_path(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = anomaly_kit.write(tmp_path, anomaly_kit.recipe() | change, [])
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert f"{path}: {message}" in str(caught.value)


def test_every_variant_is_registered_with_its_lineage(built: Built) -> None:
    found = {m.variant: m for m in built.registry.list()}
    assert {name: m.lineage.relation for name, m in found.items()} == {
        "teacher": "root",
        "int8": "quantized",
        "distilled": "distilled",
        "control": "root",
    }
    assert found["distilled"].distillation["parameters"] == 3 * 4 + 4 + 4 + 1
    assert found["int8"].quantization["method"] == "static QDQ"
    assert not built.result.refused


def test_an_artifact_brings_along_what_drift_reports_and_golden_rows_are_compared_with(built: Built) -> None:
    manifest, folder = built.registry.open("pump/distilled")
    assert set(manifest.files) == {manifest.entry, "reference.json", "golden.jsonl", "embedding.safetensors"}
    reference = json.loads((folder / "reference.json").read_text())
    assert reference["rows"] == 210  # calibration and validation
    assert {"features_0", "features_2", "class", "confidence", "energy"} <= set(reference["columns"])
    pipeline, session = Pipeline(manifest, folder), open_session(manifest, folder, runtime="onnxruntime", threads=1)
    golden = read(folder / "golden.jsonl")
    assert len(golden) == 128
    for row in golden[:5]:
        features = np.array(row.inputs[0]["data"], np.float32).reshape(1, 3)
        answer = pipeline.postprocess(session.run(pipeline.preprocess({"features": features})))
        assert answer["probabilities"].tobytes() == np.array(row.probabilities, np.float32).tobytes()


def test_an_artifact_knows_how_far_inputs_usually_are_from_its_training_rows(built: Built) -> None:
    manifest, folder = built.registry.open("pump/distilled")
    familiar = Familiar.read(folder / EMBEDDING_FILE)
    audit = RowAudit(folder / manifest.entry, saturation=False, familiar=(familiar, manifest.postprocess.logits))
    rows = [np.array(row.inputs[0]["data"], np.float32).reshape(1, 3) for row in read(folder / "golden.jsonl")]
    usual = [audit.run({"features": row}).distance for row in rows]
    strange = [audit.run({"features": 20 * np.abs(row) + 5}).distance for row in rows]
    assert np.mean(np.array(usual) > 1) < 0.06
    assert min(strange) > 1


def test_rows_of_numbers_are_attacked(built: Built) -> None:
    evaluations = {name: built.registry.resolve(f"pump/{name}").evaluation for name in ("teacher", "distilled")}
    teacher, distilled = (evaluation["adversarial"] for evaluation in evaluations.values())
    assert (teacher["rows"], teacher["p_value"]) == (40, 1.0)
    assert teacher["median_distance"] == teacher["trusted_median_distance"] == distilled["trusted_median_distance"]
    assert "An attacker who sees answers alone (HopSkipJump" in built.result.report_path.read_text()


def test_raw_rows_go_in_and_a_calibrated_answer_comes_out(built: Built) -> None:
    manifest, folder = built.registry.open("pump/distilled")
    assert [(spec.name, spec.datatype, spec.shape) for spec in manifest.signature.inputs] == [
        ("features", "FP32", (-1, 3))
    ]
    pipeline, session = Pipeline(manifest, folder), open_session(manifest, folder, runtime="onnxruntime", threads=1)
    on_the_line, off_it = [1.0, 2.0, -1.0], [1.0, -3.0, 3.0]
    outputs = session.run({"features": np.array([on_the_line, off_it], np.float32)})
    assert pipeline.check(outputs, 2) is None
    answer = pipeline.postprocess(outputs)
    assert answer["label"].tolist() == [b"normal", b"anomaly"]
    assert answer["probabilities"].sum(axis=1) == pytest.approx(1)


def test_the_evaluation_ranks_with_intervals(built: Built) -> None:
    for name in ("teacher", "int8", "distilled", "control"):
        evaluation = built.registry.resolve(f"pump/{name}").evaluation
        low, high = evaluation["average_precision_ci"]
        assert 0.1 < low <= evaluation["average_precision"] <= high <= 1
    assert built.registry.resolve("pump/teacher").evaluation["average_precision"] > 0.9


def test_the_report_shows_every_seed_and_judges_by_intervals(built: Built) -> None:
    text = built.result.report_path.read_text()
    document = json.loads(built.result.report_path.with_suffix(".json").read_text())
    assert {(run["kind"], run["seed"]) for run in document["comparison"]["runs"]} == {
        (kind, seed) for kind in ("distilled", "control") for seed in (1, 2)
    }
    low, high = document["comparison"]["pairs"]["distilled_minus_control"]["ci"]
    verdict = next(line for line in text.splitlines() if line.startswith("- distilled minus control"))
    assert ("no difference is claimed" in verdict) == (low <= 0 <= high)


def test_before_a_temperature_is_not_called_before_calibration(built: Built) -> None:
    text = built.result.report_path.read_text()
    assert "The step from score to probability is a part of each model and was fitted on the calibration split" in text
    assert "chosen on validation" not in text


def test_one_seed_claims_nothing(built: Built) -> None:
    document = json.loads(built.result.report_path.with_suffix(".json").read_text())
    document["recipe"]["student"]["seeds"] = [1]
    document["comparison"]["pairs"] = {"distilled_minus_control": {"difference": 0.2, "ci": None}}
    text = "\n".join(next(part for part in parts(document) if part.title == "Distillation").lines)
    assert "**No gain of distillation is claimed.**" in text
    assert "- distilled minus control: +0.2000: one seed says nothing of others, so no difference is claimed." in text


def test_a_second_build_does_nothing(built: Built) -> None:
    again = build(built.recipe, built.registry, cache_dir=built.cache)
    assert again.cached
    assert again.manifests == built.result.manifests
    assert again.report_path == built.result.report_path


def test_a_missed_floor_keeps_a_variant_out(built: Built, tmp_path: Path) -> None:
    document = anomaly_kit.recipe() | {"requirements": {"average_precision_floor": 1.0}}
    recipe = anomaly_kit.write(tmp_path, document, anomaly_kit.rows())
    with pytest.raises(BuildError, match=r"average precision 0\.\d+ is under requirements\.average_precision_floor 1"):
        build(recipe, Registry(tmp_path / "registry"), cache_dir=built.cache)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["1", "2", "x", "normal", "train"], "line 712: could not convert string to float: 'x'"),
        (["1", "2", "nan", "normal", "train"], "line 712: expected finite numbers, got 1, 2, nan"),
        (["1", "2", "normal", "train"], "line 712: expected 5 values, got 4"),
        (["1", "2", "3", "odd", "train"], "line 712: label 'odd' is not one of normal, anomaly"),
        (["1", "2", "3", "normal", "dev"], "line 712: split 'dev' is not one of"),
    ],
)
def test_unusable_data_is_refused_by_line(tmp_path: Path, row: list[str], message: str) -> None:
    recipe = anomaly_kit.write(tmp_path, anomaly_kit.recipe(), [*anomaly_kit.rows(), row])
    with pytest.raises(BuildError, match=message):
        build(recipe, Registry(tmp_path / "registry"), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["1", "1e39", "2", "normal", "test"], "row 201 of split test: flow is too large for float32"),
        (
            ["1700000030.1", "0", "0", "normal", "test"],
            "row 201 of split test: as float32 the same row is in split train",
        ),
    ],
)
def test_rows_are_checked_as_they_are_stored(tmp_path: Path, row: list[str], message: str) -> None:
    data = [*anomaly_kit.rows(), ["1700000000.1", "0", "0", "normal", "train"], row]
    recipe = anomaly_kit.write(tmp_path, anomaly_kit.recipe(), data)
    with pytest.raises(BuildError, match=message):
        build(recipe, Registry(tmp_path / "registry"), cache_dir=tmp_path / "cache")


def test_a_row_in_two_splits_is_refused(tmp_path: Path) -> None:
    data = anomaly_kit.rows()
    recipe = anomaly_kit.write(tmp_path, anomaly_kit.recipe(), [*data, [*data[0][:-1], "test"]])
    with pytest.raises(BuildError, match="line 712: the same row is in another split"):
        build(recipe, Registry(tmp_path / "registry"), cache_dir=tmp_path / "cache")
