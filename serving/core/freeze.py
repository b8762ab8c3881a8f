"""Freeze windows: spells in which a rollout may not advance, given by a cron expression and a time zone.

A window opens at each minute that the expression names, by the clock on the wall of its time zone, and
stays open for its duration. A strict reader of the five classical fields; no names, no macros:

    minute (0-59)  hour (0-23)  day of the month (1-31)  month (1-12)  day of the week (0-7, 0 and 7: Sunday)

each of them `*`, a number, a range `a-b`, either with a step `/n`, or a comma-separated list of those.
As in Vixie cron, day of the month and day of the week are alternatives when neither is `*`.

Minutes that a change to daylight-saving time skips never open a window; those that it repeats open it
at their first occurrence.

>>> window = Window("0 18 * * 5", "62h", "Europe/Berlin")  # from Friday evening to Monday morning
>>> closes_ns(window, _ns(2026, 7, 25, 12)) == _ns(2026, 7, 27, 6)  # UTC; two hours behind Berlin
True
>>> closes_ns(window, _ns(2026, 7, 27, 6)) is None
True
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

#: The longest window; longer ones are a policy, not a freeze.
MAX_DAYS = 31
SECOND_NS = 1_000_000_000
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day of the month", 1, 31), ("month", 1, 12), ("day of the week", 0, 7))


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a freeze begins (`cron`, in `time_zone`) and how long it lasts (`duration`, such as "62h")."""

    cron: str
    duration: str
    time_zone: str = "UTC"


class Cron(msgspec.Struct, frozen=True):
    """A parsed expression: the allowed values of each field."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]  # 0 is Sunday
    either_day: bool  # day of the month or of the week is enough

    def on(self, day: date) -> bool:
        """Whether it names any minute of this day."""
        if day.month not in self.months:
            return False
        by_date, by_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return by_date or by_week if self.either_day else by_date and by_week


def seconds(duration: str) -> float:
    """Seconds of a duration such as "90s", "10m", "2h" or "1.5d". Raises `ValueError` on any other text."""
    number, unit = duration[:-1], duration[-1:]
    if unit not in _UNITS or not number.replace(".", "", 1).isdecimal():
        raise ValueError(f"{duration!r} is not a duration such as 90s, 10m, 2h or 1d")
    return float(number) * _UNITS[unit]


@lru_cache(maxsize=256)
def parse_cron(expression: str) -> Cron:
    """Read an expression. Raises `ValueError` that says which field cannot be used and why."""
    parts = expression.split()
    if len(parts) != len(_FIELDS):
        raise ValueError(f"{expression!r} has {len(parts)} fields, a cron expression has 5: '0 18 * * 5'")
    sets = [_values(part, *field) for part, field in zip(parts, _FIELDS, strict=True)]
    weekdays = frozenset(day % 7 for day in sets[4])
    return Cron(sets[0], sets[1], sets[2], sets[3], weekdays, parts[2] != "*" and parts[4] != "*")


def _values(text: str, name: str, least: int, most: int) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        span, slash, every = part.partition("/")
        low, dash, high = span.partition("-")
        if span == "*":
            low, high, dash = str(least), str(most), "-"
        if slash and not dash:
            raise ValueError(f"{name} {part!r}: a step needs a range, such as */5")
        numbers = [low, *([high] if dash else []), *([every] if slash else [])]
        if not all(number.isascii() and number.isdecimal() for number in numbers):
            raise ValueError(f"{name} {part!r} is not a number, a range or a step")
        first, last, stride = int(low), int(high) if dash else int(low), int(every) if slash else 1
        if not (least <= first <= most and least <= last <= most):
            raise ValueError(f"{name} {part!r} is not within {least}-{most}")
        if first > last:
            raise ValueError(f"{name} {part!r}: the range runs backwards")
        if stride < 1:
            raise ValueError(f"{name} {part!r}: a step is at least 1")
        found.update(range(first, last + 1, stride))
    return frozenset(found)


@lru_cache(maxsize=64)
def zone(name: str) -> tzinfo:
    """A time zone by its IANA name. Raises `ValueError` if it is not known on this machine."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{name!r} is no time zone known here, such as UTC or Europe/Berlin") from error


def closes_ns(window: Window, now_ns: int) -> int | None:
    """When the window that is open at `now_ns` closes, nanoseconds since the Unix epoch; None if none is open."""
    cron, where, lasts_s = parse_cron(window.cron), zone(window.time_zone), seconds(window.duration)
    now = datetime.fromtimestamp(now_ns / SECOND_NS, UTC)
    today = now.astimezone(where).date()
    for back in range(int(lasts_s // 86_400) + 2):
        opened = _last_opening(cron, where, today - timedelta(days=back), now)
        if opened is not None:
            closes = opened + timedelta(seconds=lasts_s)
            return int(closes.timestamp()) * SECOND_NS if now < closes else None
    return None


def frozen_until(windows: Iterable[Window], now_ns: int) -> int | None:
    """The latest close of the windows that are open at `now_ns`; None if none is."""
    return max((at for window in windows if (at := closes_ns(window, now_ns)) is not None), default=None)


def _last_opening(cron: Cron, where: tzinfo, day: date, now: datetime) -> datetime | None:
    """The latest minute of a day, not after `now`, at which the expression opens a window; in UTC."""
    if not cron.on(day):
        return None
    for hour in sorted(cron.hours, reverse=True):
        for minute in sorted(cron.minutes, reverse=True):
            local = datetime(day.year, day.month, day.day, hour, minute, tzinfo=where)
            opened = local.astimezone(UTC)
            skipped = opened.astimezone(where).replace(tzinfo=None) != local.replace(tzinfo=None)
            if opened <= now and not skipped:
                return opened
    return None


def _ns(*parts: int) -> int:
    """Nanoseconds since the Unix epoch of a moment in UTC, for the examples above."""
    return int(datetime(*parts, tzinfo=UTC).timestamp()) * SECOND_NS  # type: ignore[misc, arg-type]
