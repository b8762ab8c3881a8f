"""Made-up traffic of A/A rollouts: the candidate is its baseline's equal, the world is not always kind. Pure.

In every world both arms fail, are slow, and answer unlike the teacher equally often; what differs is how that is
spread over users and time. Requests of one arm within `BATCH_NS` share a batch, which may fail or be slow as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter

#: Requests a second of both arms together, on average.
RATE = 100.0
#: Chance that a candidate's answer differs from the teacher's, and that it does where the teacher is right.
FLIPS, HARM = 0.05, 0.025
#: Share of a candidate's answers that the teacher scores, and share of those that get a label.
SCORED, LABELLED = 0.2, 0.5
#: Latency: log-normal around a median, in part the batch's and in part the request's own.
MEDIAN_US, BATCH_SIGMA, OWN_SIGMA = 10_000.0, 0.4, 0.4
BATCH_NS = 20_000_000


@dataclass(frozen=True, slots=True)
class World:
    """How trouble is spread.

    Attributes:
        weights: the candidate's share of the traffic, one a phase; phases have equally many requests.
        users: sticky users who share the traffic unequally (log-normal, sigma 1); 0: every request is a new user's.
        spread: coefficient of variation of the users' rates of failing and differing (gamma).
        pace: sigma of the users' own factor of latency (log-normal).
        balanced: scale the users' traffic and rates within each arm so that the arms are equals for the very users who
            fell to them. Without it they are equals only before the users are dealt out: a few hundred of them, of
            whom some ask far more and fail far more than others, make one arm's own rates some tenths higher.
        wander: sigma of a factor that both arms' rates of failing and latencies wander by (log of an AR(1) process that
            forgets within some 200 requests), so that trouble comes in runs.
        days: cycles of load in one rollout; between a fifth and 1.8 times the mean, latency up to doubled.
        shocks: times at which everything is slow at once, 0.5 to 4 seconds each.
        slowdown: factor of latency in a shock.
        timeouts: chance that a request of either arm times out.
        lost: chance that a batch of either arm loses its worker.
        exceptions: chance that a request of either arm raises, whatever its input is.
        own_exceptions: chance that a request of the candidate raises besides; over 0 it is not sound.
    """

    name: str
    weights: tuple[float, ...] = (0.25,)
    users: int = 0
    spread: float = 0.0
    pace: float = 0.0
    balanced: bool = False
    wander: float = 0.0
    days: float = 0.0
    shocks: int = 0
    slowdown: float = 5.0
    timeouts: float = 0.007
    lost: float = 0.003
    exceptions: float = 0.0
    own_exceptions: float = 0.0


WORLDS = (
    World("i.i.d."),
    World("clustered users", users=400, spread=1.0, pace=0.3),
    World("clustered users, balanced", users=400, spread=1.0, pace=0.3, balanced=True),
    World("diurnal", days=2.0),
    World("common shocks", shocks=5),
    World("weight changes", weights=(0.1, 0.25, 0.5)),
)
#: Exceptions that have nothing to do with the input: each arm's count against it.
EXCEPTIONS = World("random exceptions", timeouts=0.0, lost=0.0, exceptions=0.01)


class Traffic(NamedTuple):
    """One rollout's requests in order of time; every field has one entry a request."""

    phase: npt.NDArray[np.int64]
    candidate: npt.NDArray[np.bool_]
    at_ns: npt.NDArray[np.int64]
    latency_us: npt.NDArray[np.int64]
    batch: npt.NDArray[np.int64]  # keys over 0, the arms apart
    timeout: npt.NDArray[np.bool_]
    lost: npt.NDArray[np.bool_]
    raised: npt.NDArray[np.bool_]
    scored: npt.NDArray[np.bool_]  # only the candidate's
    labelled: npt.NDArray[np.bool_]  # only scored ones
    flipped: npt.NDArray[np.bool_]
    harmful: npt.NDArray[np.bool_]  # only flipped ones
    user: npt.NDArray[np.int64]


def traffic(world: World, requests: int, random: np.random.Generator) -> Traffic:
    """Draw the requests of one rollout."""
    number = np.arange(requests)
    load = 1.0 + 0.8 * np.sin(2 * np.pi * world.days * number / requests)
    at_ns = np.cumsum(random.exponential(1e9 / (RATE * load))).astype(np.int64) + 10**9
    phase = number * len(world.weights) // requests
    fault, differs, pace, position, user = _users(world, requests, random)
    wandering = _wandering(world, requests, random)
    fault, pace = fault * wandering, pace * np.sqrt(wandering)
    candidate = position < np.array(world.weights)[phase]
    batch = 2 * (at_ns // BATCH_NS) + candidate
    _, member = np.unique(batch, return_inverse=True)
    batches = int(member.max()) + 1
    slow = np.where(load > 1.0, 1.0 + (load - 1.0) / 0.8, 1.0) * _shocks(world, at_ns, random)
    own = random.normal(0.0, OWN_SIGMA, requests) + random.normal(0.0, BATCH_SIGMA, batches)[member]
    scored = candidate & (random.random(requests) < SCORED)
    flipped = random.random(requests) < FLIPS * differs
    return Traffic(
        phase=phase,
        candidate=candidate,
        at_ns=at_ns,
        latency_us=(MEDIAN_US * pace * slow * np.exp(own)).astype(np.int64),
        batch=batch,
        timeout=random.random(requests) < world.timeouts * fault,
        lost=(random.random(batches) < world.lost)[member],
        raised=random.random(requests) < world.exceptions + world.own_exceptions * candidate,
        scored=scored,
        labelled=scored & (random.random(requests) < LABELLED),
        flipped=flipped,
        harmful=flipped & (random.random(requests) < HARM / FLIPS),
        user=user,
    )


def before(requests: int, random: np.random.Generator) -> list[int]:
    """Latencies of the baseline before the candidate gets traffic, microseconds."""
    sigma = float(np.hypot(BATCH_SIGMA, OWN_SIGMA))
    drawn: list[int] = (MEDIAN_US * random.lognormal(0.0, sigma, requests)).astype(np.int64).tolist()
    return drawn


def _users(world: World, requests: int, random: np.random.Generator) -> tuple[npt.NDArray[Any], ...]:
    """Factors of failing, of differing and of latency, the position in [0, 1) by which users fall to the arms; who."""
    if not world.users:
        one = np.ones(requests)
        return one, one, one, random.random(requests), np.arange(requests)
    activity = random.lognormal(0.0, 1.0, world.users)
    variance = max(world.spread**2, 1e-9)
    fault, differs = (random.gamma(1.0 / variance, variance, world.users) for _ in range(2))
    pace = random.lognormal(0.0, world.pace, world.users)
    position = random.random(world.users)
    if world.balanced:
        _balance(position < world.weights[0], world.weights[0], activity, fault, differs)
    user = random.choice(world.users, requests, p=activity / activity.sum())
    return fault[user], differs[user], pace[user], position[user], user


def _balance(candidate: npt.NDArray[np.bool_], weight: float, *measures: npt.NDArray[np.float64]) -> None:
    """Scale, in place, each arm's traffic to its share and then its rates to a mean of 1 over its traffic."""
    activity, *rates = measures
    for arm, share in ((candidate, weight), (~candidate, 1.0 - weight)):
        activity[arm] *= share / activity[arm].sum()
        for rate in rates:
            rate[arm] /= np.average(rate[arm], weights=activity[arm])


def _wandering(world: World, requests: int, random: np.random.Generator) -> npt.NDArray[np.float64]:
    if not world.wander:
        return np.ones(requests)
    keep = 1.0 - 1.0 / 200.0
    steps = random.normal(0.0, world.wander * np.sqrt(1.0 - keep**2), requests)
    steps[0] = random.normal(0.0, world.wander)
    found: npt.NDArray[np.float64] = np.exp(lfilter([1.0], [1.0, -keep], steps) - world.wander**2 / 2)
    return found


def _shocks(world: World, at_ns: npt.NDArray[np.int64], random: np.random.Generator) -> npt.NDArray[np.float64]:
    factor = np.ones(len(at_ns))
    for start in random.integers(at_ns[0], at_ns[-1], world.shocks):
        factor[(at_ns >= start) & (at_ns < start + random.uniform(0.5e9, 4e9))] = world.slowdown
    return factor
