"""The console's charts: one row a second, bounded, whatever the order of arrival."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from monitoring.windows import KEPT_S, OPEN_S, VariantState, Window


def fill(window: Window, second: int, count: int = 100, base_us: float = 1000.0, errors: int = 0) -> None:
    durations = np.linspace(base_us, 2 * base_us, count)
    window.requests(np.full(count, second), durations, np.arange(count) < errors)


def test_a_second_becomes_a_row() -> None:
    window = Window()
    fill(window, 1000, errors=7)
    window.pairs(np.array([1000, 1000]), np.array([4, 6]), np.array([1, 0]))
    series = window.series(1002, 2)
    assert series["rps"] == [100, 0]
    assert series["error_ratio"] == [0.07, None]
    assert series["agreement"] == [0.9, None]
    assert series["p50_ms"][0] == pytest.approx(1.5, rel=0.06)
    assert series["p99_ms"][0] == pytest.approx(2.0, rel=0.06)
    assert series["p99_ms"][1] is None


def test_the_second_in_progress_is_not_shown() -> None:
    window = Window()
    fill(window, 1000)
    assert window.series(1000, 1)["rps"] == [0]


def test_late_records_join_their_second_while_it_is_open() -> None:
    window = Window()
    fill(window, 1000, 10)
    fill(window, 1000 + OPEN_S - 1, 10)
    fill(window, 1000, 10)
    fill(window, 1000 + OPEN_S, 10)
    fill(window, 1000, 10)
    assert window.series(1001, 1)["rps"] == [20]
    assert window.late == 10


def test_the_past_is_bounded() -> None:
    window = Window()
    for second in range(3 * KEPT_S):
        fill(window, second, 1)
    state = window.state()
    assert len(state.closed) + len(state.open) <= KEPT_S
    assert sum(window.series(3 * KEPT_S, KEPT_S)["rps"]) == KEPT_S


def test_a_stored_window_goes_on() -> None:
    whole, window = Window(), Window()
    for second in range(20):
        fill(whole, second)
        fill(window, second)
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(window.state()), type=VariantState, strict=False)
    again = Window(stored)
    for second in range(17, 30):
        fill(whole, second)
        fill(again, second)
    assert again.series(30, 30) == whole.series(30, 30)


def test_extreme_durations_stay_in_range() -> None:
    window = Window()
    window.requests(np.array([5, 5]), np.array([0.0, 1e12]), np.array([False, False]))
    assert 0 < window.series(6, 1)["p50_ms"][0] < window.series(6, 1)["p99_ms"][0] < 1e6


def test_the_rate_is_that_of_a_span_before_a_second() -> None:
    window = Window()
    for second in range(1000, 1060):
        fill(window, second, 80)
    assert window.rate(1060, 60) == 80.0
    assert window.rate(1030, 60) == 40.0
    assert window.rate(2000, 60) == 0.0


def test_after_the_clock_is_set_back_the_charts_go_on() -> None:
    window = Window()
    fill(window, 900, 5)
    fill(window, 1000 + 600, 10)
    window.rewind(1000)
    fill(window, 1000, 20)
    assert window.series(1001, 101)["rps"] == [5, *[0] * 99, 20]
    assert window.rate(1001, 1) == 20.0
    assert window.late == 0
    window.rewind(1000)  # a small step is nothing
    fill(window, 1000 + OPEN_S, 1)
    window.rewind(1000)
    assert window.series(1000 + OPEN_S + 1, 1)["rps"] == [1]
