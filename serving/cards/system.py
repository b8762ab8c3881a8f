"""The system card: a whole deployment as its configuration has it, with the artifacts that it would serve.

What is in force is known to a running control plane only (`in_force`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel

from serving.cards.facts import UNSTATED, code, escaped, flat, listed, number, plain, relation_of, table
from serving.cards.in_force import Asked, in_force
from serving.config import Config, ModelConfig
from serving.config_monitoring import GuardsConfig
from serving.contract import GUARD_ROLES
from serving.governance.settings import CardConfig
from serving.registry.manifest import Manifest


class Part(NamedTuple):
    """A variant's artifact, and why it may not be served by the configuration's governance (empty: it may)."""

    manifest: Manifest
    refusal: str


Parts = Mapping[str, Mapping[str, Part]]

_AS_CONFIGURED = (
    "A deployment of Canarium, as configured; not what is in force: shares, kills and rollouts change while it runs."
)
_AS_ASKED = "A deployment of Canarium, as configured, but for what stands under In force."

#: What each guard watches; one without words here is shown by its name.
_WATCHES = {
    "invalid_output": "invalid answers where the baseline's is valid",
    "errors": "error events, against the baseline's",
    "latency": "the tail of the latency, against the baseline's",
    "agreement": "answers that differ from the teacher's",
    "harm": "labelled answers that the teacher has right and the candidate wrong",
    "calibration": "confidence, against what it was worth when the variant was built",
    "saturation": "activations of an INT8 variant outside their calibrated ranges",
    "ood": "the energy of answers, against that of held-out rows",
    "embedding": "how far rows are from the training rows as the model sees them, against held-out rows",
}


def system_card(
    config: Config, parts: Parts, name: str, *, exchanged: Sequence[str] = (), asked: Asked | None = None
) -> str:
    """The card as Markdown.

    Args:
        parts: model -> variant -> what it would serve.
        name: what the deployment is called.
        exchanged: a sentence on each artifact that the configuration names and its host would not serve.
        asked: what its control plane says; without it the card is about the configuration alone.
    """
    lines = [f"# {escaped(plain(name))}", "", _AS_CONFIGURED if asked is None else _AS_ASKED, ""]
    lines += ["## Responsibility and use", "", *_responsibility(config.card)]
    lines += in_force(config, asked) if asked is not None else []
    lines += ["## Models"]
    rows = [
        (
            code(model),
            settings.baseline,
            settings.teacher or settings.baseline,
            ", ".join(variant for variant in settings.variants if variant != settings.baseline) or "none",
            settings.card.owner or config.card.owner or UNSTATED,
        )
        for model, settings in config.models.items()
    ]
    lines += table(("model", "baseline", "judged against", "candidates", "owner"), rows)
    lines += [f"**{escaped(plain(note))}**\n" for note in exchanged]
    for model, settings in config.models.items():
        lines += _model(model, settings, parts[model])
    lines += ["## Governance", *_governance(config, parts)]
    lines += ["## Access and limits"]
    server, auth = config.server, config.auth
    lines += table(
        ("", ""),
        (
            ("address", f"{server.host}: HTTP {server.http_port}, gRPC {server.grpc_port}"),
            (
                "authentication",
                "none, loopback only" if auth.mode == "none" else f"tokens; inference: {auth.data_plane}",
            ),
            ("gateways", server.gateways),
            ("largest request", f"{server.max_body_mib} MiB"),
            ("held at once by a gateway", f"{server.max_inflight_mib} MiB"),
        ),
    )
    return "\n".join(lines).rstrip() + "\n"


def _responsibility(card: CardConfig) -> list[str]:
    titles = (("Owner", card.owner), ("Contact", card.contact), ("Purpose", card.purpose), ("Use", card.intended_use))
    lines = [f"- **{title}:** {escaped(plain(value or UNSTATED))}" for title, value in titles]
    return [*lines, "", "Limitations:", "", *listed(card.limitations), ""]


def _model(model: str, settings: ModelConfig, parts: Mapping[str, Part]) -> list[str]:
    lines = [f"## Model {code(model)}", "", *_responsibility(settings.card), "### Variants"]
    rows = []
    for name, variant in settings.variants.items():
        manifest = parts[name].manifest
        accuracy = manifest.evaluation.get("accuracy")
        rows.append(
            (
                code(name),
                f"{manifest.ref}, version {manifest.version}",
                relation_of(manifest),
                f"{variant.placement}, {variant.replicas} × {variant.threads} threads, batches of {variant.max_batch}",
                number(accuracy) if isinstance(accuracy, float) else UNSTATED,
                f"{manifest.size_bytes:,}",
                code(manifest.digest),
            )
        )
    lines += table(("variant", "artifact", "how made", "runs", "accuracy", "bytes", "manifest sha256"), rows)
    placements = {variant.placement for variant in settings.variants.values()}
    if len(placements) > 1:
        lines += [
            "**The variants do not share one placement**: differences of latency are partly those of the placement.",
            "",
        ]
    routing = settings.routing
    given = ", ".join(f"{name} {share:g} %" for name, share in routing.weights.items() if share)
    copied = ", ".join(f"{name} {share:g} %" for name, share in routing.shadow.items() if share)
    queue = settings.queue
    lines += ["### Routing"]
    lines += table(
        ("", ""),
        (
            ("traffic of a model never seen before", f"{given or 'no candidate'}; the rest to {settings.baseline}"),
            ("copied in shadow", copied or "nothing"),
            ("scored again by the teacher", f"{routing.reference_percent:g} % of candidates' answers"),
            ("who keeps a variant", routing.sticky_key),
            ("the baseline answers when a candidate's is", ", ".join(routing.fallback.on)),
            ("queue", f"{queue.max_rows} rows, expected wait up to {queue.max_wait_ms or 0:g} ms"),
            ("deadline", f"{queue.default_timeout_ms} ms"),
            (
                "after a kill, what the baseline cannot do",
                "is refused" if settings.capacity.on_kill == "shed" else "is never taken",
            ),
        ),
    )
    guards = settings.guards
    silent = "everything to the baseline" if guards.monitor_loss == "baseline" else "go on"
    lines += [
        "### Guards",
        "",
        f"A sound candidate is rolled back by mistake with a chance of at most {guards.false_rollback:g}; one beyond a "
        f"limit gets its pass with a chance of at most {guards.false_promotion:g}. When the monitor is silent for "
        f"{guards.monitor_loss_s:g} s: {silent}.",
    ]
    guard_rows = [
        (
            code(guard),
            _WATCHES.get(guard, guard.replace("_", " ")),
            ", ".join(f"{key} {value}" for key, value in flat(_settings(guards, guard))) or "–",
            "observes only" if guard in guards.dry_run else role.action,
        )
        for guard, role in GUARD_ROLES.items()
    ]
    lines += table(("guard", "watches", "limits", "action"), guard_rows)
    lines += ["### Objectives"]
    slos = [
        (slo.name, f"{slo.objective:.4%}", f"{slo.threshold_ms:g} ms" if slo.threshold_ms else "–", slo.window)
        for slo in settings.slo
    ]
    return [
        *lines,
        *(table(("objective", "share of good events", "threshold", "window"), slos) if slos else ["", "None.", ""]),
    ]


def _settings(guards: GuardsConfig, guard: str) -> dict[str, Any]:
    settings = getattr(guards, guard, None)
    return settings.model_dump() if isinstance(settings, BaseModel) else {}


def _governance(config: Config, parts: Parts) -> list[str]:
    governance = config.governance
    meaning = {
        "off": "whatever is in the registry is served",
        "warn": "what is not approved is served, and said",
        "enforce": "only what is approved is served",
    }
    trusted = [f"{key.name} ({', '.join(key.roles)})" for key in governance.trusted_keys]
    lines = ["", f"Mode `{governance.mode}`: {meaning[governance.mode]}. {_policies(config)}", ""]
    lines += ["Approvals count of:", "", *listed(trusted), ""]
    if governance.mode == "off":
        return lines
    rows = [
        (f"{model}/{variant}", "not approved" if part.refusal else "approved", part.refusal or "–")
        for model, variants in parts.items()
        for variant, part in variants.items()
    ]
    return [*lines, *table(("variant", "", "why"), rows)]


def _policies(config: Config) -> str:
    """Which policy binds which model: the common one, and those of the models that have their own."""
    common = config.governance.policy
    own = {name: model.policy for name, model in config.models.items() if model.policy and model.policy != common}
    if not own:
        return f"Policy {code(common)}."
    named = ", ".join(f"{code(policy)} for model {code(name)}" for name, policy in own.items())
    rest = code(common) if len(own) < len(config.models) else ""
    return f"Policy {'; '.join(part for part in (rest, named) if part)}."
