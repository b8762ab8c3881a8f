"""Use and make models: `infer`, `feedback`, `build`."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import click

from serving.commands.common import (
    ERROR,
    OK,
    console,
    emit_json,
    inference,
    inference_options,
    json_option,
    registry_option,
)
from serving.commands.tensors import carry, encode, fit, inputs_of, parse_states, read, steps

if TYPE_CHECKING:
    from serving.client import Answer


@click.command()
@click.argument("model")
@click.argument("text", metavar="INPUT|-|@FILE")
@click.option("--variant", help="Ask this variant, not the one that routing picks (x-canarium-variant).")
@click.option("--user", help="The sticky unit (x-user-id): the same user gets the same variant.")
@click.option("--input", "input_name", default="text", show_default=True, help="Name of the model's text input.")
@click.option(
    "--tensors",
    is_flag=True,
    help="INPUT is JSON: an array, or an object of arrays by name; or @FILE.npz. Arrays with one axis more than the "
    "model takes are steps, asked one after the other.",
)
@click.option(
    "--state", "states", multiple=True, metavar="OUTPUT=INPUT", help="Give this output back with the next step."
)
@inference_options
@json_option
def infer(
    model: str,
    text: str,
    variant: str | None,
    user: str | None,
    input_name: str,
    tensors: bool,
    states: tuple[str, ...],
    url: str,
    token_file: Path | None,
    as_json: bool,
) -> int:
    """Ask a model: classify one text, or send it tensors.

    INPUT is given as it is, read from standard input (-) or from a file (@FILE).
    """
    given = {"x-canarium-variant": variant, "x-user-id": user}
    headers = {name: value for name, value in given.items() if value is not None}
    with inference(url, token_file) as client:
        if not tensors:
            return _show(client.infer_text(model, [_read(text)], input_name=input_name, headers=headers), as_json)
        wanted = inputs_of(client.metadata(model))
        kept = parse_states(states)
        values = fit(read(_read(text) if text == "-" else text), wanted, kept)
        for step in steps(values, wanted):
            answer = client.infer(
                model, encode(step | {name: values[name] for name in kept.values()}, wanted), headers=headers
            )
            values |= carry(answer.body, kept, wanted)
            _show(answer, as_json, hidden=set(kept))
    return OK


def _show(answer: Answer, as_json: bool, hidden: Collection[str] = ()) -> int:
    """Print an answer; `hidden` outputs only as JSON."""
    if as_json:
        meta = {"variant": answer.variant, "reason": answer.reason, "epoch": answer.epoch, "ms": answer.milliseconds}
        emit_json(answer.body | {"canarium": meta})
        return OK
    for output in answer.body.get("outputs", []):
        if output["name"] in hidden:
            continue
        values = ", ".join(f"{value:.4f}" if isinstance(value, float) else str(value) for value in output["data"])
        click.echo(f"{output['name']}: {values}")
    click.echo(
        f"answered by {answer.variant} ({answer.reason}) in {answer.milliseconds:.1f} ms, id {answer.request_id}"
    )
    return OK


@click.command()
@click.argument("model")
@click.argument("request_id", metavar="ID")
@click.argument("label")
@inference_options
def feedback(model: str, request_id: str, label: str, url: str, token_file: Path | None) -> int:
    """Tell the true LABEL of an earlier request.

    ID is the request id that the answer carried.
    """
    with inference(url, token_file) as client:
        client.feedback(model, request_id, label)
    click.echo(f"{model}: {request_id} is {label}")
    return OK


@click.command()
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@registry_option("--registry")
@click.option(
    "--cache",
    "cache_dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of finished steps.  [default: build, beside the registry]",
)
@click.option("--dry-run", is_flag=True, help="Only tell what would be done, and how long it took the last time.")
@click.option("--verify", is_flag=True, help="Build in a clean directory, and compare with what is registered.")
@json_option
def build(recipe: Path, registry_dir: Path, cache_dir: Path | None, dry_run: bool, verify: bool, as_json: bool) -> int:
    """Make and register the variants of RECIPE.

    Finished steps are not repeated. A variant that misses a requirement of the recipe is not registered.
    """
    cache_dir = cache_dir or registry_dir.parent / "build"
    if dry_run and verify:
        raise click.UsageError("--dry-run and --verify exclude each other")
    if dry_run:
        return _dry_run(recipe, cache_dir, as_json)
    if verify:
        return _verify(recipe, registry_dir, cache_dir, as_json)
    from rich.console import Console

    from serving.build.runner import build as run
    from serving.commands.render_registry import artifacts_table, plain
    from serving.registry.store import Registry

    made = run(
        recipe,
        Registry(registry_dir),
        cache_dir=cache_dir,
        console=None if as_json else Console(stderr=True),
    )
    if as_json:
        emit_json(
            {
                "artifacts": [plain(manifest) for manifest in made.manifests],
                "refused": made.refused,
                "seconds": made.seconds,
                "cached": made.cached,
                "report": str(made.report_path),
            }
        )
        return OK
    console().print(artifacts_table(made.manifests))
    for name, why in made.refused.items():
        click.echo(f"not registered: {name}: {why}")
    click.echo(f"{'nothing to do' if made.cached else 'done'} after {made.seconds:.1f} s; report: {made.report_path}")
    return OK


def _dry_run(recipe: Path, cache_dir: Path, as_json: bool) -> int:
    from serving.build.dry_run import dry_run
    from serving.commands.render_build import planned_json, planned_lines

    planned = dry_run(recipe, cache_dir=cache_dir)
    if as_json:
        emit_json(planned_json(planned))
    else:
        click.echo("\n".join(planned_lines(planned)))
    return OK


def _verify(recipe: Path, registry_dir: Path, cache_dir: Path, as_json: bool) -> int:
    from rich.console import Console

    from serving.build.verify import verify
    from serving.commands.render_build import compared_json, compared_lines
    from serving.registry.store import Registry

    shown = None if as_json else Console(stderr=True)
    compared = verify(recipe, Registry(registry_dir), cache_dir=cache_dir, console=shown)
    if as_json:
        emit_json(compared_json(compared))
    else:
        click.echo("\n".join(compared_lines(compared)))
    return ERROR if any(each.tier == "none" for each in compared) else OK


def _read(text: str) -> str:
    if text == "-":
        return sys.stdin.read()
    if text.startswith("@"):
        return Path(text[1:]).read_text(encoding="utf-8")
    return text


COMMANDS = (infer, feedback, build)
