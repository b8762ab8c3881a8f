"""Counters, gauges and distributions straight from the spools' lossless aggregates."""

from __future__ import annotations

import math
from collections.abc import Iterator

from prometheus_client.core import HistogramMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric

from monitoring.families import MV, counter, cumulative, gauge
from monitoring.ingest import Key, Totals
from serving.contract import (
    BATCH_SIZE_BOUNDS,
    C_AUDITS,
    C_BATCH_ROWS,
    C_BATCH_SIZE,
    C_BATCHES,
    C_DROPPED_CANCELLED,
    C_DURATION_NS,
    C_FALLBACK,
    C_INFER_NS,
    C_LIVE_ERROR,
    C_LIVE_OK,
    C_PAIR_FLIPS,
    C_PAIRS,
    C_PAYLOADS,
    C_PAYLOADS_DROPPED,
    C_PINNED,
    C_POSTPROCESS_NS,
    C_PREPROCESS_NS,
    C_QUEUE_NS,
    C_QUEUE_ROWS,
    C_REFERENCE_ERROR,
    C_REFERENCE_OK,
    C_REFERENCE_SHED,
    C_ROWS,
    C_SHADOW_ERROR,
    C_SHADOW_OK,
    C_SHADOW_SHED,
    C_SHADOW_TIMEOUT,
    C_SHED,
    C_STATUS,
    C_WORKERS,
    CAUSE_WORDS,
    STATUS_CODES,
    Cause,
)

CODES = {**{str(code): C_STATUS + at for at, code in enumerate(STATUS_CODES)}, "other": C_STATUS + len(STATUS_CODES)}
PINNED = {code: C_PINNED - C_STATUS + cell for code, cell in CODES.items()}
CAUSES = {CAUSE_WORDS[cause]: C_FALLBACK + cause for cause in Cause if cause is not Cause.NONE}
SHADOW = {"ok": C_SHADOW_OK, "error": C_SHADOW_ERROR, "shed": C_SHADOW_SHED, "timeout": C_SHADOW_TIMEOUT}
REFERENCE = {"ok": C_REFERENCE_OK, "error": C_REFERENCE_ERROR, "shed": C_REFERENCE_SHED}
STAGES = {
    "preprocess": C_PREPROCESS_NS,
    "queue": C_QUEUE_NS,
    "infer": C_INFER_NS,
    "postprocess": C_POSTPROCESS_NS,
}

#: (name, help, label, cell of each label value): counters straight from the aggregates.
LABELLED = (
    ("canarium_requests", "Requests by the variant they were routed to and by HTTP status, but pinned ones.", "code",
     CODES),
    ("canarium_pinned_requests", "Pinned and overridden requests, golden rows among them, by HTTP status.", "code",
     PINNED),
    ("canarium_fallbacks", "Requests that the baseline answered in a candidate's place.", "cause", CAUSES),
    ("canarium_shadow", "Shadow copies by what became of them.", "result", SHADOW),
    ("canarium_reference", "Teacher re-scorings by what became of them.", "result", REFERENCE),
    ("canarium_live_requests", "Live requests by whether the variant failed them.", "result",
     {"ok": C_LIVE_OK, "error": C_LIVE_ERROR}),
)  # fmt: skip
PLAIN = (
    ("canarium_rows", "Rows asked for.", C_ROWS),
    (
        "canarium_pairs",
        "Rows compared with the teacher's answer or, of shadow copies, the one returned.",
        C_PAIRS,
    ),
    ("canarium_pair_flips", "Rows among those on which the top class differs.", C_PAIR_FLIPS),
    ("canarium_shed_requests", "Requests refused because the queue was full or the wait too long.", C_SHED),
    ("canarium_sampled_rows", "Rows whose features were sampled for drift reports.", C_PAYLOADS),
    (
        "canarium_sampled_rows_dropped",
        "Rows of the sample that are not kept: the queue or the disk was full.",
        C_PAYLOADS_DROPPED,
    ),
    (
        "canarium_activation_audits",
        "Rows that workers have looked at from within.",
        C_AUDITS,
    ),
    ("canarium_cancelled_requests", "Queued requests dropped because their client went away.", C_DROPPED_CANCELLED),
)
GAUGE_CELLS = (
    ("canarium_queue_rows", "Rows waiting for a worker now.", C_QUEUE_ROWS),
    ("canarium_workers", "Workers that can take a batch.", C_WORKERS),
)


def counters(totals: dict[Key, Totals]) -> Iterator[Metric]:
    for name, text, label, cells in LABELLED:
        family = counter(name, text, (*MV, label))
        for key, item in totals.items():
            for value, cell in cells.items():
                family.add_metric((*key, value), int(item.cells[cell]))
        yield family
    for name, text, cell in PLAIN:
        family = counter(name, text, MV)
        for key, item in totals.items():
            family.add_metric(key, int(item.cells[cell]))
        yield family
    for name, text, cell in GAUGE_CELLS:
        level = gauge(name, text, MV)
        for key, item in totals.items():
            level.add_metric(key, int(item.cells[cell]))
        yield level


def distributions(totals: dict[Key, Totals]) -> Iterator[Metric]:
    duration = HistogramMetricFamily(
        "canarium_request_duration_seconds",
        "Duration of live requests; buckets include every SLO threshold.",
        labels=MV,
    )
    batch = HistogramMetricFamily("canarium_batch_rows", "Rows of the batches that workers were given.", labels=MV)
    stage = SummaryMetricFamily(
        "canarium_request_stage_duration_seconds",
        "Time that answered requests spent in each stage, but pinned ones.",
        labels=(*MV, "stage"),
    )
    for key, item in totals.items():
        cells = item.cells
        bounds = sorted(bound for bound in item.latency if math.isfinite(bound))
        counts = [item.latency[bound] for bound in bounds] + [item.latency.get(math.inf, 0)]
        buckets = cumulative([bound / 1000 for bound in bounds], counts)
        duration.add_metric(key, buckets, int(cells[C_DURATION_NS]) / 1e9)
        sizes = [int(cells[C_BATCH_SIZE + at]) for at in range(len(BATCH_SIZE_BOUNDS) + 1)]
        batch.add_metric(key, cumulative(BATCH_SIZE_BOUNDS, sizes), int(cells[C_BATCH_ROWS]))
        for name, cell in STAGES.items():
            stage.add_metric((*key, name), int(cells[C_STATUS + STATUS_CODES.index(200)]), int(cells[cell]) / 1e9)
    batches = counter("canarium_batches", "Batches that workers were given.", MV)
    for key, item in totals.items():
        batches.add_metric(key, int(item.cells[C_BATCHES]))
    yield from (duration, batch, stage, batches)
