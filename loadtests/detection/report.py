"""Numbers to Markdown: the tables, and whether the promises were kept."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from loadtests.detection.bounds import AIM, Speed
from loadtests.detection.comparators import NAMES
from loadtests.detection.design import AIMED, CHANCE, Size
from loadtests.detection.measure import Delays, Found
from loadtests.proportions import upper
from monitoring.config import GuardSettings

#: Reported, not judged: no test is valid there.
UNJUDGED = "label-delay selection"
BUDGET = GuardSettings().false_rollback
HEADING = "## Guards: the detection benchmark"


def span(seconds: float) -> str:
    """A duration for people."""
    if math.isinf(seconds) or math.isnan(seconds):
        return "–"
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


def cell_of(delays: Delays | None, best: bool = False) -> str:
    """Median delay, and the share found where it is not all; bold if nothing is faster."""
    if delays is None:
        return ""
    text = span(delays.median)
    if delays.power < 1:
        text += f" ({delays.power:.0%})"
    return f"**{text}**" if best else text


def corrected_upper(alarms: int, runs: int, nulls: int) -> float:
    """Upper 95 % limit that holds for all nulls at once (Clopper & Pearson, by Bonferroni)."""
    return upper(alarms, runs, 0.05 / nulls)


def null_table(rows: Sequence[tuple[str, int, dict[str, int]]], requests: int) -> tuple[list[str], list[str]]:
    """Lines, and what is not within its budget."""
    lines = [
        f"| null ({requests:,} requests each) | runs | any guard called it | upper limit | budget | which |",
        "|---|---:|---:|---:|---:|---|",
    ]
    missed = []
    for name, runs, counts in rows:
        limit = corrected_upper(counts["any"], runs, len(rows))
        if limit > BUDGET and name != UNJUDGED:
            missed.append(f"false alarms, {name}: {limit:.2%} is not shown to be within {BUDGET:.0%}")
        which = ", ".join(f"{guard} {count}" for guard, count in counts.items() if guard != "any") or "–"
        budget = "reported only" if name == UNJUDGED else f"{BUDGET:.0%}"
        lines.append(f"| {name} | {runs:,} | {counts['any']} | {limit:.2%} | {budget} | {which} |")
    return lines, missed


def speed_table(speeds: Iterable[Speed]) -> tuple[list[str], list[str]]:
    """Lines, and what misses the aim."""
    lines = [
        "| guard | true rate | ln(1/α)/KL | median observations | ratio | p90 | not found |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    missed = []
    for speed in speeds:
        if not speed.met:
            missed.append(f"delay, {speed.guard} at {AIMED:g} ×: {speed.ratio:.2f} times the bound, aim {AIM}")
        ratio = f"**{speed.ratio:.2f}**" if speed.harm == AIMED else f"{speed.ratio:.2f}"
        lines.append(
            f"| {speed.guard} | {speed.harm:g} × tolerated | {speed.bound:,.0f} | {speed.median:,.0f} | {ratio} "
            f"| {speed.p90:,.0f} | {speed.missed} of {speed.runs} |"
        )
    return lines, missed


def harm_table(found: Iterable[Found]) -> tuple[list[str], list[str]]:
    """The default setting with every comparator: lines, and where a comparator is faster than the first guard."""
    lines = [
        f"| harm | size | guard | {' | '.join(NAMES)} |",
        f"|---|---|---|{'---:|' * len(NAMES)}",
    ]
    slower = []
    for one in found:
        others = {name: one.comparators[name] for name in NAMES if name in one.comparators}
        first = one.guards[one.cell.guards[0]]
        every = [*one.guards.values(), *others.values()]
        fastest = min(delays.median for delays in every)
        guards = "; ".join(
            f"{name} {cell_of(delays, _is_best(delays, fastest))}" for name, delays in one.guards.items()
        )
        cells = [cell_of(others.get(name), name in others and _is_best(others[name], fastest)) for name in NAMES]
        size = f"{one.cell.size}, {one.cell.factor}" if one.cell.factor else one.cell.size
        lines.append(f"| {one.cell.harm} | {size} | {guards} | {' | '.join(cells)} |")
        ahead = [name for name, delays in others.items() if _ahead(delays, first)]
        if ahead:
            slower.append(f"{one.cell.harm} {size}: {', '.join(ahead)}")
    return lines, slower


def _is_best(delays: Delays, fastest: float) -> bool:
    return math.isfinite(fastest) and delays.median == fastest


def _ahead(other: Delays, guard: Delays) -> bool:
    """Faster at the median, or, where neither finds half of them, finding more."""
    if math.isinf(other.median) and math.isinf(guard.median):
        return other.power > guard.power
    return other.median < guard.median


def factor_table(found: Iterable[Found]) -> list[str]:
    lines = ["| harm | what differs from the default | guard | found | median | p90 |", "|---|---|---|---:|---:|---:|"]
    for one in found:
        for guard, delays in one.guards.items():
            p90 = sorted(delays.seconds)[math.ceil(0.9 * len(delays.seconds)) - 1]
            lines.append(
                f"| {one.cell.harm} {one.cell.size} | {one.cell.factor} | {guard} | {delays.power:.0%} "
                f"| {span(delays.median)} | {span(p90)} |"
            )
    return lines


def matched(size: Size, wrong: dict[str, tuple[int, int]]) -> str:
    guards = ", ".join(f"`{guard}` {alarms} of {runs}" for guard, (alarms, runs) in wrong.items())
    return (
        f"Thresholds of the comparators: on {size.healthy} healthy streams of the same length (5 hours) each alarms "
        f"in at most {CHANCE:.0%}; they are told the true healthy rate. Every guard has α = {CHANCE:g} here (the "
        f"default is {BUDGET:.0%} for all guards together) and its limit at the true healthy rate too, so that all ask "
        "the same question; *default margins*: with what it tolerates as configured (2 points of flips, 1.25 times the "
        "errors, 25 % and 5 ms of latency, 3 % harm), harms that nobody wants to be called about. `calibration` "
        "has its default margin in both. " + (f"On the same streams the guards called it: {guards}." if wrong else "")
    )


def write_section(path: Path, section: str) -> None:
    """Put the section into the file in place of the one with the same heading, or at the end."""
    text = path.read_text()
    pattern = re.compile(rf"^{re.escape(HEADING)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    body = f"{section.rstrip()}\n"
    replaced, count = pattern.subn(lambda _: f"{body}\n", text)
    path.write_text((replaced if count else f"{text.rstrip()}\n\n{body}").rstrip() + "\n")


def preface(command: str, size: Size) -> str:
    return (
        f"Command: `{command}`; seed {size.seed}. Seeded streams through the monitor's own guards (`ModelGuards`), "
        f"{size.runs} runs a cell. Default: 10 requests/s, 25 % of them the candidate's, 10 % of its answers scored "
        "again, 10 % of those labelled after an hour; bad from the first answer on, five hours to find it. "
        "Delays are medians from the onset, with the share found in brackets where it is not all. One factor at a time "
        "and two corners, not every combination (`loadtests/detection/design.py`)."
    )


def ahead(slower: Sequence[str]) -> str:
    """Where the guard that is meant for a harm is not the fastest."""
    if not slower:
        return "At this rate of false alarms no comparator is ahead of the guard anywhere."
    return "**Where a comparator is ahead of the guard:** " + "; ".join(slower) + "."
