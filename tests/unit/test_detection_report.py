"""The tables of the detection benchmark, and what it calls a kept promise."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from loadtests.detection import design, report
from loadtests.detection.bounds import Speed
from loadtests.detection.design import FLIPS
from loadtests.detection.measure import TOLERANT, Delays, Found
from loadtests.detection.plots import draw
from loadtests.proportions import upper


def delays(*seconds: float) -> Delays:
    return Delays(np.array(seconds))


def test_delays_tell_early_missing_and_median() -> None:
    one = delays(-math.inf, 10.0, 20.0, math.inf)
    assert (one.early, one.power, one.median) == (1, pytest.approx(2 / 3), 20.0)
    assert math.isinf(delays(math.inf, math.inf, 5.0).median)


def test_false_alarms_are_judged_by_a_limit_that_holds_for_all_nulls_at_once() -> None:
    assert report.corrected_upper(0, 1000, 7) == pytest.approx(upper(0, 1000, 0.05 / 7))
    rows = [("i.i.d.", 1000, {"any": 0}), ("bursty", 1000, {"any": 30, "errors": 30})]
    lines, missed = report.null_table(rows, 4000)
    assert len(lines) == 4
    assert [text.split(":")[0] for text in missed] == ["false alarms, bursty"]
    assert "errors 30" in lines[3]


def test_label_selection_is_reported_and_not_judged() -> None:
    lines, missed = report.null_table([(report.UNJUDGED, 100, {"any": 90, "harm": 90})], 4000)
    assert missed == []
    assert "reported only" in lines[2]


def test_only_the_aim_at_twice_the_limit_is_judged() -> None:
    speeds = [Speed("agreement", harm, 100.0, 150.0, 200.0, 0, 10) for harm in (1.5, 2.0)]
    _, missed = report.speed_table(speeds)
    assert missed == ["delay, agreement at 2 ×: 1.50 times the bound, aim 1.3"]
    assert report.speed_table([Speed("errors", 2.0, 100.0, 130.0, 200.0, 0, 10)])[1] == []


def test_the_table_says_where_a_comparator_is_ahead() -> None:
    cell = design.ERRORS[1]
    behind = Found(cell, {"errors": delays(10.0, 20.0)}, {"ADWIN": delays(50.0, 60.0)})
    in_front = Found(cell, {"errors": delays(100.0, 200.0)}, {"ADWIN": delays(50.0, 60.0)})
    lines, slower = report.harm_table([behind])
    assert slower == []
    assert "errors **20.0 s**" in lines[2]
    _, slower = report.harm_table([behind, in_front])
    assert slower == ["errors 1 %: ADWIN"]
    assert report.ahead(slower).startswith("**Where a comparator is ahead")


def test_where_neither_finds_half_the_one_that_finds_more_is_ahead() -> None:
    guard, other = delays(math.inf, math.inf, math.inf), delays(math.inf, math.inf, 9.0)
    _, slower = report.harm_table([Found(design.FLIPS[0], {"agreement": guard}, {"KS, 10 min": other})])
    assert slower == ["flips +1 points: KS, 10 min"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.34, "12.3 s"), (300.0, "5.0 min"), (7200.0, "2.0 h"), (90_000.0, "25 h"), (math.inf, "–")]
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert report.span(seconds) == text


def test_a_section_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text(f"# Results\n\n{report.HEADING}\n\nold\n\n## Next\n\nkept\n")
    report.write_section(path, f"{report.HEADING}\n\nnew\n")
    assert path.read_text() == f"# Results\n\n{report.HEADING}\n\nnew\n\n## Next\n\nkept\n"
    path.write_text("# Results\n")
    report.write_section(path, f"{report.HEADING}\n\nnew\n")
    assert path.read_text() == f"# Results\n\n{report.HEADING}\n\nnew\n"


def test_every_cell_has_a_healthy_stream_to_calibrate_on_and_a_guard_that_is_meant_for_it() -> None:
    for cell in design.FULL.cells:
        assert cell.kind in design.HEALTHY_CELLS
        assert cell.guards
    assert {cell.factor for cell in design.DEFAULTS} == {""}
    assert all(cell.factor for cell in design.FACTORS)
    assert set(design.QUICK.cells) <= set(design.DEFAULTS)


def test_the_plots_show_the_guard_meant_for_a_harm_beside_the_comparators(tmp_path: Path) -> None:
    found = [
        Found(
            cell,
            {
                "agreement": Delays(np.array([60.0 / cell.magnitude])),
                "agreement" + TOLERANT: Delays(np.array([np.inf])),
            },
            {"ADWIN": Delays(np.array([120.0]))},
        )
        for cell in FLIPS
    ]
    paths = draw(found, tmp_path)
    assert [path.name for path in paths] == ["detection-power.svg", "detection-delay.svg"]
    for path in paths:
        text = path.read_text()
        assert all(word in text for word in ("flips: agreement", "guard, default margins", "ADWIN"))
        assert "temperature" not in text
