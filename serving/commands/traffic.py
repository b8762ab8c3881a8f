"""Move traffic and take it back: `traffic`, `rollback`, `kill`, `rearm`."""

from __future__ import annotations

from pathlib import Path

import click

from serving.commands.common import (
    OK,
    admin,
    console,
    control_options,
    emit_json,
    json_option,
    percentages,
    reason_option,
    said,
    state_dir_option,
)
from serving.errors import CanariumError

#: A kill waits this long (seconds) for the control plane before it uses the control word.
KILL_PATIENCE_S = 2.0


@click.command()
@click.argument("model")
@click.argument("weights", nargs=-1, metavar="[VARIANT=PERCENT]...")
@click.option("--shadow", multiple=True, metavar="VARIANT=PERCENT", help="Share of requests copied to a variant.")
@click.option("--reference", type=click.FloatRange(0, 100), help="Share of candidate answers re-scored, percent.")
@click.option("--override-pause", is_flag=True, help="Raise a weight although a guard has paused the candidate.")
@reason_option
@control_options
@json_option
def traffic(
    model: str,
    weights: tuple[str, ...],
    shadow: tuple[str, ...],
    reference: float | None,
    override_pause: bool,
    reason: str,
    control: str,
    token_file: Path | None,
    as_json: bool,
) -> int:
    """Set the share of MODEL's traffic that variants get.

    The baseline gets what is left. Only the variants that are named change:
    `canarium traffic moderation int8=10 --reason "first step"`.
    """
    shares, copies = percentages(weights, "VARIANT=PERCENT"), percentages(shadow, "--shadow")
    if reference is not None and not 0 <= reference <= 100:  # a range lets "nan" through
        raise click.BadParameter(f"{reference}: a percentage is between 0 and 100", param_hint="--reference")
    if not shares and not copies and reference is None:
        raise click.UsageError("nothing to set: name VARIANT=PERCENT, --shadow or --reference")
    with admin(control, token_file) as client:
        view = client.traffic(
            model,
            reason=said(reason),
            weights=shares or None,
            shadow=copies or None,
            reference_percent=reference,
            override_pause=override_pause,
        )
    if as_json:
        emit_json(view)
        return OK
    from serving.commands.render import model_table

    console().print(model_table(view))
    return OK


@click.command()
@click.argument("model")
@click.argument("variant", required=False)
@reason_option
@control_options
@json_option
def rollback(model: str, variant: str | None, reason: str, control: str, token_file: Path | None, as_json: bool) -> int:
    """Take all traffic from VARIANT or every candidate.

    Without VARIANT, every candidate and shadow of MODEL loses its traffic.
    """
    with admin(control, token_file) as client:
        answer = client.rollback(model, variant, reason=said(reason))
    if as_json:
        emit_json(answer)
        return OK
    names = ", ".join(answer.get("rolled_back", [])) or "nothing had traffic"
    click.echo(f"{model}: rolled back: {names} (epoch {answer.get('epoch')})")
    return OK


@click.command()
@click.argument("model", required=False)
@click.option("--all", "every", is_flag=True, help="Every model of the deployment.")
@reason_option
@control_options
@state_dir_option
@json_option
def kill(
    model: str | None,
    every: bool,
    reason: str,
    control: str,
    token_file: Path | None,
    state_dir: Path,
    as_json: bool,
) -> int:
    """Put MODEL on its baseline until it is re-armed.

    Asks the control plane first. If that cannot be reached, the control word in the state directory
    is set directly: gateways read it on every request, so the kill works while the control plane is
    down; it must run on the machine of the gateways.
    """
    target, why = _target(model, every), said(reason)
    from serving.client import Failed, Unreachable

    try:
        with admin(control, token_file, timeout_s=KILL_PATIENCE_S) as client:
            answer = client.kill_all(reason=why) if every else client.kill(target, reason=why)
        path, seq, trouble = "control plane", answer.get("kill_seq"), None
    except (Unreachable, Failed) as error:
        if isinstance(error, Failed) and error.status < 500:
            raise
        path, seq, trouble = "control word", _kill_by_word(state_dir, target, error), str(error)
    if as_json:
        emit_json({"model": target, "kill_seq": seq, "path": path, "control_error": trouble})
        return OK
    if trouble:
        click.echo(f"canarium: {trouble}", err=True)
    subject = "all models are" if every else f"{target} is"
    click.echo(f"{subject} on the baseline (kill {seq}, through the {path})")
    click.echo(f"re-arm with: canarium rearm {'--all' if every else target} --kill-seq {seq} --reason WHY")
    return OK


@click.command()
@click.argument("model", required=False)
@click.option("--all", "every", is_flag=True, help="The kill of all models.")
@click.option("--kill-seq", required=True, type=click.IntRange(min=1), help="Number of the kill to release.")
@reason_option
@control_options
@json_option
def rearm(
    model: str | None,
    every: bool,
    kill_seq: int,
    reason: str,
    control: str,
    token_file: Path | None,
    as_json: bool,
) -> int:
    """Release a kill of MODEL.

    The kill is named by its number, so that a newer one stays in force.
    """
    target, why = _target(model, every), said(reason)
    with admin(control, token_file) as client:
        answer = client.rearm_all(kill_seq, reason=why) if every else client.rearm(target, kill_seq, reason=why)
    if as_json:
        emit_json(answer)
        return OK
    click.echo(f"{'all models' if every else target}: kill {kill_seq} is released")
    return OK


def _target(model: str | None, every: bool) -> str:
    if every == (model is not None):
        raise click.UsageError("name one MODEL, or --all")
    return "*" if model is None else model


def _kill_by_word(state_dir: Path, target: str, cause: CanariumError) -> int:
    """Set the latch in the control word and return its number. Raises `CanariumError` if there is no word."""
    from serving.client import ClientError, Unreachable
    from serving.contract import ControlWord, slot_key
    from serving.paths import Paths

    paths = Paths.of(state_dir)
    path = paths.word_path
    if not path.is_file():
        raise Unreachable(
            f"{cause}\nand there is no control word at {path}: name the state directory with --state-dir, "
            "on the machine where the gateways run"
        )
    known = _models_of(paths.snapshot_file)
    if known and target not in (*known, "*"):
        raise ClientError(f"unknown model {target!r}, expected one of {', '.join(known)}")
    word = ControlWord.open(path)
    try:
        return word.latch_on(slot_key(target), _above_published(paths.snapshot_file, target))
    finally:
        word.close()


def _above_published(snapshot: Path, target: str) -> int:
    """The first number above the published kills of `target`; 0 if they cannot be read.

    Gateways go by the higher of the word's and the published number, and the control plane of another node
    never writes this node's word: a kill that counted on from the word alone might be one that was released.
    """
    import json

    try:
        latch = json.loads(snapshot.read_bytes())["kills"][target]
        return max(int(latch["seq"]), int(latch["cleared"])) + 1
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _models_of(snapshot: Path) -> list[str]:
    """Models of the last published snapshot, by the file that gateways keep; none if it cannot be read."""
    import json

    try:
        return sorted(json.loads(snapshot.read_bytes())["tables"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


COMMANDS = (traffic, rollback, kill, rearm)
