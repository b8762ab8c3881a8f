"""Freeze windows: cron expressions, time zones, the hours that daylight-saving time skips and repeats."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from serving.core.freeze import Window, closes_ns, frozen_until, parse_cron, seconds

WEEKEND = Window("0 18 * * 5", "62h", "Europe/Berlin")  # Friday 18:00 to Monday 08:00, by the clock in Berlin


def ns(*moment: int) -> int:
    return int(datetime(*moment, tzinfo=UTC).timestamp()) * 1_000_000_000  # type: ignore[misc, arg-type]


@pytest.mark.parametrize(
    ("moment", "closes"),
    [
        ((2026, 7, 24, 15, 59), None),  # Friday, a minute before 18:00 in summer time
        ((2026, 7, 24, 16, 0), (2026, 7, 27, 6, 0)),
        ((2026, 7, 26, 12, 0), (2026, 7, 27, 6, 0)),
        ((2026, 7, 27, 5, 59), (2026, 7, 27, 6, 0)),
        ((2026, 7, 27, 6, 0), None),
        ((2026, 1, 16, 16, 30), None),  # the same clock in winter is an hour later in UTC
        ((2026, 1, 16, 17, 0), (2026, 1, 19, 7, 0)),
    ],
)
def test_a_window_follows_the_clock_of_its_time_zone(moment: tuple[int, ...], closes: tuple[int, ...] | None) -> None:
    assert closes_ns(WEEKEND, ns(*moment)) == (None if closes is None else ns(*closes))


def test_an_hour_that_is_skipped_opens_nothing_and_one_that_comes_twice_opens_once() -> None:
    skipped = Window("30 2 29 3 *", "10m", "Europe/Berlin")  # 2026-03-29: from 02:00 at once to 03:00
    assert closes_ns(skipped, ns(2026, 3, 29, 1, 35)) is None
    twice = Window("30 2 25 10 *", "10m", "Europe/Berlin")  # 2026-10-25: 02:30 in summer and in winter time
    assert closes_ns(twice, ns(2026, 10, 25, 0, 35)) == ns(2026, 10, 25, 0, 40)
    assert closes_ns(twice, ns(2026, 10, 25, 1, 35)) is None


def test_of_several_windows_the_one_that_closes_last_counts() -> None:
    short, long = Window("0 12 * * *", "1h"), Window("0 12 * * *", "2h")
    assert frozen_until([short, long], ns(2026, 1, 1, 12, 30)) == ns(2026, 1, 1, 14)
    assert frozen_until([short, long], ns(2026, 1, 1, 15)) is None
    assert frozen_until([], ns(2026, 1, 1, 12, 30)) is None


def test_a_window_that_opens_again_while_it_is_open_counts_from_the_latest_opening() -> None:
    assert closes_ns(Window("0 * * * *", "90m"), ns(2026, 1, 1, 12, 30)) == ns(2026, 1, 1, 13, 30)


def test_day_of_the_month_and_of_the_week_are_alternatives() -> None:
    cron = parse_cron("0 0 13 * 5")
    assert cron.on(datetime(2026, 1, 13).date())  # a Tuesday
    assert cron.on(datetime(2026, 1, 16).date())  # a Friday
    assert not cron.on(datetime(2026, 1, 14).date())
    assert not parse_cron("0 0 13 * *").on(datetime(2026, 1, 16).date())


def test_lists_ranges_and_steps() -> None:
    cron = parse_cron("*/20 8-10,22 1-7/3 * 7")
    assert cron.minutes == {0, 20, 40}
    assert cron.hours == {8, 9, 10, 22}
    assert cron.days == {1, 4, 7}
    assert cron.weekdays == {0}


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("0 18 * *", "has 4 fields"),
        ("@daily", "has 1 fields"),
        ("60 * * * *", r"minute '60' is not within 0-59"),
        ("* * 0 * *", r"day of the month '0' is not within 1-31"),
        ("* * * * 8", r"day of the week '8'"),
        ("* * * jan *", r"month 'jan' is not a number"),
        ("5-1 * * * *", "runs backwards"),
        ("*/0 * * * *", "a step is at least 1"),
        ("5/10 * * * *", "a step needs a range"),
        ("1,,2 * * * *", "is not a number"),
        ("-1 * * * *", "is not a number"),
    ],
)
def test_an_expression_that_cannot_be_used_is_refused_with_the_field(expression: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse_cron(expression)


def test_durations() -> None:
    assert [seconds(text) for text in ("90s", "10m", "2h", "1.5d")] == [90, 600, 7200, 129_600]
    for text in ("", "10", "-5m", "5 m", "1w", "1e3s", "m", "nans"):
        with pytest.raises(ValueError, match="is not a duration such as"):
            seconds(text)
