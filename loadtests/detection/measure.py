"""Run the simulations: thresholds from healthy streams first, then every cell, on a few processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from multiprocessing.pool import Pool
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from loadtests.detection.columns import answer_columns, request_columns
from loadtests.detection.comparators import Column, Comparator, Threshold
from loadtests.detection.design import CHANCE, HEALTHY_CELLS, Cell, Size
from loadtests.detection.family import Recorded
from loadtests.detection.feed import feed_answers, feed_requests, guards_for
from loadtests.detection.nulls import NULLS, judged
from loadtests.detection.streams import answers, requests
from loadtests.false_rollbacks import EARLIER, EndingGuards
from loadtests.worlds import before

Thresholds = dict[str, dict[str, Threshold]]  # by kind and comparator


class Delays(NamedTuple):
    """Seconds from the onset to the alarm, one entry a run: infinite if there was none, minus infinite if too early."""

    seconds: npt.NDArray[np.float64]

    @property
    def early(self) -> int:
        """Runs with a false alarm before the onset; no other number counts them."""
        return int(np.count_nonzero(np.isneginf(self.seconds)))

    @property
    def power(self) -> float:
        """Share found within the stream."""
        rest = self.seconds[~np.isneginf(self.seconds)]
        return float(np.mean(np.isfinite(rest))) if len(rest) else math.nan

    @property
    def median(self) -> float:
        """Seconds; infinite if less than half are found."""
        rest = self.seconds[~np.isneginf(self.seconds)]
        return float(np.quantile(rest, 0.5, method="higher")) if len(rest) else math.nan


class Found(NamedTuple):
    """What became of one cell: delays by guard and by comparator."""

    cell: Cell
    guards: dict[str, Delays]
    comparators: dict[str, Delays]


class _Work(NamedTuple):
    recorded: Recorded
    thresholds: Thresholds


_work: _Work
#: Every guard is asked twice: with limits at the truth, as the comparators have them, and as configured by default.
TOLERANT = ", default margins"
_WAYS = {"": False, TOLERANT: True}


def _start(recorded: Recorded, thresholds: Thresholds) -> None:
    global _work
    _work = _Work(recorded, thresholds)


def _shown(
    cell: Cell, random: np.random.Generator, compare: bool, judge: bool = True
) -> tuple[dict[str, float], dict[str, tuple[Comparator, Column]]]:
    """One stream of a cell: when each guard called it, and what the comparators are shown."""
    recorded, setting = _work.recorded, cell.setting
    called: dict[str, float] = {}
    if cell.kind in ("answers", "certainty"):
        drawn = answers(recorded, cell.what, cell.onset, setting, random)
        shown = answer_columns(recorded, drawn, cell.kind, random) if compare else {}
        for suffix, tolerant in _WAYS.items() if judge else ():
            guards = guards_for(recorded, CHANCE, tolerant)
            found = feed_answers(guards, drawn, setting.weight, cell.guards)
            called |= {name + suffix: when for name, when in found.items()}
        return called, shown
    asked = requests(cell.what, cell.onset, setting, random)
    shown = request_columns(asked, cell.kind, random) if compare else {}
    earlier = before(EARLIER, random)
    for suffix, tolerant in _WAYS.items() if judge else ():
        guards = guards_for(recorded, CHANCE, tolerant, EndingGuards)
        called[cell.guards[0] + suffix] = feed_requests(guards, asked, setting.weight, cell.guards[0], earlier)
    return called, shown


def _healthy(job: tuple[str, int, int, bool]) -> tuple[dict[str, float], dict[str, float]]:
    """When guards called a healthy stream, and the highest score of each comparator on it.

    The guards of requests are left to `false_alarms`: they would take most of the time.
    """
    kind, seed, run, judged_ = job
    cell = HEALTHY_CELLS[kind]
    random = np.random.default_rng([seed, 0, list(HEALTHY_CELLS).index(kind), run])
    called, shown = _shown(cell, random, compare=True, judge=judged_ and kind == "answers")
    return called, {name: comparator(column).highest for name, (comparator, column) in shown.items()}


def _one(job: tuple[Cell, int, int, int]) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds from the onset to the alarm of every guard and comparator."""
    cell, seed, number, run = job
    random = np.random.default_rng([seed, 1, number, run])
    called, shown = _shown(cell, random, compare=cell.compare)
    after_s = cell.onset.after_s
    guards = {name: when - after_s if when >= after_s else -math.inf for name, when in called.items()}
    others = {
        name: _work.thresholds[cell.kind][name].alarm_s(comparator(column), after_s) - after_s
        for name, (comparator, column) in shown.items()
    }
    return guards, others


def _null(job: tuple[int, int, int, int]) -> set[str]:
    number, requests_, seed, run = job
    return judged(NULLS[number], _work.recorded, requests_, np.random.default_rng([seed, 2, number, run]))


def calibrate(recorded: Recorded, size: Size, processes: int) -> tuple[Thresholds, dict[str, tuple[int, int]]]:
    """Thresholds of the comparators; and, by guard, in how many of how many healthy streams it cried wolf."""
    kinds = sorted({cell.kind for cell in size.cells})
    thresholds: Thresholds = {}
    wrong: dict[str, tuple[int, int]] = {}
    with Pool(processes, _start, (recorded, {})) as pool:
        for kind in kinds:
            found = pool.map(
                _healthy, [(kind, size.seed, run, size.judged) for run in range(size.healthy)], chunksize=4
            )
            scores = [score for _, score in found]
            thresholds[kind] = {name: Threshold.at(CHANCE, [run[name] for run in scores]) for name in scores[0]}
            for guard in found[0][0]:
                wrong[guard] = (sum(math.isfinite(called[guard]) for called, _ in found), len(found))
    return thresholds, wrong


def measure(recorded: Recorded, size: Size, thresholds: Thresholds, processes: int) -> Iterable[Found]:
    """Every cell, one after the other."""
    with Pool(processes, _start, (recorded, thresholds)) as pool:
        for number, cell in enumerate(size.cells):
            jobs = [(cell, size.seed, number, run) for run in range(size.runs)]
            runs = pool.map(_one, jobs, chunksize=4)
            yield Found(cell, _delays(guards for guards, _ in runs), _delays(others for _, others in runs))


def false_alarms(recorded: Recorded, size: Size, processes: int) -> Iterable[tuple[str, int, dict[str, int]]]:
    """For each null: its name, the runs, and in how many of them each guard called it ("any": one or more)."""
    with Pool(processes, _start, (recorded, {})) as pool:
        for number, null in enumerate(NULLS):
            jobs = [(number, size.requests, size.seed, run) for run in range(size.nulls)]
            outcomes = pool.map(_null, jobs, chunksize=10)
            counts = {"any": sum(bool(guards) for guards in outcomes)}
            for guard in sorted({guard for guards in outcomes for guard in guards}):
                counts[guard] = sum(guard in guards for guards in outcomes)
            yield null.name, size.nulls, counts


def _delays(runs: Iterable[Mapping[str, float]]) -> dict[str, Delays]:
    listed = list(runs)
    return {name: Delays(np.array([run[name] for run in listed])) for name in (listed[0] if listed else ())}
