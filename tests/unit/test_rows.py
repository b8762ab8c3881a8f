"""Where a part of the rows stands for all, it is not the first part: files are ordered by label more often than not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anomaly_kit
import build_kit
import numpy as np
import pytest
import stream_kit
from anomaly_kit import COLUMNS

from serving.build.anomaly import quantize as anomaly
from serving.build.anomaly.data import check_table
from serving.build.evaluate import mixed_batches, neighbour_delta
from serving.build.evidence import drift, examine, perturb, saturation, subject
from serving.build.evidence.report import parts
from serving.build.examples import Examples
from serving.build.imported import model as imported
from serving.build.imported.sound import CLIPS
from serving.build.rows import filled, spread
from serving.build.text import quantize as text
from serving.build.text.data import ROWS, check_data, read_split
from serving.build.text.tokenizer import train_tokenizer
from serving.build.text.train import encode


def tick(done: float, total: float, note: str = "") -> None: ...


class TestSpread:
    @pytest.mark.parametrize(("total", "rows"), [(1161, 400), (401, 400), (5, 1), (7350, 2000), (10, 9)])
    def test_one_row_of_each_stretch(self, total: int, rows: int) -> None:
        found = spread(total, rows)
        assert len(found) == rows
        edges = np.arange(rows + 1) * total // rows
        assert ((edges[:-1] <= found) & (found < edges[1:])).all()

    @pytest.mark.parametrize("rows", [3, 4])
    def test_all_rows_if_there_are_no_more(self, rows: int) -> None:
        assert spread(3, rows).tolist() == [0, 1, 2]

    def test_nothing_of_nothing(self) -> None:
        assert spread(0, 5).tolist() == spread(5, 0).tolist() == []

    @pytest.mark.parametrize(("total", "rows"), [(16, 16), (900, 32)])
    def test_filled_is_the_same_where_there_are_enough(self, total: int, rows: int) -> None:
        assert filled(total, rows).tolist() == spread(total, rows).tolist()

    @pytest.mark.parametrize("classes", [2, 3, 4, 8])
    @pytest.mark.parametrize("step", [1, 2, 4])
    def test_where_classes_take_turns_every_class_is_seen(self, classes: int, step: int) -> None:
        shares = np.bincount(spread(64 * classes * step, 64 * classes) % classes, minlength=classes)
        assert shares.min() > 32


def ordered(rows: int = 600) -> Examples:
    """Half ham, then half spam: what is asked of row n is "n"; its class can be told from it."""
    return Examples({"x": np.arange(float(rows), dtype=np.float32)[:, None]}, np.repeat([0, 1], rows // 2))


class Asked:
    """Pipeline and session in one: keeps what it is asked, and answers by `answer`."""

    def __init__(self, answer: Any) -> None:
        self.asked: list[np.ndarray] = []
        self._answer = answer

    def preprocess(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(inputs)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.asked.append(inputs["x"])
        return {"logits": self._answer(inputs["x"])}


class TestEvidence:
    def test_rows_of_every_class_are_perturbed_and_held_against_their_own_answers(self) -> None:
        test = ordered(900)
        found = subject.subject_of(test, test, ["ham", "spam"])
        assert np.bincount(test.classes[found.chosen]).tolist() == [200, 200]
        noisy = found.perturbed["sensor noise"]["x"][:, 0]
        assert noisy == pytest.approx(found.chosen, abs=0.3 * float(test.inputs["x"].std()))
        right = test.classes.copy()
        shaken = np.stack([right[found.chosen]] * (len(perturb.NUMERIC) + examine.TRIES))
        said = examine._robustness(found, right, shaken, right, shaken)
        assert said["hostile"]["rows"] == 400
        assert said["hostile"]["broken_rate"] == 0
        assert [each["flip_rate"] for each in said["perturbations"].values()] == [0, 0]

    def test_neighbours_are_looked_at_all_over_the_split(self) -> None:
        """Rows of the second half are told another answer where they are alone."""
        examples = ordered()
        asked = Asked(lambda x: np.where((x >= 300) & (len(x) == 1), 1.0, 0.0))
        logits = np.zeros((600, 1))
        assert neighbour_delta(asked, asked, examples, logits) == 1.0  # type: ignore[arg-type]
        assert len(asked.asked) == 64

    def test_batches_whose_time_is_taken_are_mixed(self) -> None:
        batches = mixed_batches(ordered(), 16, 10)
        assert len(batches) == 10
        for batch in batches:
            assert 6 <= (batch["x"] >= 300).sum() <= 10

    def test_a_batch_whose_time_or_memory_is_taken_is_full_however_few_rows_there_are(self) -> None:
        few = ordered(8)
        (batch,) = mixed_batches(few, 16, 4)
        assert np.bincount(batch["x"][:, 0].astype(int)).tolist() == [2] * 8
        assert len(examine._batch(subject.subject_of(few, few, ["ham", "spam"]))["x"]) == 16

    def test_activations_are_audited_all_over_the_split(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = Asked(None)

        class Audit:
            ranges = ()

            def __init__(self, path: Path) -> None: ...

            def run(self, inputs: Mapping[str, np.ndarray]) -> Any:
                asked.asked.append(inputs["x"])
                return _Found()

        monkeypatch.setattr(saturation, "RowAudit", Audit)
        found = saturation.activations(Path("model.onnx"), asked, ordered().inputs)  # type: ignore[arg-type]
        assert found is not None
        assert found["rows"] == 200
        assert (np.concatenate(asked.asked) >= 300).sum() == 100

    def test_a_shift_of_the_rows_that_ranges_come_from_is_told_apart_from_one_of_the_split(self) -> None:
        """Ranges of but a few rows can be off though the split is not."""
        random_ = np.random.default_rng(5)
        train = Examples({"x": random_.normal(size=(800, 2)).astype(np.float32)}, np.zeros(800, int))
        rows = random_.normal(size=(400, 2)).astype(np.float32)
        rows[spread(400, 40), 1] += 3
        found = subject.calibration_drift(train, Examples({"x": rows}, np.zeros(400, int)), 40)
        assert found["ranges"]["x"]["rows"] == {"train": 800, "calibration": 40}
        assert any(line.startswith("x[1]: Kolmogorov-Smirnov") for line in found["ranges"]["x"]["shifted"])
        assert found["split"]["x"]["rows"]["calibration"] == 400
        (part,) = parts({"evidence": {}, "calibration_drift": found}, "")
        assert any(line.startswith("- x: the 40 of them that INT8 ranges come from against 800") for line in part.lines)
        few = subject.calibration_drift(train, Examples({"x": rows}, np.zeros(400, int)), drift.LEAST_ROWS - 1)
        assert few["ranges"] == {}
        (part,) = parts({"evidence": {}, "calibration_drift": few}, "")
        assert any("too few of them" in line for line in part.lines)


class _Found:
    share, worst, sqnr_db = 0.0, 0.0, 30.0


class TestRanges:
    """INT8 ranges come from rows of every class, though the file is ordered by it."""

    @pytest.fixture
    def batches(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """What the quantizer is given: batches, then what is said of them."""
        found: list[Any] = []

        def static_int8(out: Path, source: Path, batches: Any, recipe: Any, calibration: Any) -> None:
            found.extend((list(batches), calibration))

        for module in (text, anomaly, imported):
            monkeypatch.setattr(module, "static_int8", static_int8)
        return found

    def test_of_texts(self, batches: list[Any], tmp_path: Path) -> None:
        rows = sorted(build_kit.rows(), key=lambda row: row["label"])
        labels, given = {"labels": ["ham", "spam"], "max_chars": 200}, tmp_path / "given"
        given.mkdir()
        build_kit.write(given, build_kit.recipe(), rows)
        check_data(tmp_path, {"file": given / "rows.jsonl.gz"}, labels, tick)
        needs = {"data": tmp_path, "tokenizer": tmp_path, "model": tmp_path}
        train_tokenizer(tmp_path, needs, labels | {"vocabulary": 100, "max_tokens": 16}, tick)
        (tmp_path / "model.onnx").touch()
        text.quantize(tmp_path, needs, labels | {"max_tokens": 16, "quantize": {"rows": 8}}, tick)
        split = read_split(tmp_path / ROWS, "calibration", ["ham", "spam"])
        known = {
            tuple(ids): label for ids, label in zip(encode(tmp_path, split.texts, 200), split.classes, strict=True)
        }
        ids = [tuple(row[row > 0].tolist()) for batch in batches[0] for row in batch["input_ids"]][:8]
        assert Counter(known[row] for row in ids) == {0: 5, 1: 3}  # as in the split: 14 and 10
        assert batches[1]["rows"] == 8

    def test_of_numbers_none_of_the_rows_is_lost(self, batches: list[Any], tmp_path: Path) -> None:
        rows = sorted(anomaly_kit.rows(), key=lambda row: row[-2], reverse=True)
        anomaly_kit.write(tmp_path, anomaly_kit.recipe(), rows)
        parameters = {"labels": ["normal", "anomaly"], "columns": list(COLUMNS), "quantize": {"rows": 100}}
        check_table(tmp_path, {"file": tmp_path / "rows.csv.gz"}, parameters, tick)
        anomaly.quantize(tmp_path, {"data": tmp_path, "model": tmp_path}, parameters, tick)
        given = np.concatenate([batch["features"] for batch in batches[0]])
        features, _ = anomaly.read_table(tmp_path, "calibration")
        assert {len(batch["features"]) for batch in batches[0]} == {64}
        assert {row.tobytes() for row in given} == {row.tobytes() for row in features[spread(150, 100)]}
        assert batches[1]["rows"] == 100

    def test_of_clips_no_more_than_are_asked_for(self, batches: list[Any], tmp_path: Path) -> None:
        (tmp_path / "model.onnx").write_bytes(stream_kit.graph().SerializeToString())
        windows = np.arange(4 * 15 * 72, dtype=np.float32).reshape(4, 15, 72) / 4320
        np.savez(tmp_path / CLIPS, **{"calibration-windows": windows, "calibration-classes": np.zeros((4, 15))})
        (tmp_path / "data.json").write_text('{"split_sha256": {"calibration": ""}}')
        stream = {"input": "input", "states": {"stateN": "state"}, "constants": {"sr": 16000}}
        inputs = [
            {"name": "input", "datatype": "FP32", "shape": [-1, 72]},
            {"name": "state", "datatype": "FP32", "shape": [1, -1, 1]},
            {"name": "sr", "datatype": "INT64", "shape": []},
        ]
        parameters = {"stream": stream, "inputs": inputs, "quantize": {"rows": 32}}
        imported.quantize(tmp_path, {"data": tmp_path, "model": tmp_path}, parameters, tick)
        steps = [int(np.flatnonzero((windows[0] == batch["input"][0]).all(axis=1))[0]) for batch in batches[0]]
        assert steps == spread(15, 8).tolist()
        assert batches[1]["rows"] == 32
