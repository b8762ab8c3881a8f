"""When a feature counts as drifted, and what a report says: the statistics and the sentences, without Evidently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from monitoring.drift import report
from monitoring.drift.distance import OTHER, USUAL, jensen_shannon, simplified, thresholds, wasserstein
from monitoring.drift.job import Job, Summary
from monitoring.drift.rows import read_reference

NOW_MS = 1_800_000_000_000


def columns(rng: np.random.Generator, rows: int, shift: float = 0.0) -> dict[str, Any]:
    """Ten columns that hang together, one of words; `shift` moves the first by so many standard deviations."""
    common = rng.normal(size=rows)
    found: dict[str, Any] = {f"n{at}": common + rng.normal(size=rows) for at in range(9)}
    found["n0"] = found["n0"] + shift * np.sqrt(2)
    found["word"] = np.where(rng.random(rows) < 0.3, "spam", "ham").astype(object)
    return found


def test_distances_are_scipys() -> None:
    rng = np.random.default_rng(3)
    reference, current = rng.gamma(2, 3, 300).round(1), rng.gamma(2, 4, 200).round(1)
    assert wasserstein(reference, current) == pytest.approx(
        wasserstein_distance(reference, current) / reference.std(), rel=1e-9
    )
    before, after = np.array(["a"] * 7 + ["b"] * 3), np.array(["a"] * 2 + ["c"] * 2)
    assert jensen_shannon(before, after) == pytest.approx(jensenshannon([0.7, 0.3, 0], [0.5, 0, 0.5]), rel=1e-9)


def test_a_stable_stream_keeps_to_its_false_alarm_budget() -> None:
    rng, alarms = np.random.default_rng(11), 0
    for _ in range(60):
        reference, current = columns(rng, 150), columns(rng, 100)
        limits = thresholds(reference, 100, false_alarm=0.05, least=0.001, resamples=200)
        scores = {
            name: (jensen_shannon if name == "word" else wasserstein)(reference[name], current[name])
            for name in reference
        }
        alarms += any(scores[name] >= limits[name] for name in reference)
    assert alarms <= 9  # of 60 at 5 %: more by chance once in a thousand


def test_a_shift_is_found_and_a_least_distance_holds() -> None:
    rng = np.random.default_rng(5)
    reference = columns(rng, 800)
    limits = thresholds(reference, 600, false_alarm=0.001, least=0.1)
    assert all(limit >= 0.1 for limit in limits.values())
    current = columns(rng, 600, shift=0.5)
    numbers = [name for name in reference if name != "word"]
    assert [name for name in numbers if wasserstein(reference[name], current[name]) >= limits[name]] == ["n0"]


def test_more_rows_need_less_distance() -> None:
    reference = columns(np.random.default_rng(1), 300)
    few, many = (thresholds(reference, rows, false_alarm=0.01, least=1e-6, resamples=200)["n0"] for rows in (50, 5000))
    assert few > 2 * many


def test_a_column_that_hardly_varies_is_told_as_usual_or_other() -> None:
    reference = np.zeros(500)
    reference[:3] = 0.5
    before, after = simplified(reference, np.array([0.0, 0.7, 0.0]))
    assert before.tolist().count(OTHER) == 3
    assert after.tolist() == [USUAL, OTHER, USUAL]


def test_a_few_values_far_out_are_no_drift() -> None:
    reference = np.arange(100.0)
    before, after = simplified(reference, np.append(reference, 1e6))
    assert (before.min(), before.max()) == (pytest.approx(1.98), pytest.approx(97.02))
    assert wasserstein(before, after) < 0.05


# ---------------------------------------------------------------- the report


@pytest.fixture(autouse=True)
def page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidently is a matter of the integration test."""
    monkeypatch.setattr(report, "_render", lambda *_: "<html>")


def add_rows(folder: Path, made: dict[str, Any], **fields: int) -> None:
    """As a gateway leaves them."""
    values = {name: column.tolist() for name, column in made.items()}
    with (folder / "rows" / f"{NOW_MS - 1000:013d}-g.jsonl").open("a") as file:
        for row in zip(*values.values(), strict=True):
            whole = dict(zip(values, row, strict=True))
            file.write(json.dumps({**whole, "at_ms": NOW_MS - 500, "variant": "teacher", **fields}) + "\n")


def job(folder: Path, rows: int, shift: float = 0.0, reference: bool = True) -> Job:
    rng = np.random.default_rng(9)
    (folder / "rows").mkdir()
    add_rows(folder, columns(rng, rows, shift), artifact_version=2)
    path = folder / "reference.json"
    known = {name: values.tolist() for name, values in columns(rng, 600).items()}
    path.write_text(json.dumps({"schema": "canarium.reference/v1", "split": "test", "rows": 600, "columns": known}))
    where = str(path) if reference else ""
    return Job("m", "teacher", 2, where, str(folder / "rows"), str(folder / "out"), NOW_MS - 3_600_000, NOW_MS)


def made(folder: Path, **given: Any) -> Summary:
    return report.make(job(folder, **given))[0]


def test_rows_like_the_builds_pass(tmp_path: Path) -> None:
    summary = made(tmp_path, rows=500)
    assert (summary.verdict, summary.rows, summary.reference_rows, summary.share) == ("pass", 500, 600, 0.0)
    assert summary.sentence.startswith("teacher: none of 10 features of 500 sampled rows of the last 1 h is unlike")
    assert summary.html == f"{summary.stamp}.html"


def test_other_rows_fail_and_the_worst_feature_is_named(tmp_path: Path) -> None:
    summary = made(tmp_path, rows=500, shift=1.0)
    assert summary.verdict == "fail"
    assert [column.name for column in summary.columns if column.drifted] == ["n0"]
    assert "1 of 10 features" in summary.sentence
    assert "n0 1." in summary.sentence or "n0 0.9" in summary.sentence


def test_rows_that_an_earlier_artifact_answered_are_not_compared(tmp_path: Path) -> None:
    asked, rng = job(tmp_path, rows=300), np.random.default_rng(4)
    add_rows(tmp_path, columns(rng, 900, shift=2.0), artifact_version=1)
    add_rows(tmp_path, columns(rng, 900, shift=2.0))  # of an earlier release, which kept no version
    summary, _ = report.make(asked)
    assert (summary.verdict, summary.rows, summary.version) == ("pass", 300, 2)


def test_too_few_rows_are_no_pass(tmp_path: Path) -> None:
    summary = made(tmp_path, rows=50)
    assert (summary.verdict, summary.html, summary.share) == ("no_data", "", None)
    assert summary.sentence == "teacher: 50 sampled rows, under the 200 of a report"


def test_without_a_reference_it_says_so_and_shows_the_rows(tmp_path: Path) -> None:
    summary = made(tmp_path, rows=300, reference=False)
    assert summary.verdict == "no_data"
    assert "the artifact has no reference" in summary.sentence
    assert summary.html


def test_a_damaged_reference_is_named(tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    path.write_text('{"schema": "s", "split": "test", "rows": 2, "columns": {"a": [1.0]}}')
    with pytest.raises(ValueError, match=r"reference\.json: its columns have not all 2 rows"):
        read_reference(path)
