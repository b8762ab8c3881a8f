"""Seeded streams of what a monitor sees of a candidate: its answers beside the baseline's, both arms' requests. Pure.

A stream is drawn column by column. Answers are real ones (`family.py`), of rows drawn at random; a harm replaces the
healthy candidate's answers by a damaged one's, or fails, slows or flips some of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from loadtests.detection.family import HEALTHY, Recorded
from loadtests.worlds import BATCH_SIGMA, MEDIAN_US, OWN_SIGMA

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

#: What both arms fail on, harm or not.
ERRORS = 0.001
#: A gap in the records is so many of the candidate's answers long, as when a ring is overwritten.
GAP = 200


@dataclass(frozen=True, slots=True)
class Setting:
    """How much traffic there is, and how much of it is seen.

    Attributes:
        rate: requests a second of both arms together.
        weight: the candidate's share of them.
        reference: share of the candidate's answers that the baseline scores again: pairs.
        labels: share of the pairs whose true class comes to be known, `label_delay_s` after the answer.
        loss: share of the records that the monitor loses, in gaps.
        hours: length of the stream after the onset.
    """

    rate: float = 10.0
    weight: float = 0.25
    reference: float = 0.10
    labels: float = 0.10
    label_delay_s: float = 3600.0
    loss: float = 0.0
    hours: float = 5.0


@dataclass(frozen=True, slots=True)
class Onset:
    """When the harm begins and how it grows: at once, over `over_s` seconds, or only for `lasts_s` seconds."""

    after_s: float = 0.0
    over_s: float = 0.0
    lasts_s: float = float("inf")

    def strength(self, at_s: Floats) -> Floats:
        """Share of the harm that is there, in [0, 1]."""
        since = at_s - self.after_s
        grown = np.clip(since / self.over_s, 0.0, 1.0) if self.over_s else np.ones_like(since)
        return np.where((since >= 0) & (since < self.lasts_s), grown, 0.0)


STEP, RAMP, TRANSIENT, LATER = Onset(), Onset(over_s=3600.0), Onset(lasts_s=1200.0), Onset(after_s=3600.0)


@dataclass(frozen=True, slots=True)
class Harm:
    """What goes wrong: nothing, by default.

    Attributes:
        answers: whose answers are given instead of the healthy candidate's (a name of `Recorded.answers`).
        short_only: only to rows of the slice "short".
        flips: share of answers that are turned around besides.
        errors: share of the candidate's requests that raise, besides those of both arms.
        invalid: share of the candidate's answers that are NaN.
        slower: factor of the candidate's latencies.
    """

    answers: str = HEALTHY
    short_only: bool = False
    flips: float = 0.0
    errors: float = 0.0
    invalid: float = 0.0
    slower: float = 1.0


class Answers(NamedTuple):
    """The candidate's answers in order of time; `pair` and `labelled` say what the monitor gets to see."""

    at_s: Floats
    second: Floats  # the candidate's probability of the second class
    candidate: Ints  # its class
    baseline: Ints  # the baseline's class
    theirs: Floats  # the baseline's probability of the second class
    truth: Ints
    short: Bools
    pair: Bools
    labelled: Bools  # only pairs
    label_at_s: Floats
    unit: Ints  # key of the sticky user
    outside: Floats  # share of its activations outside their ranges

    @property
    def flipped(self) -> Bools:
        return self.candidate != self.baseline


class Requests(NamedTuple):
    """Both arms' requests in order of time."""

    at_s: Floats
    candidate: Bools
    latency_us: Ints
    error: Bools
    invalid: Bools


def answers(recorded: Recorded, harm: Harm, onset: Onset, setting: Setting, random: np.random.Generator) -> Answers:
    """Draw the candidate's answers until `setting.hours` after the onset."""
    at_s = _arrivals(setting.rate * setting.weight, onset, setting, random)
    strength, count = onset.strength(at_s), len(at_s)
    row = random.integers(0, len(recorded.classes), count)
    struck = random.random(count) < strength
    if harm.short_only:
        struck &= recorded.short[row]
    second = np.where(struck, recorded.answers[harm.answers][row, 1], recorded.answers[HEALTHY][row, 1])
    second = np.where(random.random(count) < harm.flips * strength, 1.0 - second, second)
    pair = (random.random(count) < setting.reference) & _kept(count, setting.loss, random)
    return Answers(
        at_s,
        second,
        (second > 0.5).astype(np.int64),
        recorded.baseline[row].argmax(axis=1),
        recorded.baseline[row, 1],
        recorded.classes[row],
        recorded.short[row],
        pair,
        pair & (random.random(count) < setting.labels),
        at_s + setting.label_delay_s,
        np.arange(1, count + 1),
        np.where(struck, recorded.outside[harm.answers][row], recorded.outside[HEALTHY][row]),
    )


def requests(harm: Harm, onset: Onset, setting: Setting, random: np.random.Generator) -> Requests:
    """Draw both arms' requests until `setting.hours` after the onset."""
    at_s = _arrivals(setting.rate, onset, setting, random)
    count = len(at_s)
    candidate = random.random(count) < setting.weight
    strength = np.where(candidate, onset.strength(at_s), 0.0)
    latency = MEDIAN_US * random.lognormal(0.0, float(np.hypot(BATCH_SIGMA, OWN_SIGMA)), count)
    latency *= harm.slower**strength
    drawn = Requests(
        at_s,
        candidate,
        latency.astype(np.int64),
        random.random(count) < ERRORS + harm.errors * strength,
        random.random(count) < harm.invalid * strength,
    )
    kept = _kept(count, setting.loss, random)
    return Requests(*(column[kept] for column in drawn)) if setting.loss else drawn


def _arrivals(rate: float, onset: Onset, setting: Setting, random: np.random.Generator) -> Floats:
    """Poisson arrivals in seconds."""
    seconds = onset.after_s + setting.hours * 3600.0
    return np.sort(random.uniform(0.0, seconds, int(random.poisson(rate * seconds))))


def _kept(count: int, loss: float, random: np.random.Generator) -> Bools:
    gaps = random.random(count // GAP + 1) < loss
    return ~np.repeat(gaps, GAP)[:count]
