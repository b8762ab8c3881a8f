# ruff: noqa: E501
"""The README's tables that are made from the code: `python tests/docs/reference.py` writes them anew.

Each stands between `<!-- NAME -->` and `<!-- /NAME -->`. The meanings are written here; paths, types, defaults,
labels and help come from the code, and `test_reference.py` fails when README and code differ.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import httpx
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from monitoring.actuate import Actuator  # noqa: E402
from monitoring.config import MonitorConfig  # noqa: E402
from monitoring.metrics import MonitorCollector  # noqa: E402
from monitoring.watch import Watch  # noqa: E402
from serving.clock import FakeClock  # noqa: E402
from serving.config import Config  # noqa: E402
from serving.contract import ControlWord  # noqa: E402
from serving.core.rollout import BACK, ENDED, TRANSITIONS, Move, State  # noqa: E402
from serving.core.rollout_policy import NAMED, Gate, Policy, Shadow  # noqa: E402
from serving.governance.policy import BUILT_IN, Approvals  # noqa: E402
from serving.governance.policy import Policy as GovernancePolicy  # noqa: E402

MEANINGS = {
    "apiVersion": "format of the file",
    "server.host": "address of the four servers; anything but loopback needs `auth.mode: tokens`",
    "server.http_port": "inference over HTTP",
    "server.grpc_port": "inference over gRPC",
    "server.monitor_port": "metrics, health, verdicts of the monitor",
    "server.control_port": "admin API and console",
    "server.gateways": "gateway processes",
    "server.max_body_mib": "largest HTTP request body, packed or unpacked (413); gRPC messages (RESOURCE_EXHAUSTED) are held to it as well",
    "server.max_inflight_mib": "request bodies held at once by one gateway (503); shadow and reference work may hold a quarter of it beside (shed)",
    "state.dir": "everything an instance writes, the registry aside; relative to the working directory",
    "state.database": "where the control plane keeps its state: `sqlite` is a file in `state.dir`; else `postgresql+psycopg://USER:${NAME}@HOST/DATABASE`, `${NAME}` being an environment variable",
    "registry.dir": "the model registry",
    "auth.mode": "`tokens` asks every caller for a bearer token",
    "auth.tokens_file": "lines of `name:role:sha256[:expiry]`, changed with `canarium token` and followed within seconds",
    "auth.data_plane": "in mode `tokens`: whether inference needs a token as well, or only the admin API, feedback and choosing the variant",
    "governance.mode": "`enforce`: only artifacts that are approved are served; `warn`: others are served, and said; see [Governance](#governance)",
    "governance.policy": "what must be measured and who must approve: `low`, `limited`, `high`, or a policy file",
    "governance.trusted_keys[].name": "the person whose approvals this key signs",
    "governance.trusted_keys[].key": "public key, as `canarium key show` prints it",
    "governance.trusted_keys[].roles": "the roles in which these approvals count",
    "card.name": "what the deployment is called in its [card](#governance); the name of the file if absent",
    "card.owner": "who answers for it",
    "card.contact": "how to reach them",
    "card.purpose": "what it is for",
    "card.intended_use": "for whom and for which inputs it was made",
    "card.limitations": "what it cannot do, or must not be used for",
    "models.M.policy": "in place of `governance.policy` for this model",
    "models.M.card.owner": "likewise of one model",
    "models.M.card.contact": "likewise",
    "models.M.card.purpose": "likewise",
    "models.M.card.intended_use": "likewise",
    "models.M.card.limitations": "likewise",
    "models.M.baseline": "the trusted variant; the kill-switch and every rollback go here",
    "models.M.teacher": "whom candidates are compared with; the baseline if absent",
    "models.M.variants.V.artifact": "`MODEL/VARIANT:REVISION` in the [registry](#registry); `:NAME` is what that alias names, `:latest` or nothing the newest, both taken once at the start",
    "models.M.variants.V.runtime": "what runs it: `onnxruntime` for ONNX, `torch` for safetensors",
    "models.M.variants.V.placement": "a process of its own, or inside each gateway process",
    "models.M.variants.V.replicas": "processes of an isolated variant; of a colocated one, batches that each gateway runs at once "
    "over the same weights",
    "models.M.variants.V.max_batch": "most rows of one batch",
    "models.M.variants.V.threads": "threads of one session",
    "models.M.variants.V.hang_timeout_s": "a batch that runs longer marks its worker as hung; an isolated one is replaced",
    "models.M.variants.V.transport": "`auto`: Unix socket on the same node, Serve handle between nodes; `handle`: always the handle",
    "models.M.routing.sticky_key": "`header:NAME` or `request_id`: who keeps a variant; without the header, the request id",
    "models.M.routing.weights": "percent of live traffic of each candidate, for a model never seen before",
    "models.M.routing.shadow": "percent of requests copied to each variant, likewise",
    "models.M.routing.reference_percent": "percent of candidates' answers that the teacher scores again, likewise",
    "models.M.routing.noise_percent": "if the baseline is the teacher: percent of its answers that it is asked for a second "
    "time while a candidate has traffic or copies, to see how often it disagrees with itself",
    "models.M.routing.override.header": "header (or gRPC metadata) by which a request names its variant",
    "models.M.routing.override.role": "least role that may use it, or [pin](#http) a candidate's version, in mode `tokens`",
    "models.M.routing.fallback.on": "which failures of a candidate the baseline answers for; a lost worker, a full queue and a kill always",
    "models.M.routing.fallback.budget_ms": "part of a request's time kept for the baseline, at most half of it",
    "models.M.routing.queue.max_rows": "rows that wait for one variant in one gateway (429)",
    "models.M.routing.queue.max_queue_delay_ms": "how long an idle worker may wait for a fuller batch",
    "models.M.routing.queue.max_wait_ms": "longest expected wait at which a request is still taken (429); half of the latency SLO's threshold if absent, or of the default deadline",
    "models.M.routing.queue.default_timeout_ms": "deadline of requests that name none (504)",
    "models.M.capacity.on_kill": "`shed`: after a kill, what the baseline cannot do is refused (503); `reserve`: no more is ever taken than it can do alone (429)",
    "models.M.slo[].name": "`latency`: share of answers under a threshold; `availability`: share of requests answered",
    "models.M.slo[].objective": "share of good events that is aimed at",
    "models.M.slo[].threshold_ms": "for `latency`, and required there; after a change, what was answered before stays judged by the threshold of its time",
    "models.M.slo[].window": "days of the error budget, at most 30",
    "models.M.guards.false_rollback": "chance that a sound candidate is ever rolled back by mistake, all its statistical guards together",
    "models.M.guards.false_promotion": "chance that a candidate over a guard's limit ever gets its `pass`: what a rollout's promotion risks",
    "models.M.guards.monitor_loss": "when the monitor is silent: everything to the baseline, or go on",
    "models.M.guards.monitor_loss_s": "how long it must be silent for that",
    "models.M.guards.invalid_output.limit": "invalid answers at which the model is killed",
    "models.M.guards.errors.ratio": "tolerated ratio of the candidate's error odds to the baseline's",
    "models.M.guards.latency.quantile": "tail of the baseline that both are compared at",
    "models.M.guards.latency.margin": "tolerated relative excess over it",
    "models.M.guards.latency.margin_ms": "tolerated absolute excess on top",
    "models.M.guards.agreement.margin": "tolerated excess over the disagreement measured when the variant was built",
    "models.M.guards.agreement.limit": "tolerated disagreement itself, in place of the above",
    "models.M.guards.agreement.gross_factor": "rolled back beyond this many times the limit",
    "models.M.guards.harm.budget": "tolerated share of labelled pairs that the teacher has right and the candidate wrong",
    "models.M.guards.calibration.margin": "tolerated difference, per bin of confidence, between how sure a variant is and what that was worth when it was built",
    "models.M.guards.saturation.every_s": "each worker of a static INT8 variant audits at most one row in so many seconds; 0: never",
    "models.M.guards.saturation.factor": "so many times the share of activations that left their ranges when the variant was built is tolerated",
    "models.M.guards.saturation.floor": "but no less than this share",
    "models.M.guards.ood.margin": "tolerated share of answers over the energy (of rows over the distance) that 1 % of the held-out rows exceeded, beside that 1 %",
    "models.M.guards.ood.every_s": "each worker measures [how far](#unfamiliar-inputs) at most one row in so many seconds is from the training rows; 0: never",
    "models.M.guards.interference.margin": "tolerated relative excess of the baseline's latency, while a candidate has traffic, over its p99 before",
    "models.M.guards.interference.margin_ms": "tolerated absolute excess on top",
    "models.M.guards.interference.spells": "tolerated share of the time in which over 5 % of its requests exceed that",
    "models.M.kpis.K.range": "lowest and highest value of the KPI named `K`; others are clipped",
    "models.M.kpis.K.direction": "which end of the range is the better one",
    "models.M.kpis.K.margin": "by how much, in the KPI's own unit, a candidate's mean may be worse than the baseline's",
    "models.M.guards.slices.factor": "a slice may disagree so many times as often as `agreement` allows in all",
    "models.M.slices.S.input": "a [slice](#slices) of the traffic by the length of this text input (row 0); else by `header`",
    "models.M.slices.S.min_chars": "at least so many characters",
    "models.M.slices.S.max_chars": "at most so many characters",
    "models.M.slices.S.header": "a slice by a request header (or gRPC metadata)",
    "models.M.slices.S.prefix": "the header's value begins with this; letters' case does not matter",
    "models.M.slices.S.equals": "the header's value is one of these; letters' case does not matter",
    "models.M.guards.dry_run": "guards that only observe: they say what they would do, act on nothing and hold up no rollout",
    "models.M.payloads.percent": "percent of live requests of which derived features are kept (row 0 of each); 0: none",
    "models.M.payloads.keep_hours": "how long they are kept",
    "models.M.payloads.keep_mib": "most disk space of them; the oldest go first",
    "models.M.drift.every_minutes": "how often each variant with new sampled rows gets a [drift report](#drift-reports); 0: on demand only",
    "models.M.drift.window_hours": "which of them a report is about: the latest so many hours",
    "models.M.drift.min_rows": "fewer are not reported on",
    "models.M.drift.least_distance": "no feature counts as drifted under this distance from the build's",
    "models.M.drift.false_alarm": "chance that a report on unchanged, independent rows calls any feature drifted",
    "models.M.drift.timeout_s": "a report that takes longer is ended",
    "models.M.drift.keep_reports": "reports kept of each variant",
    "models.M.golden.every_minutes": "how often every variant in use is asked its [golden rows](#golden-rows); 0: never",
    "models.M.golden.file": "golden rows for all variants, in place of those that came with each artifact",
    "models.M.golden.floor": "least share of right answers",
    "models.M.golden.flips_max": "most share of answers of another class than when the variant was built",
}  # fmt: skip

_PLACES = {
    "models": "models.M",
    "models.M.variants": "models.M.variants.V",
    "models.M.slo": "models.M.slo[]",
    "governance.trusted_keys": "governance.trusted_keys[]",
    "models.M.kpis": "models.M.kpis.K",
    "models.M.slices": "models.M.slices.S",
}


def settings(model: type[BaseModel] = Config, path: str = "") -> Iterator[tuple[str, str, str]]:
    """(path, type, default) of every value of the configuration file."""
    for name, field in model.model_fields.items():
        here = f"{path}.{name}" if path else name
        inner = [a for a in (field.annotation, *get_args(field.annotation)) if _is_section(a)]
        if inner:
            yield from settings(inner[0], _PLACES.get(here, here))
        else:
            yield here, _type(field.annotation, field.metadata), _default(field.get_default(call_default_factory=True))


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


#: The pattern of a number of days; what other patterns are for is said in words.
_DAYS = r"^[1-9][0-9]*d$"


def _type(annotation: Any, metadata: list[Any]) -> str:
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if get_origin(annotation) is tuple:
        return f"list of {_type(*_parts(arguments[0]))}"
    if get_origin(annotation) is dict:
        return f"variant: {_type(*_parts(arguments[1]))}"
    chosen = [argument for argument in arguments if argument is not type(None)]
    if arguments and len(chosen) == 1:
        return _type(*_parts(chosen[0]))
    bounds = [
        f"{sign} {getattr(rule, key)}"
        for rule in metadata
        for key, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        if hasattr(rule, key)
    ]
    if any(getattr(rule, "pattern", None) == _DAYS for rule in metadata):
        bounds.append("such as `30d`")
    word = {int: "integer", float: "number", str: "text"}[annotation]
    return ", ".join([word, *bounds])


def _parts(annotation: Any) -> tuple[Any, list[Any]]:
    if not hasattr(annotation, "__metadata__"):
        return annotation, []
    rules = [rule for one in annotation.__metadata__ for rule in getattr(one, "metadata", [one])]
    return annotation.__origin__, rules


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "–"
    if isinstance(value, tuple):
        return f"`[{', '.join(f'{item:g}' if isinstance(item, float) else item for item in value)}]`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value}`"


def config_table() -> str:
    rows = [f"| `{path}` | {kind} | {default} | {MEANINGS[path]} |" for path, kind, default in settings()]
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])


def _no_word() -> ControlWord:
    raise OSError("the documentation has no control word")


def metrics_table() -> str:
    config = MonitorConfig("docs", "no-spools", "no-state", "no-word", "http://127.0.0.1:1", {})
    watch = Watch(config, FakeClock())
    actuator = Actuator(FakeClock(), httpx.AsyncClient(), _no_word, lambda: None, "docs")
    rows = []
    for family in MonitorCollector(watch, actuator, {}).collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in family._labelnames) or "–"  # type: ignore[attr-defined]
        rows.append(f"| `{name}` | {family.type} | {labels} | {_cell(family.documentation)} |")
    return "\n".join(["| metric | kind | labels | meaning |", "|---|---|---|---|", *rows])


def _cell(text: str) -> str:
    """Text that stays in one column of a table."""
    return text.replace("|", "\\|")


def rollout_diagram() -> str:
    """The rollout's table as a Mermaid diagram; what can come in every state with a future stands for all at once."""
    futures = [moves for moves in TRANSITIONS.values() if Move.FAIL in moves]
    common = set.intersection(*({(move, target) for move, target in moves.items()} for moves in futures))
    arrows: dict[tuple[str, str], list[str]] = {}
    for state, moves in TRANSITIONS.items():
        for move, target in moves.items():
            if (move, target) in common and Move.FAIL in moves:
                continue
            for to in [target] if target is not BACK else _paused_from():
                arrows.setdefault((state, to), []).append(move)
    inside = [state for state, moves in TRANSITIONS.items() if Move.FAIL in moves]
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> pending", "    state under_way {"]
    lines += [_arrow(pair, moves, "        ") for pair, moves in arrows.items() if {*pair} <= {*inside}]
    lines.append("    }")
    for target in dict.fromkeys(target for _, target in sorted(common, key=lambda one: list(Move).index(one[0]))):
        lines.append(_arrow(("under_way", str(target)), [move for move in Move if (move, target) in common], "    "))
    lines += [_arrow(pair, moves, "    ") for pair, moves in arrows.items() if not {*pair} <= {*inside}]
    lines += [f"    {state} --> [*]" for state in ENDED if not TRANSITIONS[state]]
    return "\n".join([*lines, "```"])


def _paused_from() -> list[State]:
    """Where a pause leads back to: every state that the machine pauses by itself."""
    return [state for state, moves in TRANSITIONS.items() if moves.get(Move.HOLD) is State.PAUSED]


def _arrow(pair: tuple[str, str], moves: list[str], indent: str) -> str:
    return f"{indent}{pair[0]} --> {pair[1]}: {', '.join(moves)}"


def policies_table() -> str:
    rows = [
        f"| `{name}` | {_told(policy)} | {policy.monitor.duration if policy.promotes else '–'} |"
        for name, policy in NAMED.items()
    ]
    return "\n".join(["| policy | steps | watched after the promotion |", "|---|---|---|", *rows])


def _told(policy: Policy) -> str:
    words = []
    for step in policy.steps:
        if step.shadow is not None:
            words.append(f"shadow {step.shadow.percent:g} % ({_gate(step.shadow)})")
        elif step.set_weight is not None:
            words.append(f"{step.set_weight:g} %")
        elif step.bake is not None:
            words[-1] += f" ({_gate(step.bake)})"
        elif step.approve is not None:
            words.append(f"approval of `{step.approve.role}`")
    return " → ".join([*words, f"{100 - policy.holdback:g} %"] if policy.promotes else words)


def _gate(gate: Gate) -> str:
    until = "until every required guard passes" if gate.until == "pass" else "without a failure"
    if isinstance(gate, Shadow):
        until = "until `agreement` passes"
    return f"≥ {gate.min_duration}, ≥ {gate.min_requests} requests, {until}"


def governance_policies_table() -> str:
    """What the built-in policies of governance ask for: a rule a row, a policy a column."""
    policies = list(BUILT_IN.values())
    asked = list(dict.fromkeys((rule.evidence, rule.applies_to) for policy in policies for rule in policy.rules))
    rows = []
    for evidence, applies_to in asked:
        limits = [_limit(policy, evidence, applies_to) for policy in policies]
        of = "" if applies_to == "all" else f" (of {applies_to} artifacts)"
        rows.append(f"| `{evidence}`{of} | {' | '.join(limits)} |")
    approvals = [", ".join(_approvals(one) for one in policy.approvals) for policy in policies]
    rows.append(f"| approvals, each by another person | {' | '.join(approvals)} |")
    names = " | ".join(f"`{policy.name}`" for policy in policies)
    return "\n".join([f"| asked of an artifact | {names} |", f"|---|{'---|' * len(policies)}", *rows])


def _limit(policy: GovernancePolicy, evidence: str, applies_to: str) -> str:
    for rule in policy.rules:
        if (rule.evidence, rule.applies_to) == (evidence, applies_to):
            limits = [f"≥ {rule.at_least:g}"] if rule.at_least is not None else []
            limits += [f"≤ {rule.at_most:g}"] if rule.at_most is not None else []
            return ", ".join(limits) or "measured"
    return "–"


def _approvals(wanted: Approvals) -> str:
    return f"{wanted.count} by a `{wanted.role}`" if wanted.role else f"{wanted.count} in any role"


TABLES = {
    "configuration": config_table,
    "governance-policies": governance_policies_table,
    "metrics": metrics_table,
    "rollout-diagram": rollout_diagram,
    "rollout-policies": policies_table,
}


def between(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)


def main() -> None:
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        body = table()
        text = between(name).sub(lambda match, body=body: f"{match[1]}{body}\n{match[2]}", text)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
