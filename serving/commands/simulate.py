"""`rollout simulate`: guards and a rollout over recorded events."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.commands.common import ERROR, OK, console, emit_json, json_option, read_config
from serving.commands.events import read_recorded, recorded_options
from serving.commands.rollout import DEFAULT_POLICY, one_policy, policy_options, read_policy
from serving.errors import CanariumError

if TYPE_CHECKING:
    from monitoring.config import MonitorModel
    from monitoring.recorded import Found
    from monitoring.replay import Look, Replay
    from serving.core.rollout_decide import Facts
    from serving.core.rollout_policy import Policy
    from serving.core.rollout_replay import Moved, Replayed

Json = dict[str, Any]


@click.command()
@click.argument("model")
@click.argument("variant")
@policy_options
@recorded_options
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Configuration with the model's baseline, teacher, guards and SLOs; needs its registry.",
)
@click.option("--baseline", metavar="NAME", help="The trusted variant, without or against --config.")
@click.option("--teacher", metavar="NAME", help="Whom it is compared with; the baseline if absent.")
@click.option("--no-approve", is_flag=True, help="Stay at the first approval instead of taking it for granted.")
@json_option
def simulate(
    model: str,
    variant: str,
    name: str | None,
    path: Path | None,
    sources: tuple[Path, ...],
    since: str | None,
    until: str | None,
    config: Path | None,
    baseline: str | None,
    teacher: str | None,
    no_approve: bool,
    as_json: bool,
) -> int:
    """Replay a rollout of VARIANT over recorded events; needs no server.

    Says when each guard would have tripped, and what the rollout would have done. The traffic is what was recorded:
    a step's weight is taken as given, and its gate counts the recorded answers. Without --config guards have their
    defaults. The exit code is 1 if it would have been rolled back or killed.
    """
    from monitoring.replay import Replay
    from serving.core.rollout_replay import replay

    named, policy = _policy(name, path)
    if config is None and baseline is None:
        raise click.UsageError("name the baseline: --config or --baseline")
    known = _model(config, model) if config is not None else None
    found = read_recorded(sources, model, since, until)
    watched = _watched(found, variant, known, baseline, teacher)
    try:
        guards = Replay(found.recording, model, watched, variant)
    except ValueError as error:
        raise CanariumError(str(error)) from error
    replayed = replay(policy, named, model, variant, map(_facts, guards.looks()), approve=not no_approve)
    document = _document(found, guards, replayed, watched)
    failed = replayed.outcome in ("rolled_back", "killed")
    if as_json:
        emit_json(document)
    else:
        from serving.commands.render_replay import replay_view

        console().print(replay_view(document))
        if failed:
            click.echo(
                f"canarium: {variant} would have been {replayed.outcome.replace('_', ' ')}: {document['why']}", err=True
            )
    return ERROR if failed else OK


# ---------------------------------------------------------------- what is replayed


def _policy(name: str | None, path: Path | None) -> tuple[str, Policy]:
    """The policy that is meant, and its name. Raises `click.UsageError`, or `ConfigError` for a bad file."""
    from serving.core.rollout_policy import NAMED, parse_policy

    one_policy(name, path)
    if path is not None:
        return "file", parse_policy(read_policy(path))
    name = name or DEFAULT_POLICY
    if name not in NAMED:
        raise click.UsageError(f"unknown policy {name!r}, expected one of {', '.join(NAMED)}")
    return name, NAMED[name]


def _model(config: Path, model: str) -> MonitorModel:
    from serving.monitor_settings import monitor_settings

    models = monitor_settings(read_config(config, ())).models
    if model not in models:
        raise CanariumError(f"{config}: models.{model} is not there, expected one of {', '.join(models)}")
    return models[model]


def _watched(
    found: Found, variant: str, known: MonitorModel | None, baseline: str | None, teacher: str | None
) -> MonitorModel:
    """The model as the guards are to know it. Raises `CanariumError` if the recording has not what it takes."""
    import msgspec

    from monitoring.config import MonitorModel, MonitorVariant

    counts = _counts(found)
    baseline = baseline or (known.baseline if known is not None else "")
    teacher = teacher or (known.teacher if known is not None and known.baseline == baseline else baseline)
    recorded = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
    for role, who in (("the baseline", baseline), ("the teacher", teacher), ("the candidate", variant)):
        if not counts.get(who) and not (role == "the teacher" and who in found.recording.variants):
            raise CanariumError(f"no records of {who!r}, {role}: there are records of {recorded or 'no variant'}")
    if variant == baseline:
        raise CanariumError(f"{variant} is the baseline already")
    variants = {name: MonitorVariant() for name in found.recording.variants}
    if known is None:
        return MonitorModel(baseline, teacher, variants)
    return msgspec.structs.replace(known, baseline=baseline, teacher=teacher, variants={**variants, **known.variants})


def _counts(found: Found) -> dict[str, int]:
    """Requests and pairs of each variant."""
    import numpy as np

    from serving.contract import Kind

    records = found.recording.records
    routed = records["series"][records["kind"] <= Kind.SHADOW]
    ids, counts = np.unique(routed, return_counts=True)
    return {found.recording.variants[at]: count for at, count in zip(ids.tolist(), counts.tolist(), strict=True)}


def _facts(look: Look) -> tuple[int, Facts]:
    """A look as a rollout sees it."""
    from serving.core.rollout_decide import Guard
    from serving.core.rollout_replay import recorded

    guards = {
        said.guard: Guard(said.guard, said.verdict, said.action, said.sentence, said.statistic, said.dry_run)
        for said in look.verdicts
    }
    return look.wall_ns, recorded(guards, look.live, look.pairs, look.suspect)


# ---------------------------------------------------------------- what is said


def _document(found: Found, guards: Replay, replayed: Replayed, watched: MonitorModel) -> Json:
    from monitoring.verdicts import iso

    rollout, last, begin_ns = replayed.rollout, guards.now(), guards.begin_ns
    return {
        "model": rollout.model,
        "variant": rollout.variant,
        "baseline": watched.baseline,
        "teacher": watched.teacher,
        "policy": rollout.policy_name,
        "steps": len(rollout.policy.steps),
        "recording": {
            "from": iso(begin_ns),
            "to": iso(guards.end_ns),
            "seconds": round((guards.end_ns - begin_ns) / 1e9, 3),
            "files": found.files,
            "records": len(found.recording.records),
            "lost": found.lost,
            "corrupt": found.corrupt,
            "unreadable": found.unreadable,
        },
        "outcome": replayed.outcome,
        "state": str(rollout.state),
        "hold": str(rollout.hold) if rollout.hold else None,
        "why": rollout.why,
        "waiting": replayed.waiting,
        "live_answers": last.live,
        "pairs": last.pairs,
        "suspect_answers": last.suspect,
        "moves": [_move(moved, begin_ns) for moved in replayed.moves],
        "guards": [
            {
                "guard": verdict.guard,
                "required": verdict.guard in rollout.policy.required,
                "verdict": verdict.verdict,
                "sentence": verdict.sentence,
                "statistic": verdict.statistic,
                "trips": [
                    {
                        "at": iso(trip.wall_ns),
                        "after_s": round((trip.wall_ns - begin_ns) / 1e9, 3),
                        "action": trip.action,
                        "live_answers": trip.live,
                        "pairs": trip.pairs,
                        "suspect_answers": trip.suspect,
                        "sentence": trip.sentence,
                        "statistic": trip.statistic,
                    }
                    for trip in guards.trips
                    if trip.guard == verdict.guard
                ],
            }
            for verdict in last.verdicts
        ],
    }


def _move(moved: Moved, begin_ns: int) -> Json:
    from monitoring.verdicts import iso

    before, after = moved.before, moved.after
    return {
        "at": iso(moved.at_ns),
        "after_s": round((moved.at_ns - begin_ns) / 1e9, 3),
        "move": str(moved.move),
        "from": str(before.state),
        "to": str(after.state),
        "hold": str(after.hold) if after.hold else None,
        "step": after.at,
        "weight": after.weight / 100,
        "why": after.why,
        "live_answers": moved.live,
        "pairs": moved.pairs,
        "suspect_answers": moved.suspect,
    }
