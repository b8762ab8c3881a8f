"""The renders under golden/ are what the chart makes. `UPDATE_GOLDEN=1 pytest tests/helm` rewrites them."""

from __future__ import annotations

import difflib
import os

import charts
import pytest
from helm_python import lint


@pytest.mark.parametrize("case", charts.CASES)
def test_the_chart_lints_without_a_warning(case: str) -> None:
    report = lint(charts.CHART, charts.values(case), strict=True, kube_version="v1.31.0")
    assert report["errors"] == []
    findings = [item for item in report["messages"] if "icon is recommended" not in item["error"]]
    assert findings == []


@pytest.mark.parametrize("case", charts.CASES)
def test_the_render_is_the_golden_one(case: str) -> None:
    golden = charts.GOLDEN / f"{case}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(charts.text_of(case), encoding="utf-8")
    expected = golden.read_text(encoding="utf-8").splitlines()
    difference = list(difflib.unified_diff(expected, charts.text_of(case).splitlines(), golden.name, "rendered", n=2))
    assert not difference, "\n".join([*difference, "if this is meant: UPDATE_GOLDEN=1 pytest tests/helm"])


def test_the_notes_say_how_to_reach_it() -> None:
    notes = charts.render(charts.values("default"))["NOTES.txt"]
    assert "demo-canarium.ml.svc:8000/v2/models/moderation/infer" in notes
    assert "port-forward service/demo-canarium-control 8003" in notes


def test_the_notes_say_what_an_upgrade_changes_and_when() -> None:
    notes = " ".join(charts.render(charts.values("default"))["NOTES.txt"].split())
    in_place, anew = notes.index("reaches the running cluster by itself"), notes.index("when the cluster is made anew")
    assert notes.rindex("A changed configuration (models, server", 0, in_place) < in_place
    assert notes.rindex("Image, resources", 0, anew) > in_place
    assert "a variant that is no longer listed ends at once" in notes
