"""Service level objectives: multi-window, multi-burn-rate alerts over lossless counters. Pure.

Burn rate: the share of bad events over the share the objective allows; at 1 the budget of the
window is used up exactly at its end. An alert needs the burn rate over a long and a short window
at once: the long one so that a blip does not page, the short one so that it ends when the trouble
does. Source: Google, "The Site Reliability Workbook", chapter 5, table 5-8.

>>> history = History()
>>> for minute in range(121):
...     history.add(minute * 60.0, total=minute * 600, bad=minute * 30)
>>> round(burn_rate(history, 0.999, 3600.0), 1)
50.0
>>> [alert.severity for alert in alerts(history, 0.999)][:2]
['page', 'page']
"""

from __future__ import annotations

from bisect import bisect_right

import msgspec

HOUR, DAY = 3600.0, 86_400.0
#: (burn rate, long window, short window, severity) for a budget over 30 days; `limit` scales it to others.
POLICIES: tuple[tuple[float, float, float, str], ...] = (
    (14.4, HOUR, 300.0, "page"),
    (6.0, 6 * HOUR, 1800.0, "page"),
    (3.0, DAY, 2 * HOUR, "ticket"),
    (1.0, 3 * DAY, 6 * HOUR, "ticket"),
)
#: The windows above, by the names used in metrics.
WINDOWS: dict[str, float] = {
    "5m": 300.0, "30m": 1800.0, "1h": HOUR, "2h": 2 * HOUR, "6h": 6 * HOUR, "1d": DAY, "3d": 3 * DAY,
}  # fmt: skip
#: A window in which so large a share is bad alerts, however large the budget: a total failure must always be told.
BAD_SHARE = 0.5
#: Events a long window must hold before an alert can fire.
MIN_EVENTS = 100
#: (step, span) in seconds of each resolution kept: about 1,330 samples in all.
_TIERS: tuple[tuple[float, float], ...] = ((10.0, HOUR), (120.0, 6 * HOUR), (600.0, 3 * DAY), (7200.0, 30 * DAY))

Sample = tuple[float, int, int]  # (time, total, bad), cumulative


class Alert(msgspec.Struct, frozen=True):
    """One policy that fires."""

    severity: str
    factor: float
    long_s: float
    short_s: float
    long_burn: float
    short_burn: float


class HistoryState(msgspec.Struct):
    """A stored `History`: `offset` is what has to be added to (total, bad) counters to go on from `tiers`."""

    tiers: list[list[Sample]] = []
    offset: tuple[int, int] = (0, 0)
    threshold_ms: float | None = None  # over which an event was bad


class History:
    """Cumulative counts over time, finely for the last hour and ever more coarsely before.

    Args:
        state: to go on from.
        threshold_ms: over which an event is bad, if that is a matter of its duration.
    """

    def __init__(self, state: HistoryState | None = None, threshold_ms: float | None = None) -> None:
        state = state or HistoryState()
        self._threshold_ms = threshold_ms
        self._moved = state.threshold_ms != threshold_ms  # the counters ever are not those of the samples
        self._tiers: list[list[Sample]] = [[(at, total, bad) for at, total, bad in tier] for tier in state.tiers]
        self._offset = state.offset
        if len(self._tiers) != len(_TIERS):
            self._tiers, self._offset = [[] for _ in _TIERS], (0, 0)
        self._newest: Sample | None = max((tier[-1] for tier in self._tiers if tier), default=None)

    def add(self, now_s: float, total: int, bad: int) -> None:
        """Counters ever, now.

        A budget of a month must outlive what happens to counters and clocks in it. Counters that fall, because a
        spool was lost, go on from where they were: what they held counts once. So do those of another threshold: what
        was good when it came stays good. A small step of the clock back is no sample; after a large one the samples
        from the future are dropped.
        """
        newest = self._newest
        if newest is not None and now_s < newest[0]:
            if now_s >= newest[0] - 60.0:
                return
            self._tiers = [[sample for sample in tier if sample[0] <= now_s] for tier in self._tiers]
        total, bad = total + self._offset[0], bad + self._offset[1]
        if newest is not None and (self._moved or total < newest[1] or bad < newest[2]):
            self._offset = (self._offset[0] + newest[1] - total, self._offset[1] + newest[2] - bad)
            total, bad = newest[1], newest[2]
        self._newest, self._moved = (now_s, total, bad), False
        for tier, (step, span) in zip(self._tiers, _TIERS, strict=True):
            if not tier or now_s - tier[-1][0] >= step:
                tier.append(self._newest)
                while tier[0][0] < now_s - span - step:
                    del tier[0]

    def over(self, window_s: float) -> tuple[int, int]:
        """(total, bad) in the last `window_s` seconds, or since the first sample if that is later."""
        if self._newest is None:
            return (0, 0)
        start = self._newest[0] - window_s
        tier = next(
            (tier for tier, (_, span) in zip(self._tiers, _TIERS, strict=True) if window_s <= span), self._tiers[-1]
        )
        at = bisect_right(tier, start, key=lambda sample: sample[0]) - 1
        first = tier[max(0, at)]
        return (self._newest[1] - first[1], self._newest[2] - first[2])

    def state(self) -> HistoryState:
        return HistoryState(self._tiers, self._offset, self._threshold_ms)


def burn_rate(history: History, objective: float, window_s: float) -> float:
    """Share of bad events in the window over the allowed share; 0 without events."""
    total, bad = history.over(window_s)
    return bad / total / (1.0 - objective) if total else 0.0


def budget_remaining(history: History, objective: float, window_s: float) -> float:
    """Share of the window's error budget that is left: 1 untouched, 0 used up, negative overdrawn."""
    return 1.0 - burn_rate(history, objective, window_s)


def objective_ratio(history: History, window_s: float) -> float | None:
    """Share of good events in the window; None without events."""
    total, bad = history.over(window_s)
    return 1.0 - bad / total if total else None


def limit(factor_30d: float, objective: float, window_s: float) -> float:
    """The burn rate over which a policy fires, for another objective and window.

    Scaled with the window, so that an alert means that the same share of its budget is gone. But never under 1, at
    which the objective is still kept; nor so high that hardly any failure could reach it, for a budget that is large.

    >>> [round(limit(factor, 0.999, 7 * DAY), 2) for factor, *_ in POLICIES]
    [3.36, 1.4, 1.0, 1.0]
    >>> [round(limit(factor, 0.8, 30 * DAY), 2) for factor, *_ in POLICIES]
    [2.5, 2.5, 2.5, 1.0]
    """
    return max(1.0, min(factor_30d * window_s / (30 * DAY), BAD_SHARE / (1.0 - objective)))


def alerts(history: History, objective: float, window_s: float = 30 * DAY) -> list[Alert]:
    """The policies that fire now, the most urgent first; `window_s` is the objective's."""
    firing = []
    for factor_30d, long_s, short_s, severity in POLICIES:
        factor = limit(factor_30d, objective, window_s)
        total, _ = history.over(long_s)
        long_burn = burn_rate(history, objective, long_s)
        short_burn = burn_rate(history, objective, short_s)
        if total >= MIN_EVENTS and long_burn > factor and short_burn > factor:
            firing.append(Alert(severity, factor, long_s, short_s, long_burn, short_burn))
    return firing
