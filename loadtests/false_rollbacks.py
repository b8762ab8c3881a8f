"""How often is a sound candidate rolled back? Simulated A/A rollouts through the monitor's own guards.

    python -m loadtests.false_rollbacks [--rollouts 10000] [--world "common shocks"] [--requests 4000]

Every world (see `worlds.py`) is judged twice. With the *default* limits the candidate is well inside of them, as a
sound one is; with the limits *at the truth* every null hypothesis holds with equality, the worst case of what a guard
still has to tolerate: error odds and tails exactly the baseline's with no margin, the gross limit of `agreement` and
the budget of `harm` exactly the true rates. The promise is the same for both: at most `false_rollback`, all guards
together, and each guard at most its share of that. Exit code 1 if it is refuted: the exact lower 95 % limit is over the
budget. A few hundred users are dealt out to the arms once and for all; unless they are *balanced*, one arm's own rates
are over the truth then, and failing it is no false alarm for those users: that row is shown and refutes nothing.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import click
import numpy as np

from loadtests.proportions import lower, upper
from loadtests.worlds import EXCEPTIONS, FLIPS, HARM, WORLDS, Traffic, World, before, traffic
from monitoring.candidate import Candidate
from monitoring.config import (
    AgreementSettings,
    ErrorsSettings,
    GuardSettings,
    HarmSettings,
    LatencySettings,
    MonitorModel,
    MonitorVariant,
)
from monitoring.event import Event
from monitoring.guard import ModelGuards
from serving.contract import BUCKETS, Cause, Flag, Kind, RouteTable, Snapshot, VariantEntry

MODEL, BASELINE, CANDIDATE = "m", "baseline", "candidate"
#: Requests of the baseline before the candidate gets traffic: its quantile is known then.
EARLIER = 512
#: Guards that these streams speak to and whose failure is bounded by a budget; `invalid_output` is a count.
STATISTICAL = ("errors", "latency", "agreement", "harm")

SETTINGS = {
    "default": GuardSettings(),
    "at the truth": GuardSettings(
        errors=ErrorsSettings(ratio=1.0),
        latency=LatencySettings(margin=0.0, margin_ms=0.0),
        agreement=AgreementSettings(limit=FLIPS / AgreementSettings().gross_factor),
        harm=HarmSettings(budget=HARM),
    ),
}
_NAMES = {world.name: world for world in (*WORLDS, EXCEPTIONS)}


class EndingGuards(ModelGuards):
    """What can end a rollout: `srm`, which only holds it, is not told how requests were divided; that saves time."""

    def _divide(self, event: Event) -> None:
        return


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of the rollouts of one world under one setting.

    `counts`: rollouts in which a guard failed, by its name, and those in which "any" did.
    """

    world: str
    setting: str
    rollouts: int
    counts: dict[str, int]

    def budget(self, guard: str) -> float:
        """What was configured for all together, or the share of it that a guard which acts has."""
        whole = SETTINGS[self.setting].false_rollback
        return whole if guard == "any" else Candidate(CANDIDATE, _model(self.setting)).alpha(whole)

    def refuted(self) -> list[str]:
        """Where there were so many that the budget cannot be the truth."""
        trials = self.rollouts
        return [guard for guard, count in self.counts.items() if lower(count, trials) > self.budget(guard)]


def events(drawn: Traffic, number: int, epoch: int) -> Iterator[tuple[Event, bool, bool, bool]]:
    """The records of one phase as the gateway writes them, each with: scored, labelled, harmful."""
    here = drawn.phase == number
    columns = [column[here].tolist() for column in drawn[1:]]
    for candidate, at_ns, latency_us, batch, timeout, lost, raised, scored, labelled, flipped, harmful, user in zip(
        *columns, strict=True
    ):
        cause, flags, status = Cause.NONE, Flag.LIVE | Flag.BASELINE_VALID, 200
        if timeout or lost or raised:
            cause = Cause.TIMEOUT if timeout else Cause.DIED if lost else Cause.ERROR
            if not candidate:  # nobody answers in the baseline's place
                flags, status = Flag.LIVE, 504 if timeout else 503 if lost else 500
            scored = labelled = False
        event = Event(
            Kind.REQUEST,
            CANDIDATE if candidate else BASELINE,
            cause=cause,
            flags=flags,
            status=status,
            epoch=epoch,
            total_us=latency_us,
            batch_key=batch,
            flips=int(flipped),
            mono_ns=at_ns,
            wall_ns=at_ns,
            unit_key=user + 1,
        )
        yield event, scored, labelled, harmful


def rollout(world: World, setting: str, requests: int, random: np.random.Generator) -> set[str]:
    """The guards that fail in one rollout."""
    guards = EndingGuards(MODEL, _model(setting))
    guards.configure(snapshot(1, 0.0))
    for latency_us in before(EARLIER, random):
        guards.observe(Event(Kind.REQUEST, BASELINE, epoch=1, total_us=latency_us))
    drawn = traffic(world, requests, random)
    for number, weight in enumerate(world.weights):
        epoch = number + 2
        guards.configure(snapshot(epoch, weight))
        for event, scored, labelled, harmful in events(drawn, number, epoch):
            guards.observe(event)
            if scored:
                pair = Event(Kind.REFERENCE, CANDIDATE, answered=BASELINE, epoch=epoch, flips=event.flips)
                guards.observe(pair)
            if labelled:
                guards.labelled(CANDIDATE, harmful or not event.flips, not harmful, event)
    return {trip.guard for trip in guards.trips()}


def tally(world: World, setting: str, outcomes: Iterable[set[str]]) -> Tally:
    counts: Counter[str] = Counter()
    total = 0
    for failed in outcomes:
        total += 1
        counts.update(failed)
        counts["any"] += bool(failed)
    return Tally(world.name, setting, total, {guard: counts[guard] for guard in (*STATISTICAL, "any")})


_GUARD_COLUMNS = (*STATISTICAL, "any guard")
HEADER = f"| traffic | limits | {' | '.join(_GUARD_COLUMNS)} |\n|---|---|{'---:|' * len(_GUARD_COLUMNS)}"


def line(found: Tally) -> str:
    """One row: false rollbacks, and the 95 % limits of their true share."""

    def cell(guard: str) -> str:
        count = found.counts[guard]
        if not count:
            return f"0 (≤ {upper(0, found.rollouts):.2%})"
        return f"{count} ({lower(count, found.rollouts):.2%} – {upper(count, found.rollouts):.2%})"

    return f"| {found.world} | {found.setting} | {' | '.join(cell(guard) for guard in (*STATISTICAL, 'any'))} |"


def _model(setting: str) -> MonitorModel:
    variants = {BASELINE: MonitorVariant(1), CANDIDATE: MonitorVariant(2, FLIPS)}
    return MonitorModel(BASELINE, BASELINE, variants, guards=SETTINGS[setting])


def snapshot(epoch: int, weight: float) -> Snapshot:
    entries = {
        name: VariantEntry(name, version, f"{MODEL}/{name}:1") for version, name in enumerate((BASELINE, CANDIDATE), 1)
    }
    spans: dict[str, tuple[tuple[int, int], ...]] = {CANDIDATE: ((0, round(weight * BUCKETS)),)} if weight else {}
    table = RouteTable(MODEL, epoch, "salt", BASELINE, BASELINE, entries, spans, dict.fromkeys(spans, 2))
    return Snapshot(rev=epoch, lease=1, tables={MODEL: table})


def _one(job: tuple[str, str, int, int, int]) -> set[str]:
    name, setting, requests, seed, number = job
    world = _NAMES[name]
    return rollout(world, setting, requests, np.random.default_rng([seed, list(_NAMES).index(name), number]))


@click.command()
@click.option("--rollouts", type=click.IntRange(min=1), default=10_000, show_default=True, help="Of each row.")
@click.option("--requests", type=click.IntRange(min=100), default=4000, show_default=True, help="Of each rollout.")
@click.option("--world", "names", multiple=True, type=click.Choice(list(_NAMES)), help="Only these.")
@click.option("--limits", "settings", multiple=True, type=click.Choice(list(SETTINGS)), help="Only these.")
@click.option("--processes", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write the counts here.")
def main(
    rollouts: int,
    requests: int,
    names: tuple[str, ...],
    settings: tuple[str, ...],
    processes: int,
    seed: int,
    path: Path | None,
) -> None:
    """Simulate and count."""
    rows: list[dict[str, Any]] = []
    refuted: list[str] = []
    click.echo(HEADER)
    with Pool(processes) as pool:
        for world in [_NAMES[name] for name in names or tuple(_NAMES)]:
            for setting in settings or tuple(SETTINGS):
                jobs = ((world.name, setting, requests, seed, number) for number in range(rollouts))
                found = tally(world, setting, pool.imap_unordered(_one, jobs, chunksize=20))
                click.echo(line(found))
                rows.append({"world": world.name, "limits": setting, "rollouts": found.rollouts, **found.counts})
                if world in WORLDS and not (world.users and not world.balanced and setting == "at the truth"):
                    refuted += [f"{guard} ({world.name}, limits {setting})" for guard in found.refuted()]
    if path is not None:
        path.write_text(json.dumps({"requests": requests, "seed": seed, "rows": rows}, indent=1) + "\n")
    click.echo(f"\nover its budget: {', '.join(refuted)}" if refuted else "\nno budget is refuted")
    sys.exit(bool(refuted))


if __name__ == "__main__":
    main()
