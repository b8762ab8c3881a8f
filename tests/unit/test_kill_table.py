"""What is said about kills that were measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtests.kill import CASES, INPUTS, ROWS, Row, document, line, nearest_rank, requests
from loadtests.killing import Kill
from serving.config import parse_config

MS = 1_000_000


def row(*last_ms: float, case: str = "idle") -> Row:
    kills = [Kill(1000 * MS, 1004 * MS, int((1000 + last) * MS), 0) for last in last_ms]
    return Row(case, kills, {"answered": 500, "refused": 100, "late": 0, "failed": 2}, 10.0)


def test_an_answer_before_the_trip_counts_as_none() -> None:
    before, after = row(-3, 2.5).kills
    assert (before.last_ms, after.last_ms) == (0, 2.5)
    assert before.call_ms == 4


@pytest.mark.parametrize(("q", "expected"), [(0.5, 100), (0.99, 198), (1.0, 200), (0.0, 1)])
def test_quantiles_are_nearest_rank(q: float, expected: float) -> None:
    assert nearest_rank(list(range(200, 0, -1)), q) == expected


def test_a_case_holds_by_its_99th_percentile() -> None:
    assert row(*[1.0] * 99, 500).holds
    assert not row(*[1.0] * 98, 500, 500).holds
    assert row(*[200.0] * 10, case="saturated").holds


def test_the_line_has_kills_times_and_what_clients_got() -> None:
    cells = [cell.strip() for cell in line(row(-1, 2, 8)).strip("|").split("|")]
    assert cells == [
        *("idle", "50/s, 100 % to the candidate", "admin API", "3", "1", "2.0", "8.0", "8.0", "4.0", "4.0"),
        *("50", "10", "0", "2"),
    ]


def test_the_ways_of_a_kill_are_told_apart() -> None:
    ways = {case: line(row(1, case=case)).split("|")[3].strip() for case in CASES}
    assert ways["control-killed"] == "API, then word"
    assert ways["control-stopped"] == "control word"
    assert ways["controller-killed"] == ways["monitor-stopped"] == "admin API"


def test_the_configuration_is_valid(tmp_path: Path) -> None:
    config = parse_config(document(tmp_path, [9100, 9101, 9102, 9103]))
    assert config.models["dense"].routing.queue.default_timeout_ms == 300


def test_every_request_has_its_rows_and_a_user() -> None:
    made = requests(3)
    assert [dict(one.headers)["x-user-id"] for one in made] == ["user-0", "user-1", "user-2"]
    tensor = json.loads(made[0].body)["inputs"][0]
    assert len(tensor["data"]) == ROWS * INPUTS
