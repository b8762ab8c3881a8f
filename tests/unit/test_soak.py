"""The soak's mixed load and its verdict."""

from __future__ import annotations

import itertools
import json
import os

import pytest

from loadtests.openloop import Outcome
from loadtests.payloads import Row
from loadtests.rss import Resident, growth, resident, title
from loadtests.soak import Mix, Soak, grown, table
from loadtests.transport import Response

ROWS = [Row("free money", "spam"), Row("kernel patch", "ham")]


def soak(**processes: list[float]) -> Soak:
    readings = {
        (number, name): [Resident(mib, mib / 2) for mib in series]
        for number, (name, series) in enumerate(processes.items())
    }
    return Soak(readings, minutes=max(map(len, processes.values())))


def test_growth_compares_the_ends_by_their_means() -> None:
    assert growth([100, 104, *[500] * 16, 110, 114]) == pytest.approx(112 / 102 - 1)
    assert growth([100, 90]) == pytest.approx(-0.1)


def test_this_process_is_resident() -> None:
    here = resident()
    assert 0 < here.own < here.total
    assert title(os.getpid())
    with pytest.raises(OSError, match="999999999"):
        resident(999_999_999)


def test_a_store_that_fills_up_in_the_first_half_is_no_leak_and_one_that_grows_on_is() -> None:
    fills = [100.0] * 6 + [101.0 + minute for minute in range(8)] + [109.0] * 17
    assert grown(soak(gateway=[1000.0] * 31, monitor=fills)) == []
    leaks = [100.0 + minute for minute in range(31)]
    assert grown(soak(gateway=[1000.0] * 31, monitor=leaks)) == ["monitor +13.0% since minute 15"]
    assert any("all processes" in one for one in grown(soak(gateway=leaks)))


def test_a_process_that_came_or_went_is_listed_and_not_judged() -> None:
    result = soak(gateway=[100.0] * 31, haproxy=[10.0])
    assert grown(result) == []
    assert "| haproxy | 10.0 |" in table(result)


def test_the_mix_holds_every_kind_of_request_and_gives_feedback_on_what_was_answered() -> None:
    mix, kinds = Mix("m", ROWS), {"single": 0, "several": 0, "feedback": 0, "wrong": 0}
    for request in itertools.islice(mix, 2000):
        if request.path.endswith("/feedback"):
            assert json.loads(request.body)["label"] in ("ham", "spam")
            kinds["feedback"] += 1
        elif request.tag is None:
            kinds["wrong"] += 1
        else:
            shape = json.loads(request.body)["inputs"][0]["shape"]
            kinds["single" if shape == [1] else "several"] += 1
            mix.answered(Outcome(request, 0, 0, 1, 1, Response(200)))
    assert kinds["single"] > kinds["several"] > kinds["feedback"] > kinds["wrong"] > 0
