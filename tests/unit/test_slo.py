"""Burn rates over several windows, and what counts as good."""

from __future__ import annotations

import doctest

import msgspec
import numpy as np
import pytest

from monitoring import slo
from monitoring.config import MonitorModel, MonitorVariant, SloTarget
from monitoring.ingest import Totals
from monitoring.objectives import Objectives, count, slo_verdict
from monitoring.slo import (
    POLICIES,
    WINDOWS,
    History,
    HistoryState,
    alerts,
    budget_remaining,
    burn_rate,
    objective_ratio,
)
from serving.contract import C_LIVE_ERROR, C_LIVE_OK, C_STATUS, CELLS, STATUS_CODES

DAY = 86_400
OBJECTIVE = 0.999


def history(*phases: tuple[float, float], step: float = 10.0, rate: int = 100) -> History:
    """Phases of (seconds, share of bad events) at 10 requests a second."""
    result, now, total, bad = History(), 0.0, 0, 0.0
    result.add(0.0, 0, 0)
    for seconds, share in phases:
        for _ in range(int(seconds / step)):
            now, total, bad = now + step, total + rate, bad + rate * share
            result.add(now, total, round(bad))
    return result


def test_the_share_of_bad_events_over_the_allowed_share() -> None:
    steady = history((3600, 0.01))
    assert burn_rate(steady, OBJECTIVE, 3600) == pytest.approx(10, rel=0.02)
    assert objective_ratio(steady, 3600) == pytest.approx(0.99, rel=0.001)
    assert budget_remaining(steady, 0.98, 30 * DAY) == pytest.approx(0.5, rel=0.02)


def test_no_events_burn_nothing_and_prove_nothing() -> None:
    empty = History()
    assert burn_rate(empty, OBJECTIVE, 3600) == 0
    assert objective_ratio(empty, 3600) is None
    assert alerts(empty, OBJECTIVE) == []


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        (((7200, 0.0),), []),
        (((7200, 0.02),), [14.4, 6.0, 3.0, 1.0]),
        (((DAY, 0.0), (40, 0.3)), []),  # a blip: the hour has seen far less
        (((7200, 0.02), (600, 0.0)), [6.0, 3.0, 1.0]),  # over for ten minutes: the fastest has let go
        (((6 * 3600, 0.007),), [6.0, 3.0, 1.0]),
        (((3 * DAY, 0.002),), [1.0]),
        (((3 * DAY, 0.0009),), []),
    ],
)
def test_both_windows_must_burn(phases: tuple[tuple[float, float], ...], expected: list[float]) -> None:
    fine = history(*phases, step=60.0 if sum(seconds for seconds, _ in phases) > DAY else 10.0)
    assert [alert.factor for alert in alerts(fine, OBJECTIVE)] == expected


@pytest.mark.parametrize(("days", "factor"), [(7, 14.4 * 7 / 30), (14, 6.72), (30, 14.4)])
def test_factors_are_those_of_the_generated_rules(days: int, factor: float) -> None:
    """2 % of the budget in an hour, whatever the window; as deployments/prometheus/generate.py has it."""
    over, under = (history((7200, factor * share), rate=100_000) for share in (0.00101, 0.00099))
    assert alerts(over, OBJECTIVE, days * DAY)[0].factor == pytest.approx(factor)
    assert factor not in [pytest.approx(alert.factor) for alert in alerts(under, OBJECTIVE, days * DAY)]


def test_while_the_objective_is_kept_nothing_alerts() -> None:
    """A share of a week's budget that is worth telling would be used up at a rate under 1."""
    assert alerts(history((3 * DAY, 0.0005), step=60.0), OBJECTIVE, 7 * DAY) == []
    assert alerts(history((3 * DAY, 0.002), step=60.0), OBJECTIVE, 7 * DAY) != []


@pytest.mark.parametrize("objective", [0.05, 0.5, 0.8, 0.9, 0.95, 0.99, OBJECTIVE])
@pytest.mark.parametrize("days", [1, 7, 30])
def test_a_total_failure_always_pages(objective: float, days: int) -> None:
    """Also where the budget is so large that no failure burns it 14.4 times too fast."""
    failing = history((7200, 1.0))
    assert [alert.severity for alert in alerts(failing, objective, days * DAY)] == ["page", "page", "ticket", "ticket"]


def test_few_events_alert_nobody() -> None:
    few = History()
    few.add(0, 0, 0)
    few.add(60, 20, 20)
    assert alerts(few, OBJECTIVE) == []


def test_memory_is_bounded_over_a_month_and_old_trouble_is_forgotten() -> None:
    long = history((3600, 0.5), (31 * DAY, 0.0), step=60.0)
    assert sum(len(tier) for tier in long.state().tiers) < 1500
    assert burn_rate(long, OBJECTIVE, 3 * DAY) == 0
    assert budget_remaining(long, OBJECTIVE, 30 * DAY) == 1


def test_it_can_be_stored_and_survives_time_and_counts_going_back() -> None:
    first = history((3600, 0.01))
    again = History(msgspec.msgpack.decode(msgspec.msgpack.encode(first.state()), type=HistoryState))
    assert again.over(600) == first.over(600)
    again.add(3590.0, 999_999, 0)  # a small step back is no sample
    assert again.over(3600) == first.over(3600)


def test_a_lost_spool_takes_no_event_back_and_counts_none_twice() -> None:
    """Counters fall by what was in it, and go on; also when the fall comes right after a restart."""
    kept = history((3600, 0.01))  # 36,000 requests, 360 bad
    kept.add(3610.0, 20_000, 150)
    assert kept.over(30 * DAY) == (36_000, 360)
    again = History(msgspec.msgpack.decode(msgspec.msgpack.encode(kept.state()), type=HistoryState))
    again.add(3620.0, 20_100, 160)
    assert again.over(30 * DAY) == (36_100, 370)
    again.add(3630.0, 100, 0)
    again.add(3640.0, 200, 1)
    assert again.over(30 * DAY) == (36_200, 371)


def test_a_clock_set_back_by_hours_keeps_the_budget_that_was_used() -> None:
    used = history((3 * 3600, 0.01), (3600, 0.0))
    used.add(2 * 3600.0, 144_100, 1080)
    assert used.over(30 * DAY) == (144_100, 1080)
    used.add(2 * 3600.0 + 60, 144_200, 1090)
    assert used.over(30 * DAY) == (144_200, 1090)


def test_windows_of_the_policies_have_names() -> None:
    assert {span for _, long, short, _ in POLICIES for span in (long, short)} == set(WINDOWS.values())


def totals(latency: dict[float, int] | None = None, ok: int = 0, error: int = 0, **status: int) -> Totals:
    cells = np.zeros(CELLS, dtype=np.uint64)
    for code, number in status.items():
        cells[C_STATUS + STATUS_CODES.index(int(code[1:]))] = number
    cells[C_LIVE_OK], cells[C_LIVE_ERROR] = ok, error
    return Totals(cells, latency or {})


def test_what_counts_as_bad() -> None:
    latency = SloTarget("latency", 0.99, 100.0)
    assert count(latency, [totals({50.0: 5, 100.0: 3, 200.0: 2, float("inf"): 1})], whole=True) == (11, 3)
    availability = SloTarget("availability", 0.999)
    answers = totals(ok=90, error=10, s200=90, s400=50, s404=7, s429=2, s499=5, s500=1, s503=3, s504=4)
    assert count(availability, [answers], whole=True) == (100, 10)
    assert count(availability, [answers, answers], whole=True) == (200, 20)
    assert count(availability, [answers], whole=False) == (100, 10)


def test_an_overdrawn_budget_is_not_called_kept() -> None:
    model = MonitorModel("a", "a", {"a": MonitorVariant()}, slo=[SloTarget("availability", 0.999)])
    objectives, good = Objectives(model), 0
    objectives.add(0, {"a": totals()})
    objectives.add(60, {"a": totals(ok=1000, error=500, s200=1000, s500=500)})
    for day in range(1, 15):  # two weeks of health: nothing burns any more
        good += 1000
        objectives.add(day * 86_400, {"a": totals(ok=1000 + good, error=500, s200=1000 + good, s500=500)})
    for status in objectives.status():
        verdict = slo_verdict(status, 0)
        assert (verdict.verdict, verdict.action) == ("inconclusive", "none")
        assert "has missed its availability objective of 99.9 %" in verdict.sentence
        assert "is overdrawn by" in verdict.sentence


@pytest.mark.parametrize(("before_ms", "after_ms"), [(100.0, 75.0), (75.0, 100.0), (100.0, 100.0)])
def test_a_moved_threshold_judges_what_comes_and_leaves_what_was(before_ms: float, after_ms: float) -> None:
    """Buckets of the past have no edge at the new threshold, and were good or bad by the old one."""

    def objectives(threshold_ms: float, state: dict[str, HistoryState] | None = None) -> Objectives:
        targets = [SloTarget("latency", 0.99, threshold_ms)]
        return Objectives(MonitorModel("a", "a", {"a": MonitorVariant()}, slo=targets), state)

    earlier, counts = objectives(before_ms), {50.0: 0, before_ms: 0, 200.0: 0}
    for second in range(0, 7200, 10):
        counts = {50.0: second * 89, before_ms: second * 10, 200.0: second // 2}  # half of the budget is used
        earlier.add(second, {"a": totals(counts)})
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(earlier.state()), type=dict[str, HistoryState])
    again = objectives(after_ms, stored)
    for second in range(7200, 7260):
        again.add(second, {"a": totals({**counts, 60.0: (second - 7190) * 100})})
    for status in again.status():
        assert status.alerts == []
        assert status.budget_remaining == pytest.approx(0.5, abs=0.02)
    for second in range(7260, 7560):  # and those that come are judged by the new one
        again.add(second, {"a": totals({**counts, 60.0: 7000, after_ms + 10: (second - 7259) * 100})})
    assert all(status.alerts for status in again.status())


def test_verdicts_of_objectives_alert_and_never_act() -> None:
    model = MonitorModel("a", "a", {"a": MonitorVariant()}, slo=[SloTarget("availability", 0.999)])
    objectives = Objectives(model)
    objectives.add(0, {"a": totals()})
    assert {slo_verdict(status, 0).verdict for status in objectives.status()} == {"no_data"}
    objectives.add(60, {"a": totals(ok=1000, s200=1000)})
    assert {slo_verdict(status, 0).verdict for status in objectives.status()} == {"pass"}
    objectives.add(120, {"a": totals(ok=1000, error=500, s200=1000, s500=500)})
    for status in objectives.status():
        verdict = slo_verdict(status, 0)
        assert (verdict.guard, verdict.verdict, verdict.action) == ("availability_slo", "fail", "alert")
        assert "burns its availability budget (99.9 %)" in verdict.sentence
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(objectives.state()), type=dict[str, HistoryState])
    again = Objectives(model, stored)
    assert again.status() == objectives.status()


def test_the_example_in_the_docstring_holds() -> None:
    assert doctest.testmod(slo) == doctest.TestResults(failed=0, attempted=6)
