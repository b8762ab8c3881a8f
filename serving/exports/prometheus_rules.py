"""Prometheus rules from a deployment's SLOs, and the alerts that every deployment has. Pure.

Burn rates: multi-window, multi-burn-rate alerts as in the Site Reliability Workbook, chapter 5. A burn rate is the
error ratio over the error budget (1 - objective); a rate of 1 spends the budget in exactly the SLO's window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from monitoring import slo as slo_policy
from serving.config import Config, SloConfig


@dataclass(frozen=True)
class Burn:
    """Alert when the budget burns over `factor` times too fast in a `long` and a `short` window at once."""

    factor: float  # for a window of 30 days
    long: str
    short: str
    severity: str

    def factor_for(self, slo: SloConfig) -> float:
        """The burn rate over which it alerts for this objective and window."""
        return slo_policy.limit(self.factor, slo.objective, slo.window_days * slo_policy.DAY)

    def share_for(self, slo: SloConfig) -> float:
        """The share of the budget that is gone when the long window is over."""
        return self.factor_for(slo) * slo_policy.WINDOWS[self.long] / (slo.window_days * slo_policy.DAY)


_NAMES = {seconds: name for name, seconds in slo_policy.WINDOWS.items()}
#: The monitor's own policies, so that both page for the same thing.
BURNS = tuple(
    Burn(factor, _NAMES[long_s], _NAMES[short_s], severity) for factor, long_s, short_s, severity in slo_policy.POLICIES
)

#: (level, grouping labels): the users' view, and each variant's.
LEVELS = (("model", "model"), ("model_variant", "model, variant"))


@dataclass(frozen=True)
class Alert:
    """One alert. `expr` may use the metrics of the monitor only."""

    name: str
    expr: str
    wait: str
    severity: str
    summary: str
    description: str

    def rule(self) -> dict[str, Any]:
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.wait,
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.summary, "description": self.description},
        }


HEARTBEAT = "canarium_monitor_heartbeat_timestamp_seconds"
ALERTS = (
    Alert(
        "CanariumKillSwitchOn",
        "max by (model) (canarium_killswitch_state) > 0",
        "0s",
        "page",
        "{{ $labels.model }}: the kill-switch is on",
        'Every request of {{ if eq $labels.model "*" }}all models{{ else }}{{ $labels.model }}{{ end }} is answered by '
        "the baseline until a human re-arms it with a reason.",
    ),
    Alert(
        "CanariumGuardTripped",
        'max by (model, variant, guard) (canarium_guard_verdict{verdict="fail",guard!~".*_slo"}) == 1',
        "0s",
        "ticket",
        "{{ $labels.model }}/{{ $labels.variant }}: guard {{ $labels.guard }} tripped",
        # Some only tell and never act: input_drift, ood, embedding, those of the baseline, any in dry_run.
        "Guard {{ $labels.guard }} of {{ $labels.variant }} says fail; `canarium status` has its sentence. "
        "If it acts, `canarium audit` says what was done.",
    ),
    Alert(
        "CanariumActuationWaiting",
        "max by (instance) (canarium_actuations_waiting) > 0",
        "1m",
        "page",
        "a rollback or kill waits for the control plane",
        "The control word of the monitor's own node is written, so gateways there obey it. The control plane does not "
        "answer, so other nodes and the audit log do not know.",
    ),
    Alert(
        "CanariumMonitorSilent",
        # By the sample's own time: the same whatever the scrape interval.
        f"max by (instance) (timestamp({HEARTBEAT}) - {HEARTBEAT}) > 10",
        "0s",
        "page",
        "the monitor {{ $labels.instance }} is silent",
        "No heartbeat for {{ $value | humanizeDuration }}. Ramps freeze after 10 s; gateways apply "
        "guards.monitor_loss after monitor_loss_s.",
    ),
    Alert(
        "CanariumMonitorGone",
        # By the job, which a target keeps for as long as it is gone.
        f'absent({HEARTBEAT}) or up{{job=~".*canarium.*"}} == 0',
        "30s",
        "page",
        "a monitor cannot be scraped{{ with $labels.instance }} ({{ . }}){{ end }}",
        "The process, its port or the scrape configuration is broken. If the process is gone, gateways apply "
        "guards.monitor_loss after monitor_loss_s.",
    ),
    Alert(
        "CanariumEventLoss",
        # Of each monitor by itself, as it judges by itself whether it is degraded.
        "sum by (instance) (rate(canarium_events_dropped_total[5m]))"
        " / (sum by (instance) (rate(canarium_events_written_total[5m])) > 0) > 0.01",
        "2m",
        "ticket",
        "{{ $value | humanizePercentage }} of the request events are lost to the monitor {{ $labels.instance }}",
        "Statistical guards are degraded and ramps are frozen while more than 1 % is lost; SLOs are not affected.",
    ),
)


def slo_groups(config: Config) -> list[dict[str, Any]]:
    """Recording and alerting rules of every SLO of `config`."""
    groups = []
    for model, entry in sorted(config.models.items()):
        for slo in entry.slo:
            groups.append({"name": f"canarium-slo-{model}-{slo.name}", "rules": _slo_rules(model, slo)})
    return groups


def alert_groups() -> list[dict[str, Any]]:
    """The alerts that need no configuration."""
    return [{"name": "canarium", "rules": [alert.rule() for alert in ALERTS]}]


def error_ratio(model: str, slo: SloConfig, by: str, window: str) -> str:
    """PromQL: the share of bad requests. No traffic gives no sample, not a zero."""
    bad, total = bad_and_total(model, slo, by, f"rate(%s[{window}])")
    return f"{bad} / ({total} > 0)"


def bad_and_total(model: str, slo: SloConfig, by: str, of: str) -> tuple[str, str]:
    """Bad and all requests of an SLO; `of` turns a selector into a range function, such as rate(%s[5m])."""
    if slo.name == "latency":
        good, total = good_and_total(model, slo, by, of)
        return f"({total} - {good})", total
    if "variant" in by:  # who was to blame, also for what the baseline answered in its place
        selector = f'canarium_live_requests_total{{model="{model}"%s}}'
        return _sum(by, of, selector % ',result="error"'), _sum(by, of, selector % "")
    # What clients got. What they did wrong themselves (4xx but 429) says nothing about us.
    selector = f'canarium_requests_total{{model="{model}",code=~"%s"}}'
    return _sum(by, of, selector % "429|5.."), _sum(by, of, selector % "2..|429|5..")


def good_and_total(model: str, slo: SloConfig, by: str = "model", of: str = "%s") -> tuple[str, str]:
    """Answers under the threshold of a latency SLO, and all answers; see `bad_and_total`."""
    assert slo.threshold_ms is not None
    bound = repr(slo.threshold_ms / 1000)
    total = _sum(by, of, f'canarium_request_duration_seconds_count{{model="{model}"}}')
    return _sum(by, of, f'canarium_request_duration_seconds_bucket{{model="{model}",le="{bound}"}}'), total


def _sum(by: str, of: str, selector: str) -> str:
    return f"sum by ({by}) ({of % selector})"


def _slo_rules(model: str, slo: SloConfig) -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = [
        {
            "record": f"{level}:canarium_slo_errors:ratio_rate{window}",
            "expr": error_ratio(model, slo, by, window),
            "labels": {"slo": slo.name},
        }
        for level, by in LEVELS
        for window in slo_policy.WINDOWS
    ]
    for level, by in LEVELS:
        rules += [_burn_alert(model, slo, level, by, severity) for severity in ("page", "ticket")]
    return rules


def _burn_alert(model: str, slo: SloConfig, level: str, by: str, severity: str) -> dict[str, Any]:
    budget = 1 - slo.objective
    chosen = [burn for burn in BURNS if burn.severity == severity]
    terms = []
    for burn in chosen:
        limit = f"{burn.factor_for(slo) * budget:.6g}"
        series = f'{level}:canarium_slo_errors:ratio_rate%s{{model="{model}",slo="{slo.name}"}} > {limit}'
        _, total = bad_and_total(model, slo, by, f"increase(%s[{burn.long}])")
        enough = f"on ({by}) {total} >= {slo_policy.MIN_EVENTS}"  # few requests have no burn rate
        terms.append(f"({series % burn.long} and {series % burn.short} and {enough})")
    per_variant = level == "model_variant"
    who = "{{ $labels.model }}/{{ $labels.variant }}" if per_variant else "{{ $labels.model }}"
    what = f"{slo.objective:.6g} under {slo.threshold_ms:g} ms" if slo.threshold_ms else f"{slo.objective:.6g} answered"
    return {
        "alert": "CanariumVariantErrorBudgetBurn" if per_variant else "CanariumErrorBudgetBurn",
        "expr": "\nor\n".join(terms),
        # A variant's burn is the guards' to act on; nobody is woken for it unless users feel it.
        "labels": {"severity": "ticket" if per_variant else severity, "slo": slo.name, "speed": _speed(severity)},
        "annotations": {
            "summary": f"{who}: {slo.name} error budget is burning",
            "description": f"{{{{ $value | humanizePercentage }}}} of the requests are bad; the objective is {what} "
            f"over {slo.window}. {_speeds(chosen, slo)}",
        },
    }


def _speeds(burns: list[Burn], slo: SloConfig) -> str:
    return (
        f"This alert means {' or '.join(f'{burn.share_for(slo):.0%} of the budget in {burn.long}' for burn in burns)}."
    )


def _speed(severity: str) -> str:
    return {"page": "fast", "ticket": "slow"}[severity]


class _Dumper(yaml.SafeDumper):
    """Block style for expressions of several lines."""


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _represent_text)


def dump(document: Any) -> str:
    """YAML as committed: keys in the order given, one expression a line."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)
