"""What several decisions of the control plane share: looking up, moving shares, taking out, writing rows. Pure."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from serving.contract import BUCKETS, Latch, RouteTable
from serving.core.commands import ALL, CONTROL_WORD, AuditDraft, By, ControlState, Mark, Outcome, WordWrite
from serving.core.killswitch import OFF
from serving.core.routing import weights as shares_of
from serving.core.routing import with_weight
from serving.errors import ErrorKind, RequestError, bad_request

replace = msgspec.structs.replace


def table_of(state: ControlState, model: str) -> RouteTable:
    """The table of a model. Raises `RequestError` NOT_FOUND naming the known models."""
    table = state.tables.get(model)
    if table is None:
        known = ", ".join(sorted(state.tables)) or "none yet"
        raise RequestError(ErrorKind.NOT_FOUND, f"unknown model {model!r}, expected one of: {known}")
    return table


def require_epoch(state: ControlState, model: str, epoch: int | None) -> None:
    """Raises `RequestError` PRECONDITION unless the model's table is at `epoch` (None: at any), or NOT_FOUND."""
    at = table_of(state, model).epoch
    if epoch not in (None, at):
        raise RequestError(
            ErrorKind.PRECONDITION, f"the table of {model} is at epoch {at}, not {epoch}: look again first"
        )


def basis_points(path: str, percent: float) -> int:
    """A percentage as basis points. Raises `RequestError` BAD_REQUEST naming `path`."""
    if not math.isfinite(percent):
        raise bad_request(f"{path}: {percent} is not a number of percent")
    if percent < 0:
        raise bad_request(f"{path}: {percent:g} is under 0")
    if percent > 100:
        raise bad_request(f"{path}: {percent:g} is over 100")
    points = round(percent * 100)
    if abs(points - percent * 100) > 1e-6:
        raise bad_request(f"{path}: {percent:g} is not a multiple of 0.01, the smallest step")
    return points


def traffic_of(table: RouteTable) -> dict[str, Any]:
    """The shares of a table in percent, as audit rows and the API show them."""
    return {
        "epoch": table.epoch,
        "weights": {name: share / 100 for name, share in sorted(shares_of(table).items())},
        "shadow": {name: share / 100 for name, share in sorted(table.shadow.items())},
        "reference_percent": table.reference_bp / 100,
    }


def known_variant(table: RouteTable, name: str) -> None:
    """Raises `RequestError` NOT_FOUND naming the variants there are."""
    if name not in table.variants:
        known = ", ".join(sorted(table.variants))
        raise RequestError(ErrorKind.NOT_FOUND, f"unknown variant {name!r} of {table.model}, expected one of: {known}")


def refuse_while_killed(state: ControlState, model: str, raised: list[str]) -> None:
    """Raises `RequestError` CONFLICT if variants are to get traffic while a kill is in force."""
    for name, path in ((model, f"models/{model}:rearm"), (ALL, "kill-switch:rearm")):
        latch = state.kills.get(name, OFF)
        if latch.on and raised:
            whose = f"{model} is" if name == model else "all models are"
            raise RequestError(
                ErrorKind.CONFLICT,
                f"{whose} killed (kill_seq {latch.seq}): re-arm with POST /admin/v1/{path} "
                f"before giving traffic to {', '.join(raised)}",
            )


def with_shares(
    table: RouteTable,
    weights: dict[str, int],
    shadow: dict[str, int],
    salt: str,
    reference_percent: float | None = None,
) -> RouteTable:
    """The table with these shares, or `table` itself if they are in force already."""
    held = {name: share for name, share in shares_of(table).items() if name != table.baseline}
    wanted = held | weights
    total = sum(wanted.values())
    if total > BUCKETS:
        parts = " + ".join(f"{name} {share / 100:g}" for name, share in sorted(wanted.items()) if share)
        raise bad_request(f"weights: {parts} add up to {total / 100:g}, over 100")
    shadows = {name: share for name, share in (table.shadow | shadow).items() if share}
    reference = table.reference_bp
    if reference_percent is not None:
        reference = basis_points("reference_percent", reference_percent)
    if wanted == held and shadows == table.shadow and reference == table.reference_bp:
        return table
    epoch = table.epoch + 1
    changed = replace(table, shadow=shadows, reference_bp=reference, epoch=epoch)
    if not table.candidates and total:
        changed = replace(changed, salt=salt)
    # Lower first, so that what one candidate gives up is there for another.
    for name in sorted(weights, key=lambda name: weights[name] - held[name]):
        changed = with_weight(changed, name, weights[name], epoch=epoch)
    return changed


def one_epoch(before: RouteTable | None, after: RouteTable) -> RouteTable:
    """The table as one change of what it was, however many steps led to it."""
    if before is None or after.epoch <= before.epoch + 1:
        return after
    epoch = before.epoch + 1
    return replace(after, epoch=epoch, since={name: min(at, epoch) for name, at in after.since.items()})


def take_out(state: ControlState, table: RouteTable, targets: dict[str, tuple[Latch, By]], now_ns: int) -> Outcome:
    """Weight and shadow of each target to 0 in one epoch, and its veto as given, by whom given."""
    changed = table
    if any(name in table.candidates or name in table.shadow for name in targets):
        changed = replace(
            table,
            epoch=table.epoch + 1,
            candidates={name: spans for name, spans in table.candidates.items() if name not in targets},
            since={name: epoch for name, epoch in table.since.items() if name not in targets},
            shadow={name: share for name, share in table.shadow.items() if name not in targets},
        )
    vetoes, marks = dict(state.vetoes), dict(state.rolled_back)
    drafts, effects = [], []
    for name, (latch, by) in sorted(targets.items(), key=lambda target: target[0]):
        slot = f"{table.model}/{name}"
        old, mark = vetoes.get(slot, OFF), marks.get(slot)
        vetoes[slot] = latch
        effects.append(WordWrite(table.model, name, latch.seq, on=True))
        if old.on and name not in table.candidates and name not in table.shadow and not explains(by, mark):
            continue
        marks[slot] = Mark(now_ns, by.actor, by.reason)
        before, after = _variant_facts(table, name, old), _variant_facts(changed, name, latch)
        drafts.append(drafted(by, now_ns, "rollback", (table.model, name), before, after))
    if vetoes == state.vetoes and not drafts:
        return Outcome(state)
    after_state = replace(state, tables={**state.tables, table.model: changed}, vetoes=vetoes, rolled_back=marks)
    return Outcome(after_state, tuple(drafts), tuple(effects))


def explains(by: By, mark: Mark | None) -> bool:
    """Whether `by` brings the reason of a latch that so far was only seen in the control word."""
    return mark is None or (mark.actor == CONTROL_WORD and by.actor != CONTROL_WORD)


def _variant_facts(table: RouteTable, name: str, veto: Latch) -> dict[str, Any]:
    return {
        "epoch": table.epoch,
        "weight": shares_of(table)[name] / 100,
        "shadow": table.shadow.get(name, 0) / 100,
        "vetoed": veto.on,
        "veto_seq": veto.seq,
    }


def join(first: Outcome, then: Outcome) -> Outcome:
    """What two decisions in a row come to."""
    return Outcome(then.state, first.audit + then.audit, first.effects + then.effects, first.notes + then.notes)


def drafted(
    by: By, now_ns: int, action: str, what: tuple[str, str | None], before: dict[str, Any], after: dict[str, Any]
) -> AuditDraft:
    """An audit row; `what` is the model and the variant."""
    return AuditDraft(now_ns, by.actor, action, what[0], what[1], by.reason, before, after, by.evidence)
