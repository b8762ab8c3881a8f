"""What monitoring costs the request path, and how fast the monitor reads: `python -m loadtests.bench_spool`.

Writes records one by one, timing each (budget: 5 us at the 99th percentile), then reads them as the
monitor does, guards and charts included, on one core. Prints JSON; exits 1 if the budget is exceeded.
Percentiles are those of the least disturbed of several rounds: other processes on the machine are
not what is measured. `record_us` passes its fields by keyword, as the gateway does; a call with 30
keywords costs as much again as the record itself, so `positional_us` is shown beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from monitoring.config import MonitorConfig, MonitorModel, MonitorVariant
from monitoring.watch import Watch
from serving.clock import SystemClock
from serving.contract import C_LIVE_OK, Cause, Flag, Kind, Reason, RouteTable, Snapshot, VariantEntry
from serving.gateway.spool import SpoolWriter, latency_buckets_ms

BUDGET_US = 5.0
ROUNDS = 15


def write(spool: SpoolWriter, records: int, times: np.ndarray | None = None) -> None:
    """Requests as a gateway records them, five percent to a candidate.

    `times`, shape (records, 3), receives nanoseconds: counters, record by keyword, record by position.
    With it every request is recorded twice.
    """
    ids = [spool.series_id("m", "teacher"), spool.series_id("m", "int8")]
    bounds, tick, wall, mono = latency_buckets_ms([100.0]), time.perf_counter_ns, time.time_ns(), time.monotonic_ns()
    flags = Flag.LIVE | Flag.BASELINE_VALID
    for n in range(records):
        series, total_us = ids[n % 20 == 0], 2000 + n % 100
        started = tick()
        spool.add(series, C_LIVE_OK)
        spool.observe_latency(series, bounds, total_us * 1000)
        counted = tick()
        spool.record(
            kind=Kind.REQUEST, flags=flags, reason=Reason.CANARY, cause=Cause.NONE, mono_ns=mono, wall_ns=wall,
            request_key=n, unit_key=n, batch_key=n, trace_hi=n, trace_lo=n, series=series, answered=series, status=200,
            rows=1, epoch=1, total_us=total_us, preprocess_us=20, queue_us=10, infer_us=1500, candidate_us=0, cls=1,
            ref_cls=-1, flips=0, prob=0.9, ref_prob=0.0, margin=0.8, energy=-2.0, inclusion=1.0,
        )  # fmt: skip
        recorded = tick()
        if times is not None:
            spool.record(
                Kind.REQUEST, flags, Reason.CANARY, Cause.NONE, mono, wall, n, n, n, n, n, series, series, 200, 1, 1,
                total_us, 20, 10, 1500, 0, 1, -1, 0, 0.9, 0.0, 0.8, -2.0, 1.0,
            )  # fmt: skip
            times[n] = counted - started, recorded - counted, tick() - recorded


def bench(records: int) -> dict[str, Any]:
    """Microseconds a record and a counter update, and records read a second."""
    with tempfile.TemporaryDirectory() as folder:
        clock = SystemClock()
        spool = SpoolWriter.create(Path(folder), "bench", clock)
        spool.set_model("m", latency_buckets_ms([100.0]), ["a", "b"])
        rounds = np.empty((ROUNDS, records, 3))
        for times in rounds:
            write(spool, records, times)
        overhead = _timer_overhead_us()
        percentiles = np.maximum(np.percentile(rounds, [50, 99], axis=1).min(axis=1) / 1000 - overhead, 0)
        shown = [{"p50": round(half, 2), "p99": round(most, 2)} for half, most in percentiles.T.tolist()]
        variants = {"teacher": MonitorVariant(1), "int8": MonitorVariant(2)}
        config = MonitorConfig(
            "bench",
            folder,
            folder,
            f"{folder}/word",
            "http://127.0.0.1:1",
            {"m": MonitorModel("teacher", "teacher", variants)},
        )
        entries = {name: VariantEntry(name, item.version, f"m/{name}:1") for name, item in variants.items()}
        table = RouteTable("m", 1, "s", "teacher", "teacher", entries, {"int8": ((0, 500),)}, {"int8": 1})
        watch = Watch(config, clock)
        watch.apply(Snapshot(1, 1, {"m": table}))
        watch.tick()
        while watch.step()[0]:
            pass
        read, spent = 0, 0.0
        for _ in range(5):
            write(spool, 60_000)
            start = time.process_time()
            while count := watch.step()[0]:
                read += count
            spent += time.process_time() - start
        return {
            "counters_us": shown[0],
            "record_us": shown[1],
            "positional_us": shown[2],
            "budget_us": BUDGET_US,
            "read_records_per_cpu_second": round(read / spent),
        }


def _timer_overhead_us() -> float:
    ticks = np.array([time.perf_counter_ns() for _ in range(10_000)])
    return float(np.median(np.diff(ticks))) / 1000


def main() -> int:
    """Run and print; the exit status says whether the budget holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=20_000, help="a round")
    result = bench(parser.parse_args().records)
    print(json.dumps(result))
    return 0 if result["record_us"]["p99"] <= BUDGET_US else 1


if __name__ == "__main__":
    sys.exit(main())
