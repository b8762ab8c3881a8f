"""Do the users fall to the candidate as configured?"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from monitoring.detectors.base import Detector
from monitoring.detectors.units import SeenUnits

#: It passes when the odds of falling to the candidate are within this factor of the configured ones, either way.
PASS_RATIO = 1.1
_PASS_TILT = math.log(PASS_RATIO)
#: Log odds ratios that are bet on: 2 % to twenty-five times, in both directions. The first two decide a pass.
_SIZES = (_PASS_TILT, 0.02, 0.05, 0.2, 0.4, 0.8, 1.6, 3.2)
TILTS: npt.NDArray[np.float64] = np.array([sign * size for size in _SIZES for sign in (1.0, -1.0)])
_GROWTH = np.expm1(TILTS)
_LOG_K = math.log(len(TILTS))
#: Units between two looks at the evidence.
LOOK = 8
#: How long a request waits for those that began before it and take longer (nanoseconds), and how many may wait.
HOLD_NS = 5_000_000_000
HELD_MAX = 65_536


class Tilted:
    """Likelihood ratios of a share whose odds are off by a factor, one for each of TILTS.

    >>> tilted = Tilted()
    >>> for unit in range(200):
    ...     tilted.update(unit % 2 == 0, share=0.5)
    >>> round(tilted.log_evidence, 2), round(tilted.log_pass_evidence, 2)
    (-0.94, 0.23)
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._logs = np.zeros(len(TILTS))

    def update(self, candidate: bool, share: float) -> None:
        """One unit, of which the candidate was to get the share `share`, in (0, 1)."""
        gain = -np.log1p(share * _GROWTH)
        self._logs = self._logs + (gain + TILTS if candidate else gain)

    @property
    def log_evidence(self) -> float:
        """log of the mean of the ratios: evidence that the share is not the configured one."""
        return float(np.logaddexp.reduce(self._logs)) - _LOG_K

    @property
    def log_pass_evidence(self) -> float:
        """log of the lesser evidence against "off by PASS_RATIO", upwards and downwards."""
        return float(-max(self._logs[0], self._logs[1]))

    def state(self) -> list[float]:
        return [float(value) for value in self._logs]

    def load(self, state: list[float]) -> None:
        logs = np.array(state, dtype=np.float64)
        if logs.shape != TILTS.shape or not np.isfinite(logs).all():
            raise ValueError(f"expected {len(TILTS)} finite log ratios, got {state!r:.80}")
        self._logs = logs


class Held:
    """Requests that have ended, kept until they can be taken in the order in which they began.

    A candidate that answers late is recorded late: counted as they end, its users would be missing for as long.
    More than HELD_MAX are not kept: the earliest goes on.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._waiting: list[tuple[int, int, int, float]] = []  # a heap: begun, arm (-1 a third), unit, share

    def put(self, begun_ns: int, from_candidate: bool | None, unit: int, share: float) -> None:
        arm = -1 if from_candidate is None else int(from_candidate)
        heapq.heappush(self._waiting, (begun_ns, arm, unit, share))

    def take(self, before_ns: int) -> Iterator[tuple[bool | None, int, float]]:
        """Those that began until then, the earliest first: (from the candidate, unit, share)."""
        while self._waiting and (self._waiting[0][0] <= before_ns or len(self._waiting) > HELD_MAX):
            _, arm, unit, share = heapq.heappop(self._waiting)
            yield (None if arm < 0 else bool(arm)), unit, share

    def state(self) -> list[tuple[int, int, int, float]]:
        return list(self._waiting)

    def load(self, state: list[tuple[int, int, int, float]]) -> None:
        self._waiting = [(int(begun), int(arm), int(unit), float(share)) for begun, arm, unit, share in state]
        heapq.heapify(self._waiting)


class Srm(Detector):
    """Sample ratio mismatch: users of the candidate and of the baseline against the configured split.

    Assumption: a user is a hash bucket, so whether it is the candidate's is a coin whose chance w is the share in
    force when it was first met; w is exact, so any mismatch means that routing, recording or the users themselves
    are not what the comparison needs. Requests are taken in the order in which they began, and so only HOLD_NS later:
    else a candidate that stalls would lack users for a while. Each user counts once an arming, and counting begins
    behind the candidate's first request: what a candidate that is still being opened cannot take is no mismatch.
    Observation: for each user first met in either arm, X = 1{it is the candidate's}, in {0, 1}.
    Formula: E[X | past] = w, tested from both sides. L = exp(t X) / (1 - w + w exp(t)) is the likelihood ratio of
    odds that are exp(t) times the configured ones; its expectation under the null is 1 for every w, so w may change
    on the way. The evidence is the mean over 16 values of t of the products. Passes when "off by 10 % of the odds"
    is rejected in both directions, each by the same ratio turned round (monotone in X, so valid beyond it as well).
    Source: Lindon & Malek, "Anytime-valid inference for multinomial count data" (NeurIPS 2022), for the sequential
    test of a split; Fabijan et al., "Diagnosing sample ratio mismatch in online controlled experiments" (KDD 2019),
    for what it finds.

    >>> guard = Srm(alpha=0.002)
    >>> users = ((user, user % 5 == 0) for user in range(1, 10_000))  # a fifth, where a tenth was configured
    >>> next(user for user, candidate in users if guard.observe(candidate, unit=user << 32 | user, share=0.1))
    221
    """

    name: ClassVar[str] = "srm"
    FIELDS: ClassVar[tuple[str, ...]] = (*Detector.FIELDS, "expected", "begun", "stopped", "_tilted", "_units", "_held")

    def __init__(self, **budgets: float) -> None:
        self._tilted = Tilted()
        self._units = SeenUnits()
        self._held = Held()
        super().__init__(**budgets)

    def reset(self) -> None:
        super().reset()
        self._tilted.reset()
        self._units.reset()
        self._held.reset()
        self.expected = 0.0
        self.begun = False
        self.stopped = False

    def stop(self) -> None:
        """Count no more until the next arming: the candidate's users are sent elsewhere on purpose."""
        self.stopped = True
        self._held.reset()

    def interrupt(self) -> None:
        """A kill has sent a user elsewhere: stop, unless none is counted yet, as it may be one before this arming."""
        self._held.reset()
        self.stopped |= self.begun

    def arrive(self, from_candidate: bool | None, unit: int, share: float, begun_ns: int, ended_ns: int) -> None:
        """One request that has ended: it is observed once all that began before it have had the time to end.

        Args:
            from_candidate, unit, share: see `observe`.
            begun_ns, ended_ns: wall time.
        """
        if self.stopped or not 0.0 < share < 1.0:
            return
        self._held.put(begun_ns, from_candidate, unit, share)
        for request in self._held.take(ended_ns - HOLD_NS):
            self.observe(*request)

    def observe(self, from_candidate: bool | None, unit: int, share: float) -> bool:
        """One request; True when it makes the detector fail. `observations` are users, `events` the candidate's.

        Args:
            from_candidate: whose it is; None for a third arm's, by which a user becomes known and no more.
            unit: keyed hash of the sticky user, 64 bits; 0 for a request that has none and is a user of its own.
            share: the candidate's configured share of the two arms' traffic, in [0, 1].
        """
        if self.stopped or not 0.0 < share < 1.0:
            return False
        if not self.begun:
            self.begun = from_candidate is True
            if self.begun:
                self._units.first(unit)
            return False
        if not self._units.first(unit) or from_candidate is None:
            return False
        self.observations += 1
        self.events += from_candidate
        self.expected += share
        self._tilted.update(from_candidate, share)
        return self.observations % LOOK == 0 and self._judge()

    @property
    def log_evidence(self) -> float:
        return self._tilted.log_evidence

    @property
    def log_pass_evidence(self) -> float:
        return self._tilted.log_pass_evidence

    def numbers(self) -> dict[str, Any]:
        return {"expected": round(self.expected, 1), "stopped": self.stopped}
