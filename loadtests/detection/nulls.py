"""Sound candidates in worlds that are not kind: what do the guards say of them?

The worlds are those of `loadtests/worlds.py`; the answers are real ones of the healthy candidate to rows that come in
an order of their own. Only `label-delay selection` breaks what a guard assumes: there labels come sooner and more often
where the candidate is wrong, and nothing valid can be said from labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loadtests.detection.family import HEALTHY, Recorded
from loadtests.detection.feed import AUDIT_S, EPOCH, audit_event, called, detectors, give_label, guards_for, pair_event
from loadtests.detection.streams import Answers
from loadtests.false_rollbacks import BASELINE, EARLIER, events, snapshot
from loadtests.worlds import Traffic, World, before, traffic
from monitoring.event import Event
from serving.contract import Kind

Ints = npt.NDArray[np.int64]

#: Rows of one user, and of one run of related requests; requests in such a run, on average.
ROWS_OF_ONE, RUN = 20, 50
#: Share of spam: as in the data, and at its highest.
USUAL, MANY = 0.3, 0.6
#: Seconds until a label is there; how much rarer labels of right answers are under selection, and how much later.
LABEL_DELAY_S, RARER, LATER_S = 2.0, 0.3, 4.0


@dataclass(frozen=True, slots=True)
class Null:
    """A world, and the order in which rows come in it: any | mix | runs | users | shift."""

    name: str
    world: World
    rows: str = "any"
    selected_labels: bool = False


NULLS = (
    Null("i.i.d.", World("i.i.d.")),
    Null("diurnal mix", World("diurnal", days=2.0), "mix"),
    Null("autocorrelated", World("autocorrelated", wander=0.8), "runs"),
    Null("bursty", World("bursty", shocks=5)),
    Null("clustered users", World("clustered users", users=400, spread=1.0, pace=0.3, balanced=True), "users"),
    Null("benign covariate shift", World("shifted"), "shift"),
    Null("label-delay selection", World("selected labels"), selected_labels=True),
)


def rows(null: Null, recorded: Recorded, drawn: Traffic, random: np.random.Generator) -> Ints:
    """The row that each request carries."""
    count, position = len(drawn.at_ns), np.arange(len(drawn.at_ns)) / len(drawn.at_ns)
    available = len(recorded.classes)
    if null.rows in ("mix", "shift"):
        wave = (1 - np.cos(2 * np.pi * null.world.days * position)) / 2
        share = USUAL + (MANY - USUAL) * (wave if null.rows == "mix" else position > 0.5)
        spam, ham = np.flatnonzero(recorded.classes == 1), np.flatnonzero(recorded.classes == 0)
        found: Ints = np.where(random.random(count) < share, random.choice(spam, count), random.choice(ham, count))
        return found
    if null.rows in ("users", "runs"):
        group = drawn.user if null.rows == "users" else np.cumsum(random.random(count) < 1 / RUN)
        own = random.integers(0, available, (int(group.max()) + 1, ROWS_OF_ONE))
        chosen: Ints = own[group, random.integers(0, ROWS_OF_ONE, count)]
        return chosen
    return random.integers(0, available, count)


def judged(null: Null, recorded: Recorded, requests: int, random: np.random.Generator) -> set[str]:
    """The guards that call the sound candidate unsound within so many requests of both arms."""
    weight = null.world.weights[0]
    guards = guards_for(recorded)
    for latency_us in before(EARLIER, random):
        guards.observe(Event(Kind.REQUEST, BASELINE, epoch=1, total_us=latency_us))
    guards.configure(snapshot(EPOCH, weight))
    drawn = traffic(null.world, requests, random)
    answers = _answers(null, recorded, drawn, rows(null, recorded, drawn, random), random)
    labels = sorted((float(answers.label_at_s[n]), n) for n in np.flatnonzero(answers.labelled).tolist())
    due, audited_s = 0, 0.0
    for number, (event, scored, _, _) in enumerate(events(drawn, 0, EPOCH)):
        guards.observe(event)
        if scored:
            guards.observe(pair_event(answers, number))
        if answers.at_s[number] >= audited_s + AUDIT_S:
            audited_s = float(answers.at_s[number])
            guards.observe(audit_event(answers, number))
        while due < len(labels) and labels[due][0] <= answers.at_s[number]:
            give_label(guards, answers, labels[due][1])
            due += 1
    for detector in detectors(guards).values():
        detector.settle()
    return {name for name, detector in detectors(guards).items() if called(detector)}


def _answers(null: Null, recorded: Recorded, drawn: Traffic, row: Ints, random: np.random.Generator) -> Answers:
    second, theirs = recorded.answers[HEALTHY][row, 1], recorded.baseline[row, 1]
    guess, truth, at_s = (second > 0.5).astype(np.int64), recorded.classes[row], drawn.at_ns / 1e9
    failed = drawn.timeout | drawn.lost | drawn.raised
    labelled, delay = drawn.labelled & ~failed, np.full(len(row), LABEL_DELAY_S)
    if null.selected_labels:
        right = guess == truth
        labelled &= ~right | (random.random(len(row)) < RARER)
        delay = delay + LATER_S * right
    return Answers(
        at_s,
        second,
        guess,
        (theirs > 0.5).astype(np.int64),
        theirs,
        truth,
        recorded.short[row],
        drawn.scored & ~failed,
        labelled,
        at_s + delay,
        drawn.user + 1,
        recorded.outside[HEALTHY][row],
    )
