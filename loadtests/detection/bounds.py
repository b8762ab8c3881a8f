"""How near do `agreement`, `errors` and `calibration` come to the least that any test needs?

Candidates that are bad from the first observation on, at a multiple of what the guard tolerates, are fed to the
monitor's guards at their default budget. The bound is ln(1/alpha) over the Kullback-Leibler divergence of the true rate
from the tolerated one (Wald), in the guard's own observations: pairs for `agreement`, error events of both arms for
`errors`, labelled answers in one bin for `calibration`. That one averages over the bins and both directions, so its
bound is that of alpha divided by their number; it is reported, and not held to the aim.
"""

from __future__ import annotations

from multiprocessing.pool import Pool
from typing import NamedTuple

import numpy as np

from loadtests.detection.design import AIMED, Size
from loadtests.detection.family import Recorded
from loadtests.detection.feed import EPOCH, called, detectors, guards_for
from loadtests.detection.pairs import bound
from loadtests.false_rollbacks import BASELINE, CANDIDATE, snapshot
from monitoring.detectors.agreement import Agreement
from monitoring.detectors.calibration import Calibration
from monitoring.event import Event
from serving.contract import Cause, Flag, Kind

#: Median over bound at `AIMED` times what is tolerated.
AIM = 1.3
JUDGED = ("agreement", "errors")
WEIGHT = 0.25
#: The longest run, in multiples of the bound.
PATIENCE = 20


class Speed(NamedTuple):
    """Observations to the alarm at `harm` times what is tolerated."""

    guard: str
    harm: float
    bound: float
    median: float
    p90: float
    missed: int
    runs: int

    @property
    def ratio(self) -> float:
        return self.median / self.bound

    @property
    def met(self) -> bool:
        return self.guard not in JUDGED or self.harm != AIMED or self.ratio <= AIM


def truth_and_limit(recorded: Recorded, guard: str, harm: float) -> tuple[float, float, float]:
    """The true rate of what the guard counts, the tolerated one, and alpha."""
    guards = guards_for(recorded)
    detector = detectors(guards)[guard]
    if isinstance(detector, Agreement):
        return harm * detector.limit, detector.limit, detector.alpha
    if isinstance(detector, Calibration):
        worth, less = detector.worth(usual(recorded))
        return 1 - worth + harm * less, 1 - worth + less, detector.alpha / detector.hypotheses
    tolerated = detector.ratio * WEIGHT / (1 - WEIGHT)  # type: ignore[attr-defined]
    return harm * tolerated / (1 + harm * tolerated), tolerated / (1 + tolerated), detector.alpha


def usual(recorded: Recorded) -> float:
    """How sure the answers of the fullest bin are, in the mean."""
    known = recorded.reliability
    return known.confidence[max(range(len(known.rows)), key=known.rows.__getitem__)]


def observations(recorded: Recorded, guard: str, rate: float, most: int, random: np.random.Generator) -> int:
    """Observations until the guard calls it; 0 if it never does."""
    guards = guards_for(recorded)
    guards.configure(snapshot(EPOCH, WEIGHT))
    detector = detectors(guards)[guard]
    sure, answer = usual(recorded), Event(Kind.REQUEST, CANDIDATE, epoch=EPOCH)
    for number in range(1, most + 1):
        bad = bool(random.random() < rate)
        if guard == "calibration":
            guards.resolved(CANDIDATE, sure, not bad, answer)
            if called(detector):
                return number
            continue
        if guard == "agreement":
            event = Event(Kind.REFERENCE, CANDIDATE, answered=BASELINE, epoch=EPOCH, flips=int(bad), request_key=number)
        else:
            flags, status = (Flag.LIVE | Flag.BASELINE_VALID, 200) if bad else (Flag.LIVE, 500)
            variant = CANDIDATE if bad else BASELINE
            event = Event(
                Kind.REQUEST, variant, cause=Cause.ERROR, flags=flags, status=status, epoch=EPOCH, total_us=10_000
            )
        guards.observe(event)
        if called(detector):
            return number
    return 0


def _one(job: tuple[Recorded, str, float, int, int, int]) -> int:
    recorded, guard, rate, most, seed, run = job
    return observations(recorded, guard, rate, most, np.random.default_rng([seed, 3, run, round(rate * 1e6)]))


def speeds(recorded: Recorded, size: Size, processes: int) -> list[Speed]:
    """Each guard at every multiple."""
    slim = recorded._replace(answers={}, outside={}, facts={})
    found = []
    with Pool(processes) as pool:
        for guard in (*JUDGED, "calibration"):
            for harm in size.harms:
                rate, limit, alpha = truth_and_limit(recorded, guard, harm)
                least = bound(rate, limit, alpha)
                most = round(PATIENCE * least)
                at = np.array(
                    pool.map(
                        _one, [(slim, guard, rate, most, size.seed, run) for run in range(size.bounds)], chunksize=10
                    )
                )
                ordered = np.where(at > 0, at, most)
                median, p90 = np.quantile(ordered, (0.5, 0.9), method="higher")
                found.append(Speed(guard, harm, least, float(median), float(p90), int(np.sum(at == 0)), size.bounds))
    return found
