"""What the gateway tells the monitor about each request: aggregates and one record."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
import xxhash

from serving import contract, packing
from serving.clock import Clock
from serving.contract import CAUSE_WORDS, Cause, Flag, Kind, Reason
from serving.gateway.spool import SpoolWriter
from serving.runtimes.answers import Summary
from serving.runtimes.audit import Audit

_STATUS_INDEX = {code: index for index, code in enumerate(contract.STATUS_CODES)}
_OTHER_STATUS = len(contract.STATUS_CODES)
#: These requests say who is to answer: what they get is counted apart, and no objective's matter.
_ASKED_BY_NAME = (Reason.PINNED, Reason.OVERRIDE)
UNKNOWN = Summary(-1, 0.0, 0.0, 0.0)


class Trace(msgspec.Struct):
    """Who asked, and how long each stage of one request took."""

    request_id: str
    arrived_ns: int
    unit: str = ""
    trace_hi: int = 0
    trace_lo: int = 0
    preprocess_ns: int = 0
    queue_ns: int = 0
    infer_ns: int = 0
    postprocess_ns: int = 0
    candidate_ns: int = 0
    batch_key: int = 0
    rows: int = 1
    slices: int = 0  # bits of the declared slices that it is in
    dispatched: bool = False


class Recorder:
    """Writes for one gateway process; called from its event loop only, never awaits."""

    def __init__(self, spool: SpoolWriter, clock: Clock, unit_secret: str) -> None:
        self._spool = spool
        self._clock = clock
        self._unit_secret = unit_secret
        self._series: dict[tuple[str, str], int] = {}
        self._bounds: dict[str, list[float]] = {}

    def model(self, name: str, latency_buckets_ms: list[float], labels: list[str]) -> None:
        """Declare a model before its first record."""
        self._bounds[name] = latency_buckets_ms
        self._spool.set_model(name, latency_buckets_ms, labels)

    def series(self, model: str, variant: str) -> int:
        series = self._series.get((model, variant))
        if series is None:
            series = self._series[model, variant] = self._spool.series_id(model, variant)
        return series

    def request(
        self,
        model: str,
        routed: str,
        answered: str,
        *,
        reason: Reason,
        cause: Cause,
        status: int,
        epoch: int,
        trace: Trace,
        summary: Summary = UNKNOWN,
        live: bool = True,
        judged: bool = True,
        baseline_valid: bool = False,
        killed: bool = False,
        diverted: bool = False,
        unopened: int = 0,
    ) -> None:
        """One request that was answered or refused.

        `judged`: whether it tells one variant from another; if not, it counts for the service level alone.
        `diverted`: a candidate's that it could not be given to, as it is not open here. `unopened`: see
        `packing.pack_unopened`.
        """
        spool, now = self._spool, self._clock.monotonic_ns()
        series = self.series(model, routed)
        total_ns = now - trace.arrived_ns
        pinned = reason in _ASKED_BY_NAME
        # A client that leaves while its variant works says something about that variant's latency.
        client_fault = 400 <= status < 500 and status != 429 and not (status == 499 and trace.dispatched)
        stages_ns = None
        if status == 200 and not pinned:
            stages_ns = (trace.preprocess_ns, trace.queue_ns, trace.infer_ns, trace.postprocess_ns)
        status_cell = (contract.C_PINNED if pinned else contract.C_STATUS) + _STATUS_INDEX.get(status, _OTHER_STATUS)
        spool.observe_request(series, status_cell, trace.rows, stages_ns)
        if reason is Reason.FALLBACK:
            spool.add(series, contract.C_FALLBACK + cause)
        if live and not client_fault:
            failed = (status >= 429 and status != 499) or cause not in (Cause.NONE, Cause.KILLED)
            spool.add(series, contract.C_LIVE_ERROR if failed else contract.C_LIVE_OK)
            if status == 200:
                spool.observe_latency(series, self._bounds[model], total_ns)
        flags = (
            (Flag.LIVE if live and judged else 0)
            | (Flag.BASELINE_VALID if baseline_valid else 0)
            | (Flag.CLIENT_FAULT if client_fault else 0)
            | (Flag.KILLED if killed else 0)
            | (Flag.UNOPENED if diverted else 0)
        )
        # By position, in the order of contract.RECORD_DTYPE: thirty keywords would cost more than the write itself.
        spool.record(
            Kind.REQUEST,
            flags,
            reason,
            cause,
            now,
            self._clock.wall_ns(),
            contract.request_key(model, trace.request_id),
            self._unit_key(trace.unit),
            trace.batch_key,
            trace.trace_hi,
            trace.trace_lo,
            series,
            self.series(model, answered),
            status,
            trace.rows,
            epoch,
            total_ns // 1000,
            trace.preprocess_ns // 1000,
            trace.queue_ns // 1000,
            trace.infer_ns // 1000,
            trace.candidate_ns // 1000,
            summary.cls,
            -1,
            0,
            summary.prob,
            0.0,
            summary.margin,
            summary.energy,
            1.0,
            trace.slices,
            unopened,
        )

    def refused(self, model: str, variant: str, status: int) -> None:
        """Count, without a record, a request that was refused before it was known who would answer it."""
        self._spool.observe_status(self.series(model, variant), status)

    def pair(
        self,
        kind: Kind,
        model: str,
        variant: str,
        reference: str,
        *,
        trace: Trace,
        epoch: int,
        summary: Summary,
        classes: np.ndarray,
        ref_classes: np.ndarray,
        ref_prob: float,
        apart: tuple[float, float] | None,
        common: Mapping[int, int],
        inclusion: float,
        infer_ns: int,
    ) -> None:
        """A variant's answer beside the reference's to the same input.

        `apart`: Jensen-Shannon and KL divergence of row 0, nats; None if this is no classification.
        `common`: see `packing.pack_overlap`, of row 0.
        """
        series = self.series(model, variant)
        flips = int(np.count_nonzero(classes != ref_classes))
        self._spool.add(series, contract.C_PAIRS, len(classes))
        self._spool.add(series, contract.C_PAIR_FLIPS, flips)
        now = self._clock.monotonic_ns()
        self._spool.record(
            kind=kind,
            flags=Flag.LIVE | Flag.BASELINE_VALID,
            mono_ns=now,
            wall_ns=self._clock.wall_ns(),
            request_key=contract.request_key(model, trace.request_id),
            unit_key=self._unit_key(trace.unit),
            trace_hi=trace.trace_hi,
            trace_lo=trace.trace_lo,
            series=series,
            answered=self.series(model, reference),
            status=200,
            rows=trace.rows,
            epoch=epoch,
            infer_us=infer_ns // 1000,
            cls=summary.cls,
            ref_cls=int(ref_classes[0]),
            flips=flips,
            prob=summary.prob,
            ref_prob=ref_prob,
            margin=summary.margin,
            energy=summary.energy,
            inclusion=inclusion,
            slices=trace.slices,
            extra=packing.pack_divergence(*apart) if apart is not None else 0,
            overlap=packing.pack_overlap(common),
        )

    def feedback(
        self,
        kind: Kind,
        model: str,
        variant: str,
        request_id: str,
        *,
        cls: int = -1,
        value: float = 0.0,
        name: str = "",
    ) -> None:
        """A label (`cls`) or a KPI (`name`, `value`) for an earlier request."""
        series = self.series(model, variant)
        now = self._clock.monotonic_ns()
        self._spool.record(
            kind=kind,
            mono_ns=now,
            wall_ns=self._clock.wall_ns(),
            request_key=contract.request_key(model, request_id),
            series=series,
            answered=series,
            status=202,
            rows=1,
            cls=cls,
            prob=value,
            extra=contract.kpi_key(name) if name else 0,
        )

    def audit(self, model: str, variant: str, audit: Audit) -> None:
        """One row audited inside a variant."""
        series = self.series(model, variant)
        self._spool.add(series, contract.C_AUDITS, 1)
        self._spool.record(
            kind=Kind.AUDIT,
            mono_ns=self._clock.monotonic_ns(),
            wall_ns=self._clock.wall_ns(),
            series=series,
            answered=series,
            status=200,
            rows=1,
            prob=audit.share,
            ref_prob=audit.worst,
            energy=audit.distance,
            extra=packing.pack_noise(audit.sqnr_db, audit.worst_sqnr_db),
        )

    def count(self, model: str, variant: str, cell: int, n: int = 1) -> None:
        """Add to one aggregate cell of a variant."""
        self._spool.add(self.series(model, variant), cell, n)

    def gauge(self, model: str, variant: str, cell: int, value: int) -> None:
        self._spool.set_gauge(self.series(model, variant), cell, value)

    def batch(self, model: str, variant: str, rows: int) -> None:
        self._spool.observe_batch(self.series(model, variant), rows)

    def beat(self) -> None:
        self._spool.beat()

    def close(self) -> None:
        self._spool.close()

    def _unit_key(self, unit: str) -> int:
        return xxhash.xxh3_64_intdigest(self._unit_secret + unit) if unit else 0


def reason_header(reason: Reason, cause: Cause, monitor_lost: bool = False) -> str:
    """The value of `x-canarium-reason`: a word, for a fallback with its cause; what a silent monitor did is no kill."""
    if monitor_lost and reason is Reason.KILLED:
        return "monitor_lost"
    word = contract.REASON_WORDS[reason]
    return f"{word}:{CAUSE_WORDS[cause]}" if reason is Reason.FALLBACK else word
