"""Move traffic and take it back: `traffic`, `rollback`, `kill`, `rearm`."""

from __future__ import annotations

from pathlib import Path

import click

from serving.commands.common import (
    OK,
    actor,
    admin,
    console,
    control_options,
    emit_json,
    json_option,
    percentages,
    printable,
    reason_option,
    said,
    state_dir_option,
)

#: A kill waits this long (seconds) for the control plane before it uses the control word.
KILL_PATIENCE_S = 2.0
#: What is left to somebody whom the control plane refuses: the permissions of a file decide about the word.
WAY_OUT = (
    "whoever may write the state directory on the machine of the gateways can kill without the control plane: "
    "`canarium kill … --by-word --state-dir DIR`"
)


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

    Without VARIANT, every candidate and shadow of MODEL loses its traffic. A rollout under way ends.
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
@click.option("--by-word", is_flag=True, help="Set the control word and do not ask the control plane.")
@reason_option
@control_options
@state_dir_option
@json_option
def kill(
    model: str | None,
    every: bool,
    by_word: bool,
    reason: str,
    control: str,
    token_file: Path | None,
    state_dir: Path,
    as_json: bool,
) -> int:
    """Put MODEL on its baseline until it is re-armed.

    Asks the control plane first. If that cannot be reached, the control word in the state directory
    is set directly: gateways read it on every request, so the kill works while the control plane is
    down; it must run on the machine of the gateways. A refusal, such as of a token that has expired,
    is not passed over: --by-word does that, for whoever may write the state directory.
    """
    target, why = _target(model, every), said(reason)
    seq, trouble = (None, None) if by_word else _kill_by_control(control, token_file, target, why)
    path = "control word" if by_word or trouble else "control plane"
    if path == "control word":
        seq = _kill_by_word(state_dir, target, why, trouble)
    if as_json:
        emit_json({"model": target, "kill_seq": seq, "path": path, "control_error": trouble})
        return OK
    if trouble:
        click.echo(f"canarium: {printable(trouble)}", err=True)
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


def _kill_by_control(control: str, token_file: Path | None, target: str, why: str) -> tuple[int | None, str | None]:
    """The number of the kill; None and what is wrong if the control plane cannot answer. Raises `CanariumError`."""
    from serving.client import ClientError, Failed, Unreachable

    try:
        with admin(control, token_file, timeout_s=KILL_PATIENCE_S) as client:
            answer = client.kill_all(reason=why) if target == "*" else client.kill(target, reason=why)
    except ClientError as error:
        status = error.status if isinstance(error, Failed) else 0
        if isinstance(error, Unreachable) or status >= 500:
            return None, str(error)
        if status in (0, 429):  # who is asking is not accepted; anything else is wrong with what is asked
            error.args = (f"{error}\n{WAY_OUT}",)
        raise
    return answer.get("kill_seq"), None


def _kill_by_word(state_dir: Path, target: str, why: str, trouble: str | None) -> int:
    """Set the latch in the control word and return its number. Raises `CanariumError` if there is no word."""
    from serving.client import ClientError, Unreachable
    from serving.contract import ControlWord, slot_key
    from serving.control import kill_notes
    from serving.core.killswitch import KillNote
    from serving.paths import Paths

    paths = Paths.of(state_dir)
    path = paths.word_path
    if not path.is_file():
        before = f"{trouble}\nand there" if trouble else "there"
        raise Unreachable(
            f"{before} is no control word at {path}: name the state directory with --state-dir, "
            "on the machine where the gateways run"
        )
    known = _models_of(paths.snapshot_file)
    if known and target not in (*known, "*"):
        raise ClientError(f"unknown model {target!r}, expected one of {', '.join(known)}")
    word, key = ControlWord.open(path), slot_key(target)
    try:
        now = word.latch(key)
        # A kill of what is killed already is one of its own: whoever re-arms the first has not read about this one.
        own = now.seq + 1 if now is not None and now.on else 0
        seq = word.latch_on(key, max(own, _above_published(paths.snapshot_file, target)))
    finally:
        word.close()
    try:
        kill_notes.leave(kill_notes.beside(path), KillNote(target, seq, actor(), why))
    except OSError as error:  # the kill is in force, and that comes first
        click.echo(f"canarium: the audit log will not say who killed it and why: {error}", err=True)
    return seq


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
