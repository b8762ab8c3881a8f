"""What the dashboard shows: its rows, their panels and the PromQL of each."""

from __future__ import annotations

from dataclasses import dataclass

M = 'model="$model"'
RATE = "[$__rate_interval]"


@dataclass(frozen=True)
class Query:
    """One PromQL expression and how its series are named."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel. `unit` is a Grafana unit; `kind` is timeseries or stat; widths add up to 24 in a row."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    description: str = ""
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False
    minimum: float | None = 0
    maximum: float | None = None
    #: Values of a stat and what they are called and coloured.
    states: tuple[tuple[int, str, str], ...] = ()
    #: A stat whose labels say it all.
    named: bool = False
    #: Series whose names match are drawn as dashed lines.
    dashed: str = ""


def by_variant(function: str) -> str:
    return f"sum by (variant) ({function})"


def with_interval(metric: str) -> tuple[Query, ...]:
    """A metric and the two ends of its interval, which are metrics of their own; of several monitors the widest."""
    ends = {"": "", "_lower": " lower", "_upper": " upper"}
    return tuple(
        Query(f"{'min' if end == '_lower' else 'max'} by (variant) ({metric}{end}{{{M}}})", f"{{{{variant}}}}{name}")
        for end, name in ends.items()
    )


def quantile(q: float) -> str:
    buckets = f"sum by (variant, le) (rate(canarium_request_duration_seconds_bucket{{{M}}}{RATE}))"
    return f"histogram_quantile({q}, {buckets})"


REQUESTS = f"rate(canarium_requests_total{{{M}}}{RATE})"
ON_OFF = ((0, "off", "green"), (1, "ON", "red"))

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Kill-switch",
        (
            Panel(
                "Kill-switch",
                (Query('max(canarium_killswitch_state{model=~"$model|[*]"})', ""),),
                kind="stat",
                width=4,
                states=ON_OFF,
                description="On: every request is answered by the baseline until a human re-arms it.",
            ),
            Panel(
                "Monitor heartbeat",
                (Query("time() - min(canarium_monitor_heartbeat_timestamp_seconds)", ""),),
                unit="s",
                kind="stat",
                width=4,
                description="Of the monitor that is silent longest. Ramps freeze after 10 s of silence.",
            ),
            Panel(
                "Actuation time, p99",
                (
                    Query(
                        "histogram_quantile(0.99, sum by (le) (canarium_killswitch_actuation_seconds_bucket))",
                        "",
                    ),
                ),
                unit="s",
                kind="stat",
                width=4,
                description="From the record that tripped a guard to the control word.",
            ),
            Panel(
                "Actuations waiting",
                (Query("sum(canarium_actuations_waiting)", ""),),
                kind="stat",
                width=4,
                description="Rollbacks and kills in the control word that the control plane has not acknowledged.",
            ),
            Panel(
                "Build",
                (Query("canarium_build_info", "{{version}}"),),
                kind="stat",
                named=True,
                width=8,
            ),
        ),
    ),
    (
        "Traffic",
        (
            Panel(
                "Traffic split, measured",
                (
                    Query(
                        f"{by_variant(REQUESTS)} / scalar(sum({REQUESTS}) > 0)",
                        "{{variant}}",
                    ),
                ),
                unit="percentunit",
                stacked=True,
                maximum=1,
            ),
            Panel(
                "Traffic weight, configured",
                (Query(f"max by (variant) (canarium_traffic_weight{{{M}}})", "{{variant}}"),),
                unit="percentunit",
                stacked=True,
                maximum=1,
            ),
            Panel("Requests per second", (Query(by_variant(REQUESTS), "{{variant}}"),), unit="reqps"),
        ),
    ),
    (
        "Latency",
        (
            Panel("p50 by variant", (Query(quantile(0.5), "{{variant}}"),), unit="s"),
            Panel("p99 by variant", (Query(quantile(0.99), "{{variant}}"),), unit="s"),
            Panel(
                "Mean time by stage",
                (
                    Query(
                        f"sum by (stage) (rate(canarium_request_stage_duration_seconds_sum{{{M}}}{RATE})) / "
                        f"sum by (stage) (rate(canarium_request_stage_duration_seconds_count{{{M}}}{RATE}))",
                        "{{stage}}",
                    ),
                ),
                unit="s",
                stacked=True,
            ),
        ),
    ),
    (
        "Load",
        (
            Panel(
                "Rows queued",
                (Query(f"sum by (variant) (canarium_queue_rows{{{M}}})", "{{variant}}"),),
                width=12,
            ),
            Panel(
                "Mean rows per batch",
                (
                    Query(
                        f"sum by (variant) (rate(canarium_batch_rows_sum{{{M}}}{RATE})) / "
                        f"sum by (variant) (rate(canarium_batch_rows_count{{{M}}}{RATE}))",
                        "{{variant}}",
                    ),
                ),
                width=12,
            ),
        ),
    ),
    (
        "Errors and fallbacks",
        (
            Panel(
                "Refused or failed requests by code",
                (
                    Query(
                        f'sum by (variant, code) (rate(canarium_requests_total{{{M},code!~"2.."}}{RATE}))',
                        "{{variant}} {{code}}",
                    ),
                ),
                unit="reqps",
            ),
            Panel(
                "Fallbacks by cause",
                (
                    Query(
                        f"sum by (variant, cause) (rate(canarium_fallbacks_total{{{M}}}{RATE}))",
                        "{{variant}} {{cause}}",
                    ),
                ),
                unit="reqps",
                description="Failures of a candidate that no client saw: the baseline answered.",
            ),
            Panel(
                "Shadow requests",
                (
                    Query(
                        f"sum by (variant, result) (rate(canarium_shadow_total{{{M}}}{RATE}))",
                        "{{variant}} {{result}}",
                    ),
                ),
                unit="reqps",
                description="Shed shadows are counted: dropping slow ones silently would flatter the candidate.",
            ),
        ),
    ),
    (
        "Agreement with the teacher",
        (
            Panel(
                "Agreement since traffic began, 95 % interval",
                with_interval("canarium_agreement_ratio"),
                unit="percentunit",
                width=16,
                maximum=1,
                dashed=".* (lower|upper)",
            ),
            Panel(
                "Reference answers",
                (
                    Query(
                        f"sum by (variant, result) (rate(canarium_reference_total{{{M}}}{RATE}))",
                        "{{variant}} {{result}}",
                    ),
                ),
                unit="reqps",
                description="Answers scored again by the teacher, off the request path.",
            ),
        ),
    ),
    (
        "What the agreement is worth",
        (
            Panel(
                "Jensen-Shannon divergence from the teacher, 95 % interval",
                with_interval("canarium_js_divergence"),
                dashed=".* (lower|upper)",
                description="Nats, at most 0.69; 0 is the same answer.",
            ),
            Panel(
                "Calibration error",
                (
                    Query(
                        f"max by (variant, reference) (canarium_calibration_error{{{M}}})", "{{variant}} {{reference}}"
                    ),
                ),
                unit="percentunit",
                description="By labels, or by the teacher; without what chance alone would show.",
            ),
            Panel(
                "Unfamiliar inputs",
                (Query(f"max by (variant, score) (canarium_ood_ratio{{{M}}})", "{{variant}} {{score}}"),),
                unit="percentunit",
                description="Share over what 1 % of held-out rows exceeded: energy of answers, distance of rows.",
            ),
        ),
    ),
    (
        "Inside INT8 variants",
        (
            Panel(
                "Activations outside their ranges",
                (Query(f"max by (variant) (canarium_activation_saturation_ratio{{{M}}})", "{{variant}}"),),
                unit="percentunit",
                width=12,
            ),
            Panel(
                "Signal to quantization noise",
                (Query(f"min by (variant) (canarium_activation_sqnr_decibels{{{M}}})", "{{variant}}"),),
                unit="dB",
                minimum=None,  # more noise than signal
                width=12,
            ),
        ),
    ),
    (
        "Rollouts",
        (
            Panel(
                "Rollout state",
                (
                    Query(
                        f"max by (variant, state) (canarium_rollout_state{{{M}}}) == 1",
                        "{{variant}}: {{state}}",
                    ),
                ),
                kind="stat",
                named=True,
                width=12,
                description="Of each variant's latest rollout.",
            ),
            Panel(
                "Rollback headroom",
                (Query(f"min(canarium_rollback_headroom_ratio{{{M}}})", ""),),
                kind="stat",
                width=12,
                description="Under 1 the baseline could not take all traffic back.",
            ),
        ),
    ),
    (
        "Guards",
        (
            Panel(
                "Evidence and threshold",
                (
                    Query(
                        f"max by (variant, guard) (canarium_detector_log_evidence{{{M}}})",
                        "{{variant}} {{guard}}",
                    ),
                    Query(
                        f"max by (variant, guard) (canarium_detector_log_threshold{{{M}}})",
                        "{{variant}} {{guard}} threshold",
                    ),
                ),
                width=12,
                dashed=".* threshold",
                minimum=None,  # evidence for the candidate is negative
                description="Natural logarithms. A guard trips when its evidence reaches its threshold.",
            ),
            Panel(
                "Verdicts",
                (
                    Query(
                        f"max by (variant, guard, verdict) (canarium_guard_verdict{{{M}}}) == 1",
                        "{{variant}} {{guard}}: {{verdict}}",
                    ),
                ),
                kind="stat",
                named=True,
                width=12,
                description="The verdict that each guard holds now.",
            ),
        ),
    ),
    (
        "Service level objectives",
        (
            Panel(
                "Burn rate",
                (
                    Query(
                        f"max by (variant, slo, window) (canarium_slo_burn_rate{{{M}}})",
                        "{{variant}} {{slo}} {{window}}",
                    ),
                ),
                width=12,
                description="1 spends the error budget in exactly the SLO's window; 14.4 over an hour pages.",
            ),
            Panel(
                "Error budget remaining",
                (
                    Query(
                        f"min by (variant, slo) (canarium_slo_error_budget_remaining_ratio{{{M}}})",
                        "{{variant}} {{slo}}",
                    ),
                ),
                unit="percentunit",
                width=12,
                minimum=None,  # overdrawn
                maximum=1,
            ),
        ),
    ),
    (
        "Events",
        (
            Panel(
                "Events per second",
                (
                    Query(f"sum(rate(canarium_events_written_total{RATE}))", "written"),
                    Query(f"sum(rate(canarium_events_consumed_total{RATE}))", "consumed"),
                    Query(f"sum(rate(canarium_events_dropped_total{RATE}))", "dropped"),
                ),
                unit="ops",
            ),
            Panel(
                "Events lost",
                (
                    Query(
                        f"sum by (instance) (rate(canarium_events_dropped_total{RATE})) / "
                        f"(sum by (instance) (rate(canarium_events_written_total{RATE})) > 0)",
                        "{{instance}}",
                    ),
                ),
                unit="percentunit",
                description="By monitor. Over 1 % its statistical guards are degraded and ramps freeze.",
            ),
            Panel("Event lag", (Query("max(canarium_event_lag_seconds)", "lag"),), unit="s"),
        ),
    ),
)
