"""What differs between two artifacts."""

from __future__ import annotations

from pathlib import Path

import pytest
from registry_kit import made_from, put

from serving.clock import FakeClock
from serving.registry.diff import Change, FileChange, Number, difference
from serving.registry.manifest import Postprocess
from serving.registry.store import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry", FakeClock())


def test_files_fields_and_numbers(registry: Registry) -> None:
    a = put(registry, "a", "one", words=True, evaluation={"accuracy": 0.75, "slices": {"short": 0.5}, "rows": 8})
    b = put(
        registry,
        "b",
        "three",
        lineage=made_from(a),
        postprocess=Postprocess(temperature=1.5),
        evaluation={"accuracy": 0.5, "slices": {"short": 0.5}, "flips": 3, "checked": True},
    )
    found = difference(a, b)
    assert (found.a, found.b, found.same_content) == ("m/a:1", "m/b:1", False)
    assert found.files == [
        FileChange("model.onnx", a.files["model.onnx"], b.files["model.onnx"]),
        FileChange("words.txt", a.files["words.txt"], None),
    ]
    fields = {change.path: (change.a, change.b) for change in found.fields}
    assert fields["version"] == (1, 2)
    assert fields["postprocess.temperature"] == (1.0, 1.5)
    assert fields["lineage.relation"] == ("root", "quantized")
    assert fields["lineage.parents[0].ref"] == (None, "m/a:1")
    assert fields["evaluation.checked"] == (None, True)
    assert not any(path.startswith(("signature", "session", "format")) for path in fields)
    assert found.evaluation == [
        Number("evaluation.accuracy", 0.75, 0.5, -0.25),
        Number("evaluation.rows", 8, None, None),
        Number("evaluation.slices.short", 0.5, 0.5, 0.0),
        Number("evaluation.flips", None, 3, None),
    ]


def test_nothing_differs_from_itself_and_measurements_are_no_content(registry: Registry) -> None:
    made = put(registry, "a", "one", evaluation={"accuracy": 0.75, "latency_ms": 1.0})
    same = difference(made, made)
    assert same.same_content
    assert (same.files, same.fields) == ([], [])
    other = put(registry, "a", "two", evaluation={"accuracy": 0.75})
    assert Change("version", 1, 2) in difference(made, other).fields
