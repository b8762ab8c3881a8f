"""The derived features of a row: what is counted, and that texts cannot be read back from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serving.registry.manifest import TensorSpec
from serving.registry.store import Registry
from serving.runtimes.features import COLUMNS_MAX, of_answer, of_tensors, of_text
from serving.runtimes.pipeline import Pipeline, Summary
from tests.support import tiny


def test_shares_of_a_text() -> None:
    found = of_text("Ab 1!\nЖд 語", np.array([2, 1, 1, 5, 0, 0]), unknown_id=1)
    assert found["characters"] == 10
    assert found["tokens"] == 4  # padding is none
    assert found["unknown_share"] == 0.5
    assert found["distinct_share"] == 0.75
    assert found["upper_share"] == pytest.approx(0.2)  # A and Ж
    assert found["digit_share"] == pytest.approx(0.1)
    assert found["punctuation_share"] == pytest.approx(0.1)
    assert found["space_share"] == pytest.approx(0.3)
    assert found["other_script_share"] == pytest.approx(0.1)
    assert found["word_length"] == pytest.approx(7 / 4)


def test_an_empty_text_has_features_too() -> None:
    assert set(of_text("", np.array([0]), unknown_id=-1).values()) == {0.0}


def test_no_feature_of_a_text_is_a_text() -> None:
    assert all(isinstance(value, float) for value in of_text("secret", np.array([3]), 1).values())


def test_tensors_of_a_fixed_shape_give_their_elements_and_wide_ones_their_statistics() -> None:
    shapes = {"age": (-1, 1), "xy": (-1, 2), "wave": (-1, -1)}
    specs = [TensorSpec(name, "FP32", shape) for name, shape in shapes.items()]
    row = {"age": np.array([30.0]), "xy": np.array([1.0, np.inf]), "wave": np.array([1.0, 3.0])}
    assert of_tensors(row, specs) == {
        "age": 30.0, "xy_0": 1.0, "wave_size": 2.0, "wave_mean": 2.0, "wave_spread": 1.0,
    }  # fmt: skip


def test_the_number_of_columns_is_bounded() -> None:
    specs = [TensorSpec(f"t{at}", "FP32", (-1, 40)) for at in range(40)]
    assert len(of_tensors({spec.name: np.zeros(40) for spec in specs}, specs)) <= COLUMNS_MAX


def test_what_is_no_classification_has_no_answer_to_tell() -> None:
    assert of_answer(Summary(-1, 0.0, 0.0, 0.0), ()) == {}
    assert of_answer(Summary(1, 0.75, 0.5, -2.0), ("ham", "spam")) == {
        "class": "spam", "confidence": 0.75, "margin": 0.5, "energy": -2.0,
    }  # fmt: skip


def test_the_first_row_is_cut_as_the_tokenizer_reads_it(tmp_path: Path) -> None:
    tiny.build(tmp_path, {"teacher": tiny.graph()})
    pipeline = Pipeline(*Registry(tmp_path).open("tiny/teacher:1"))
    inputs = {"text": np.array([b"spam new", b"ham"], dtype=object)}
    text, arrays = pipeline.first_row(inputs, pipeline.preprocess(inputs))
    assert text == "spam new"
    found = of_text(text, next(iter(arrays.values())), pipeline.unknown_id)
    assert (found["tokens"], found["unknown_share"]) == (2.0, 0.5)
