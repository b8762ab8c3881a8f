"""All metrics of the monitor: name, unit, labels, buckets, help; those of `aggregate_metrics` among them.

Counters come from the spools' lossless aggregates, live and finished ones together, so that they
never fall when a gateway goes. Labels are `model`, `variant` and enumerated ones; the variant "*"
is the whole model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from prometheus_client.core import (
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from monitoring.actuate import SECONDS_BOUNDS, Actuator
from monitoring.aggregate_metrics import counters, distributions
from monitoring.beside import Beside
from monitoring.families import MV, counter, cumulative, gauge, single, with_ends
from monitoring.verdicts import VERDICTS, Verdict
from monitoring.watch import Watch
from serving.contract import (
    ROLLOUT_STATES,
    Latch,
)
from serving.packing import TOP_KS

#: (key of `monitoring.depth.SCALES`, help, names of the mean and of the ends of its confidence sequence).
AGREEMENT = (
    ("agreement", "Share of answers on which the top class is the teacher's",
     ("canarium_agreement_ratio", "canarium_agreement_ratio_lower", "canarium_agreement_ratio_upper")),
    ("js", "Mean Jensen-Shannon divergence from the teacher's answer, nats",
     ("canarium_js_divergence", "canarium_js_divergence_lower", "canarium_js_divergence_upper")),
    ("kl", "Mean KL(teacher || candidate) of one answer, nats, at most 10 each",
     ("canarium_kl_divergence", "canarium_kl_divergence_lower", "canarium_kl_divergence_upper")),
)  # fmt: skip


def package_version() -> str:
    """The installed version, or 0 from a bare checkout."""
    try:
        return version("canarium")
    except PackageNotFoundError:
        return "0"


class MonitorCollector(Collector):
    """Reads everything anew at each scrape.

    Args:
        loop_errors: failures of each of the monitor's loops, by name.
    """

    def __init__(self, watch: Watch, actuator: Actuator, loop_errors: dict[str, int]) -> None:
        self._watch = watch
        self._actuator = actuator
        self._loop_errors = loop_errors

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        totals = {key: item for key, item in self._watch.totals().items() if key[0] in self._watch.models}
        yield from counters(totals)
        yield from distributions(totals)
        yield from self._agreement()
        yield from self._saturation()
        yield from _ood(verdicts := self._watch.verdicts())
        yield from self._calibration()
        yield from self._labels()
        yield from _guards(verdicts)
        yield from self._objectives()
        yield from _drift(self._watch.beside)
        yield from _golden(self._watch.beside)
        yield from self._routing()
        yield from self._actuation()
        yield from self._self()

    def _agreement(self) -> Iterator[Metric]:
        yield from self._top_k()
        yield from self._noise()
        for key, text, names in AGREEMENT:
            families = with_ends(names, f"{text}, since the candidate got its traffic.", MV)
            for name, model in self._watch.models.items():
                for candidate in model.guards.candidates.values():
                    for family, number in zip(families, candidate.depth.found(key) or (), strict=False):
                        family.add_metric((name, candidate.name), number)
            yield from families

    def _top_k(self) -> Iterator[Metric]:
        families = with_ends(
            ("canarium_top_k_agreement_ratio", "canarium_top_k_agreement_ratio_lower",
             "canarium_top_k_agreement_ratio_upper"),
            "Share of the k likeliest classes that are the teacher's k likeliest, since the candidate got its traffic.",
            (*MV, "k"),
        )  # fmt: skip
        for name, model in self._watch.models.items():
            for candidate in model.guards.candidates.values():
                for k in TOP_KS:
                    found = candidate.depth.found(f"top_{k}")
                    for family, number in zip(families, found or (), strict=False):
                        family.add_metric((name, candidate.name, str(k)), number)
        yield from families

    def _noise(self) -> Iterator[Metric]:
        families = with_ends(
            ("canarium_teacher_noise_ratio", "canarium_teacher_noise_ratio_lower",
             "canarium_teacher_noise_ratio_upper"),
            "Share of its answers on which the teacher, asked once more, names another class.",
            ("model",),
        )  # fmt: skip
        for name, model in self._watch.models.items():
            noise = model.guards.noise
            if noise.count:
                for family, number in zip(families, (noise.mean, *noise.interval()), strict=True):
                    family.add_metric((name,), number)
        yield from families

    def _saturation(self) -> Iterator[Metric]:
        family = gauge(
            "canarium_activation_saturation_ratio",
            "Share of an INT8 variant's activations outside their ranges, mean of about the latest 100 audited rows.",
            MV,
        )
        noise = gauge(
            "canarium_activation_sqnr_decibels",
            "Signal-to-quantization-noise ratio of an INT8 variant's activations, mean of about the latest 100 audits.",
            MV,
        )
        for name, model in self._watch.models.items():
            for each, means in ((family, model.saturation.means), (noise, model.noise.means)):
                for variant, mean in means.items():
                    each.add_metric((name, variant), mean)
        yield from (family, noise)

    def _calibration(self) -> Iterator[Metric]:
        labels = (*MV, "reference")
        error = gauge(
            "canarium_calibration_error",
            "Expected calibration error without what chance alone would show; by labels or by the teacher.",
            labels,
        )
        lower = gauge("canarium_calibration_error_lower", "Lower end of its 95 % interval.", labels)
        upper = gauge("canarium_calibration_error_upper", "Upper end of its 95 % interval.", labels)
        brier = gauge(
            "canarium_brier_score",
            "Mean squared difference of the named class's probability and 1 if it is right.",
            MV,
        )
        for name, model in self._watch.models.items():
            for report in model.reliability.reports():
                of = (name, report.variant, report.reference)
                values = (report.ece_debiased, report.ece_low, report.ece_high)
                for family, value in zip((error, lower, upper), values, strict=True):
                    family.add_metric(of, value)
                if report.brier is not None:
                    brier.add_metric((name, report.variant), report.brier.score)
        yield from (error, lower, upper, brier)

    def _labels(self) -> Iterator[Metric]:
        joined = counter("canarium_labels_joined", "Labels joined to an answered request.", MV)
        lost = counter("canarium_labels_unjoined", "Labels that were not used, by why.", ("model", "reason"))
        evicted = counter(
            "canarium_join_evictions", "Requests forgotten before their time for want of room.", ("model",)
        )
        for name, model in self._watch.models.items():
            counts = model.joiner.counts
            for variant, number in counts.joined.items():
                joined.add_metric((name, variant), number)
            lost.add_metric((name, "unknown"), counts.unknown)
            lost.add_metric((name, "duplicate"), counts.duplicate)
            evicted.add_metric((name,), counts.evicted)
        yield from (joined, lost, evicted)
        found = counter("canarium_kpis_joined", "Business KPIs joined to a request.", ("model",))
        missed = counter(
            "canarium_kpis_unjoined", "Business KPIs whose request was not remembered, or not seen in time.", ("model",)
        )
        for name, model in self._watch.models.items():
            if model.returns is not None:
                found.add_metric((name,), model.returns.joined)
                missed.add_metric((name,), model.returns.unjoined)
        yield from (found, missed)

    def _objectives(self) -> Iterator[Metric]:
        objective = gauge("canarium_slo_objective_ratio", "Share of good events that is aimed at.", (*MV, "slo"))
        burn = gauge(
            "canarium_slo_burn_rate",
            "Share of bad events over the allowed share, over a window.",
            (*MV, "slo", "window"),
        )
        budget = gauge(
            "canarium_slo_error_budget_remaining_ratio",
            "Share of the error budget that is left; negative when overdrawn.",
            (*MV, "slo"),
        )
        for name, model in self._watch.models.items():
            for status in model.objectives.status():
                labels = (name, status.variant, status.name)
                objective.add_metric(labels, status.objective)
                budget.add_metric(labels, status.budget_remaining)
                for window, rate in status.burn_rates.items():
                    burn.add_metric((*labels, window), rate)
        yield from (objective, burn, budget)

    def _routing(self) -> Iterator[Metric]:
        weight = gauge(
            "canarium_traffic_weight", "Share of live traffic that a variant is configured to get, 0 to 1.", MV
        )
        killed = gauge(
            "canarium_killswitch_state", '1 while the kill-switch of a model ("*": of all) is in force.', ("model",)
        )
        rollout = gauge(
            "canarium_rollout_state",
            "1 for the state of the latest rollout of a variant, 0 for the others.",
            (*MV, "state"),
        )
        headroom = gauge(
            "canarium_rollback_headroom_ratio",
            "Rows a second that the baseline can do, as measured, over those asked of the model in the last minute.",
            ("model",),
        )
        for name, room in self._watch.headroom().items():
            if room is not None:
                headroom.add_metric((name,), room)
        snapshot = self._watch.snapshot
        for slot, present in (snapshot.rollouts if snapshot is not None else {}).items():
            for state in ROLLOUT_STATES:
                rollout.add_metric((*slot.split("/", 1), state), float(state == present))
        for name, model in self._watch.models.items():
            for variant, share in model.guards.shares.items():
                weight.add_metric((name, variant), share)
        for name in (*self._watch.models, "*"):
            latch = self._actuator.kill_latch(name)
            published = (snapshot.kills.get(name) if snapshot is not None else None) or Latch()
            on = latch is None or max(latch.seq, published.seq) > max(latch.cleared, published.cleared)
            killed.add_metric((name,), float(on))
        yield from (weight, killed, headroom, rollout)

    def _actuation(self) -> Iterator[Metric]:
        seconds = HistogramMetricFamily(
            "canarium_killswitch_actuation_seconds", "From the record that tripped a guard to the control word."
        )
        seconds.add_metric([], cumulative(SECONDS_BOUNDS, self._actuator.seconds_buckets), self._actuator.seconds_sum)
        yield seconds
        yield single(
            gauge("canarium_actuations_waiting", "Rollbacks and kills that the control plane has not acknowledged."),
            self._actuator.waiting,
        )
        yield single(
            counter("canarium_actuation_failures", "Attempts that the control plane did not acknowledge."),
            self._actuator.failures,
        )

    def _self(self) -> Iterator[Metric]:
        flow = self._watch.flow()
        yield single(counter("canarium_events_written", "Records written to the spools."), flow.written)
        yield single(counter("canarium_events_consumed", "Records read by the monitor."), flow.consumed)
        dropped = counter("canarium_events_dropped", "Records that were not read, by why.", ("reason",))
        dropped.add_metric(("overwritten",), flow.lost)
        dropped.add_metric(("corrupt",), flow.corrupt)
        yield dropped
        unused = counter(
            "canarium_events_unused", "Records that were read and not used by guards (late: charts).", ("reason",)
        )
        for reason, number in self._watch.unused().items():
            unused.add_metric((reason,), number)
        yield unused
        yield single(gauge("canarium_events_pending", "Records waiting to be read."), flow.pending)
        yield single(
            gauge("canarium_event_lag_seconds", "Age of the newest record read while others wait."), self._watch.lag_s
        )
        yield single(gauge("canarium_spool_files", "Spools being read."), len(self._watch.ingest.gateways))
        yield single(
            counter("canarium_spool_files_refused", "Files that were no readable spool."), self._watch.ingest.bad_files
        )
        yield single(
            counter("canarium_spool_header_errors", "Looks at spools whose header could not be believed."),
            self._watch.ingest.header_errors,
        )
        errors = counter(
            "canarium_monitor_loop_errors", "Failures of the monitor's loops, each of which goes on.", ("loop",)
        )
        for loop, number in sorted(self._loop_errors.items()):
            errors.add_metric((loop,), number)
        yield errors
        heartbeat = gauge(
            "canarium_monitor_heartbeat_timestamp_seconds",
            "When the monitor last wrote its heartbeat for the gateways, seconds since the epoch.",
        )
        yield single(heartbeat, self._actuator.last_beat_ns / 1e9)
        build = gauge("canarium_build_info", "1, with the version.", ("version",))
        build.add_metric((package_version(),), 1)
        yield build


def _guards(verdicts: dict[str, list[Verdict]]) -> Iterator[Metric]:
    evidence = gauge(
        "canarium_detector_log_evidence", "Natural logarithm of the evidence against a variant.", (*MV, "guard")
    )
    threshold = gauge("canarium_detector_log_threshold", "Log evidence at which the guard fails.", (*MV, "guard"))
    state = gauge(
        "canarium_guard_verdict", "1 for the verdict that holds, 0 for the others.", (*MV, "guard", "verdict")
    )
    for model, items in verdicts.items():
        for item in items:
            labels = (model, item.variant, item.guard)
            if "log_evidence" in item.statistic:
                known = (item.statistic["log_evidence"], item.statistic.get("log_breach_evidence", -math.inf))
                evidence.add_metric(labels, max(known))  # that of a breach is over the limit, not over the gross limit
                threshold.add_metric(labels, item.statistic["log_threshold"])
            for word in VERDICTS:
                state.add_metric((*labels, word), float(item.verdict == word))
    yield from (evidence, threshold, state)


#: What each guard goes by.
_SCORES = {"ood": "energy", "embedding": "distance"}


def _ood(verdicts: dict[str, list[Verdict]]) -> Iterator[Metric]:
    family = gauge(
        "canarium_ood_ratio",
        "Share of answers with an energy, or audited rows with a distance, that 1 % of held-out rows exceeded.",
        (*MV, "score"),
    )
    for model, items in verdicts.items():
        for item in items:
            score = _SCORES.get(item.guard)
            if score is not None and item.statistic["observations"]:
                ratio = item.statistic["events"] / item.statistic["observations"]
                family.add_metric((model, item.variant, score), ratio)
    yield family


def _drift(beside: Beside) -> Iterator[Metric]:
    score = gauge(
        "canarium_input_drift_score",
        "Distance of a feature from the build's, by the latest report.",
        (*MV, "feature"),
    )
    threshold = gauge(
        "canarium_input_drift_threshold", "Distance from which on that feature counts as drifted.", (*MV, "feature")
    )
    share = gauge("canarium_input_drift_share", "Share of the features that have drifted, by the latest report.", MV)
    at = gauge("canarium_report_timestamp_seconds", "Until when the latest drift report goes.", MV)
    for key, summary in beside.drift.items():
        at.add_metric(key, summary.until_ms / 1000)
        for column in summary.columns:
            score.add_metric((*key, column.name), column.score)
            threshold.add_metric((*key, column.name), column.threshold)
        if summary.share is not None:
            share.add_metric(key, summary.share)
    results = counter("canarium_reports", "Scheduled drift reports by what became of them.", ("result",))
    for result, number in beside.report_results.items():
        results.add_metric((result,), number)
    yield from (score, threshold, share, at, results)


def _golden(beside: Beside) -> Iterator[Metric]:
    accuracy = gauge(
        "canarium_golden_accuracy_ratio", "Share of the golden rows answered rightly, by the latest run.", MV
    )
    flips = gauge(
        "canarium_golden_flips_ratio", "Share of the golden rows of another class than when it was built.", MV
    )
    equal = gauge(
        "canarium_golden_equal_ratio", "Share of the golden rows answered as when it was built, to the bit.", MV
    )
    for key, result in beside.golden.items():
        if result.accuracy is not None:
            accuracy.add_metric(key, result.accuracy)
        if result.stored:
            flips.add_metric(key, result.flips / result.stored)
            equal.add_metric(key, result.equal / result.stored)
    requests = counter("canarium_golden_requests", "Golden rows asked, by whether they were answered.", (*MV, "result"))
    for labels, number in beside.golden_requests.items():
        requests.add_metric(labels, number)
    yield from (accuracy, flips, equal, requests)
