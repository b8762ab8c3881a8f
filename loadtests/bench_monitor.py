"""What the monitor takes with everything on: `python -m loadtests.bench_monitor`.

One model with four candidates of which one has a tenth of the traffic, all of that scored by the teacher, calibration
and harm by labels for one request in ten, a business KPI for one in twenty, three declared slices, every guard, input
sampling counted, snapshots of the state as often as the monitor commits them. Times are of the process's own
processor time, on one core. Every record carries times as if requests came at `--rate`, so that what is bounded by age
is. Prints JSON; exits 1 if one core does not take the rate with a fifth to spare, or if memory grows once what is kept
is full.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from loadtests.rss import resident
from monitoring.config import DriftSettings, MonitorConfig, MonitorModel, MonitorVariant, ReliabilityMap, SloTarget
from monitoring.detectors.kpi import KpiTarget
from monitoring.watch import Watch
from serving.clock import FakeClock
from serving.contract import (
    C_LIVE_OK,
    C_PAYLOADS,
    Cause,
    Flag,
    Kind,
    Reason,
    RouteTable,
    Snapshot,
    VariantEntry,
    kpi_key,
)
from serving.gateway.spool import SpoolWriter, latency_buckets_ms
from serving.packing import pack_divergence

#: Of the traffic that the live candidate gets; of requests with a label, with a KPI, whose features are sampled.
CANARY, LABELLED, RETURNED, SAMPLED = 0.1, 0.1, 0.05, 0.2
USERS = 20_000
BOUNDS = latency_buckets_ms([100.0])
CANDIDATES = ("int8", "distilled", "distilled-int8", "pruned")
#: A round: so many requests are written, then read. Fewer than the spool holds.
ROUND = 20_000
#: What the monitor may grow by from the middle to the end of a run, as a share of what it has.
GROWTH_MAX = 0.02


class Traffic:
    """Writes what a gateway would, at the times at which it would have."""

    def __init__(self, spool: SpoolWriter, clock: FakeClock, rate: float) -> None:
        self._spool, self._clock = spool, clock
        self._gap_ns = int(1e9 / rate)
        self._series = {name: spool.series_id("m", name) for name in ("teacher", *CANDIDATES)}
        self._random = random.Random(1)
        self._keys = 0
        self.requests = 0

    def write(self, requests: int) -> None:
        for _ in range(requests):
            self._clock.advance(self._gap_ns / 1e9)
            self._request()
        self._spool.beat()

    def _request(self) -> None:
        spool, draw = self._spool, self._random
        wall, mono = self._clock.wall_ns(), self._clock.monotonic_ns()
        self.requests += 1
        key = self._random.getrandbits(64)
        canary = draw.random() < CANARY
        series = self._series["int8" if canary else "teacher"]
        total_us = int(draw.lognormvariate(8.0, 0.4))
        failed = draw.random() < 0.0005
        unit = draw.randrange(USERS) << 40 | 1
        slices = draw.randrange(8)
        prob = 0.5 + draw.random() / 2
        spool.add(series, C_LIVE_OK)
        spool.observe_latency(series, BOUNDS, total_us * 1000)
        if draw.random() < SAMPLED:
            spool.add(series, C_PAYLOADS)
        shared: dict[str, Any] = {"mono_ns": mono, "wall_ns": wall, "request_key": key, "series": series, "epoch": 1}
        spool.record(
            kind=Kind.REQUEST, flags=Flag.LIVE | Flag.BASELINE_VALID, reason=Reason.CANARY if canary else 0,
            cause=Cause.ERROR if failed else Cause.NONE, unit_key=unit, batch_key=key, answered=series,
            status=500 if failed else 200, rows=1, total_us=total_us, cls=1, prob=prob, slices=slices, **shared,
        )  # fmt: skip
        if canary:
            spool.record(
                kind=Kind.REFERENCE, flags=Flag.LIVE | Flag.BASELINE_VALID, answered=self._series["teacher"],
                status=200, rows=1, cls=1, ref_cls=1, flips=draw.random() < 0.01, prob=prob,
                ref_prob=min(1.0, prob + 0.01), slices=slices, extra=pack_divergence(0.001, 0.002), **shared,
            )  # fmt: skip
        if draw.random() < LABELLED:
            spool.record(kind=Kind.LABEL, answered=series, status=202, rows=1, cls=draw.random() < 0.9, **shared)
        if draw.random() < RETURNED:
            spool.record(
                kind=Kind.KPI, answered=series, status=202, rows=1, prob=draw.random(), extra=kpi_key("sale"), **shared
            )


def watch_of(folder: str, clock: FakeClock) -> Watch:
    """A monitor with every guard on."""
    edges = tuple(0.5 + at / 20 for at in range(1, 10))
    middles = tuple(0.525 + at / 20 for at in range(10))
    reliability = ReliabilityMap(edges, (400,) * 10, middles, middles, middles, (0.05,) * 10)
    known = {
        name: MonitorVariant(at, 0.01, reliability if at > 1 else None)
        for at, name in enumerate(("teacher", *CANDIDATES), 1)
    }
    model = MonitorModel(
        "teacher",
        "teacher",
        known,
        slo=[SloTarget("latency", 0.99, 100.0), SloTarget("availability", 0.999)],
        labels=["a", "b"],
        slices=("one", "two", "three"),
        kpis=[KpiTarget("sale")],
        drift=DriftSettings(sampled=True),
    )
    watch = Watch(MonitorConfig("bench", folder, folder, f"{folder}/word", "http://127.0.0.1:1", {"m": model}), clock)
    entries = {name: VariantEntry(name, item.version, f"m/{name}:1") for name, item in known.items()}
    share = ((0, round(CANARY * 10_000)),)
    table = RouteTable("m", 1, "s", "teacher", "teacher", entries, {"int8": share}, {"int8": 1}, reference_bp=10_000)
    watch.apply(Snapshot(1, 1, {"m": table}))
    watch.tick()
    return watch


def bench(requests: int, rate: float) -> dict[str, Any]:
    """Records and requests that one core takes, and resident memory over the run, MiB."""
    with tempfile.TemporaryDirectory() as folder:
        clock = FakeClock()
        spool = SpoolWriter.create(Path(folder), "bench", clock)
        spool.set_model("m", BOUNDS, ["a", "b"])
        traffic = Traffic(spool, clock, rate)
        watch = watch_of(folder, clock)
        read, reading, committing, memory = 0, 0.0, 0.0, []
        commit_every = max(1, round(rate * watch.config.commit_s / ROUND))
        rounds = max(4, requests // ROUND)
        for number in range(rounds):
            traffic.write(ROUND)
            start = time.process_time()
            while count := watch.step()[0]:
                read += count
            watch.tick()
            watch.verdicts()
            reading += time.process_time() - start
            if number % commit_every == 0:
                start = time.process_time()
                watch.state({})
                committing += time.process_time() - start
            memory.append(resident().own)
        spent = reading + committing
        guards = sorted(watch.models["m"].guards.candidates["int8"].guards)
        return {
            "requests": traffic.requests,
            "records": read,
            "lost": watch.flow().dropped,
            "guards": guards,
            "records_per_cpu_second": round(read / spent),
            "requests_per_cpu_second": round(traffic.requests / spent),
            "share_of_a_core_at_rate": round(rate * spent / traffic.requests, 3),
            "commits_share": round(committing / spent, 3),
            "memory_mib": [round(memory[at * (rounds - 1) // 4], 1) for at in range(5)],
            "grown_by_in_second_half": round(memory[-1] / memory[rounds // 2] - 1, 4),
        }


def main() -> int:
    """Run and print; the exit status says whether it keeps up and stays bounded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000, help="of the whole run")
    parser.add_argument("--rate", type=float, default=10_000.0, help="requests a second that it is to take")
    options = parser.parse_args()
    result = bench(options.requests, options.rate)
    print(json.dumps(result))
    kept_up = result["requests_per_cpu_second"] >= options.rate / 0.8 and not result["lost"]
    return 0 if kept_up and result["grown_by_in_second_half"] <= GROWTH_MAX else 1


if __name__ == "__main__":
    sys.exit(main())
