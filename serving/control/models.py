"""How the tables follow the configuration file: seed what is new, keep the store's shares, say what differs."""

from __future__ import annotations

from typing import Any

import msgspec

from serving.contract import RouteTable
from serving.core.commands import ApplyModels, AuditDraft, ControlState, ModelSpec, Outcome, Promoted, WordWrite
from serving.core.killswitch import OFF, release
from serving.core.routing import initial_table
from serving.core.routing import weights as shares_of

replace = msgspec.structs.replace


def apply_models(state: ControlState, command: ApplyModels, now_ns: int) -> Outcome:
    """The tables of exactly the configured models.

    Variants that are new join without traffic, variants that are gone return theirs to the
    baseline; a live variant with another artifact keeps its share and starts over as evidence
    goes (`since`). A baseline that a rollout has promoted stays while the file names the one that
    it was promoted over. Kills and vetoes outlive their model and variant.
    """
    tables, vetoes, marks = dict(state.tables), dict(state.vetoes), dict(state.rolled_back)
    promoted = dict(state.promoted)
    drafts: list[AuditDraft] = []
    effects: list[WordWrite] = []
    notes: list[str] = []

    def audit(action: str, model: str, before: dict[str, Any], after: dict[str, Any]) -> None:
        by = command.by
        drafts.append(AuditDraft(now_ns, by.actor, action, model, None, by.reason, before, after, by.evidence))

    for model, spec in sorted(command.models.items()):
        table = state.tables.get(model)
        spec = _with_baseline(model, spec, promoted, notes)
        if table is None:
            tables[model] = _seeded(model, spec, vetoes, notes)
            audit("model-added", model, {}, _facts(tables[model]))
        else:
            tables[model] = _followed(table, spec)
            if tables[model] is not table:
                before, after = _difference(_facts(table), _facts(tables[model]))
                audit("model-changed", model, before, after)
                notes += [f"{model}: {key} {before.get(key, 'none')} -> {after.get(key, 'none')}" for key in after]
            notes += _share_notes(tables[model], spec)
        slot = f"{model}/{spec.baseline}"
        marks.pop(slot, None)
        if vetoes.get(slot, OFF).on:
            vetoes[slot] = release(vetoes[slot])
            effects.append(WordWrite(model, spec.baseline, vetoes[slot].seq, on=False))
    for model in sorted(state.tables.keys() - command.models.keys()):
        audit("model-removed", model, _facts(tables.pop(model)), {})
        notes.append(f"{model}: is no longer in the configuration and is not served any more")
    after_state = replace(state, tables=tables, vetoes=vetoes, rolled_back=marks, promoted=promoted)
    if after_state == state:
        return Outcome(state, notes=tuple(notes))
    return Outcome(after_state, tuple(drafts), tuple(effects), tuple(notes))


def _with_baseline(model: str, spec: ModelSpec, promoted: dict[str, Promoted], notes: list[str]) -> ModelSpec:
    """The specification with the baseline that is in force; a promotion that the file has overtaken is forgotten."""
    earlier = promoted.get(model)
    if earlier is None:
        return spec
    if earlier.instead_of != spec.baseline or earlier.baseline not in spec.variants:
        del promoted[model]
        if earlier.baseline != spec.baseline:
            notes.append(f"{model}: baseline is {spec.baseline} by the file, no longer the promoted {earlier.baseline}")
        return spec
    notes.append(
        f"{model}: baseline is {spec.baseline} in the file and {earlier.baseline} in the store, which wins since its "
        f"rollout (write {earlier.baseline} into the file, or roll {spec.baseline} out)"
    )
    given = {name: share for name, share in spec.weights.items() if name != earlier.baseline}
    copied = {name: share for name, share in spec.shadow.items() if name != earlier.baseline}
    return replace(spec, baseline=earlier.baseline, weights=given, shadow=copied)


def _seeded(model: str, spec: ModelSpec, vetoes: dict[str, Any], notes: list[str]) -> RouteTable:
    def allowed(shares: dict[str, int]) -> dict[str, int]:
        return {name: share for name, share in shares.items() if share and not vetoes.get(f"{model}/{name}", OFF).on}

    for name in sorted(spec.weights.keys() | spec.shadow.keys()):
        if vetoes.get(f"{model}/{name}", OFF).on:
            notes.append(f"{model}: {name} was rolled back earlier and gets no traffic until it is given some")
    table = RouteTable(
        model=model,
        epoch=1,
        salt=spec.salt,
        baseline=spec.baseline,
        teacher=spec.teacher,
        variants=spec.variants,
        shadow=allowed(spec.shadow),
        reference_bp=spec.reference_bp,
    )
    return initial_table(table, allowed(spec.weights))


def _followed(table: RouteTable, spec: ModelSpec) -> RouteTable:
    """The table with the configured variants and its own shares; `table` itself if that is the same."""
    kept = {name for name in spec.variants if name != spec.baseline}
    epoch = table.epoch + 1
    followed = replace(
        table,
        baseline=spec.baseline,
        teacher=spec.teacher,
        variants=spec.variants,
        candidates={name: spans for name, spans in table.candidates.items() if name in kept},
        since={
            name: at if table.variants[name].artifact == spec.variants[name].artifact else epoch
            for name, at in table.since.items()
            if name in kept
        },
        shadow={name: share for name, share in table.shadow.items() if name in kept},
    )
    return table if followed == table else replace(followed, epoch=epoch)


def _facts(table: RouteTable) -> dict[str, Any]:
    """What an audit row says of a table, flat."""
    facts: dict[str, Any] = {"baseline": table.baseline, "teacher": table.teacher}
    shares = shares_of(table)
    for name, variant in sorted(table.variants.items()):
        facts[f"variants.{name}"] = (
            f"{variant.artifact} {variant.placement} {variant.runtime} x{variant.replicas} batch {variant.max_batch}"
        )
        facts[f"weights.{name}"] = shares[name] / 100
        facts[f"shadow.{name}"] = table.shadow.get(name, 0) / 100
    return facts


def _difference(before: dict[str, Any], after: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    keys = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    return {key: before.get(key) for key in keys}, {key: after.get(key) for key in keys}


def _share_notes(table: RouteTable, spec: ModelSpec) -> list[str]:
    stored, notes = shares_of(table), []
    for name in sorted(spec.variants.keys() - {spec.baseline}):
        pairs = (
            (f"weights.{name}", stored[name], spec.weights.get(name, 0)),
            (f"shadow.{name}", table.shadow.get(name, 0), spec.shadow.get(name, 0)),
        )
        notes += [_note(table.model, path, kept, given) for path, kept, given in pairs if kept != given]
    if table.reference_bp != spec.reference_bp:
        notes.append(_note(table.model, "reference_percent", table.reference_bp, spec.reference_bp))
    return notes


def _note(model: str, path: str, kept: int, given: int) -> str:
    return (
        f"{model}: {path} is {given / 100:g} in the file and {kept / 100:g} in the store, which wins "
        f"(change it with 'canarium traffic')"
    )
