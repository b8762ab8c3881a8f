"""What a request goes through, whatever protocol it came by.

validate → preprocess → route → batch → variant → check → (fall back) → postprocess; then, behind the
answer, the record for the monitor and the shadow and reference work. No client sees a candidate's
failure: the baseline answers in its place inside the same deadline.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from serving.clock import Clock
from serving.config import Config, ModelConfig
from serving.contract import Cause, Kind, Reason, RouteTable, Snapshot, VariantEntry
from serving.core.routing import route
from serving.errors import ErrorKind, RequestError, bad_request
from serving.gateway.live import LiveRouting, View
from serving.gateway.recorder import UNKNOWN, Recorder, Trace, reason_header
from serving.gateway.scoring import Answered, Scorer
from serving.gateway.variants import Fault, VariantPlane
from serving.protocol.types import InferRequest, InferResponse, shown, tensor
from serving.protocol.validate import select_outputs, validate
from serving.runtimes.pipeline import Summary

#: Rows up to which preprocessing runs on the event loop: a thread hop costs more.
INLINE_ROWS = 8
#: Pause before a variant that could not be opened is tried again, seconds.
RETRY_S = 1.0
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{16})([0-9a-f]{16})-[0-9a-f]{16}-[0-9a-f]{2}")

log = logging.getLogger(__name__)

PlaneFactory = Callable[[str, VariantEntry], VariantPlane]


class Caller(NamedTuple):
    """What the transport knows about a request besides its tensors."""

    arrived_ns: int
    request_id: str = ""
    sticky: str = ""
    override: str = ""
    timeout_ms: int | None = None
    traceparent: str = ""


class Reply(NamedTuple):
    """An answer and who gave it."""

    response: InferResponse
    binary_outputs: frozenset[str]
    headers: dict[str, str]


class _Target(NamedTuple):
    """Who is to answer one request, and on what terms."""

    variant: str
    reason: Reason
    live: bool
    shadows: tuple[str, ...] = ()
    reference: bool = False


class _Outcome(NamedTuple):
    plane: VariantPlane
    inputs: dict[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    reason: Reason
    cause: Cause


class DataPlane:
    """All models of one gateway process. Everything runs on its event loop."""

    def __init__(
        self, config: Config, routing: LiveRouting, recorder: Recorder, clock: Clock, plane_factory: PlaneFactory
    ) -> None:
        self._config = config
        self._routing = routing
        self._recorder = recorder
        self._clock = clock
        self._make_plane = plane_factory
        self._planes: dict[str, dict[str, VariantPlane]] = {name: {} for name in config.models}
        self._closing: set[asyncio.Task[None]] = set()
        self._following: asyncio.Task[None] | None = None
        self._scorer = Scorer(recorder, clock)

    # ------------------------------------------------------------ what is served

    async def apply(self, snapshot: Snapshot) -> None:
        """Take over a snapshot: obey its kills, open the baselines, swap the tables, then follow with the rest.

        Raises:
            RegistryError: a baseline cannot be opened; the tables in force stay.
        """
        self._routing.accept_latches(snapshot)
        self.enforce()
        for model, table in snapshot.tables.items():
            await self._open(model, table.variants[table.baseline])
        if self._routing.accept(snapshot):
            self.enforce()
            if self._following is None or self._following.done():
                self._following = asyncio.get_running_loop().create_task(self._follow())

    async def settled(self) -> None:
        """Wait until every variant of the tables in force is open."""
        if self._following is not None:
            await self._following

    async def _follow(self) -> None:
        """Open what the tables name and let go of what they do not; a variant that cannot be opened is tried again."""
        while True:
            snapshot, failed = self._routing.snapshot, False
            for model, table in (snapshot.tables if snapshot else {}).items():
                for name, entry in table.variants.items():
                    try:
                        await self._open(model, entry)
                    except Exception:
                        failed = True
                        log.exception("cannot open %s of %s, trying again", name, model)
                for name in [name for name in self._planes[model] if name not in table.variants]:
                    self._let_go(self._planes[model].pop(name))
            if failed:
                await asyncio.sleep(RETRY_S)
            elif snapshot is self._routing.snapshot:
                return

    async def _open(self, model: str, entry: VariantEntry) -> None:
        planes = self._planes.setdefault(model, {})
        known = planes.get(entry.name)
        if known is not None and known.entry == entry:
            return
        plane = await asyncio.to_thread(self._make_plane, model, entry)
        await plane.start()
        planes[entry.name] = plane
        if known is not None:
            self._let_go(known)

    def enforce(self) -> None:
        """Drop what is queued at variants that may not answer any more; run after each change and on a tick."""
        self._routing.tick()
        for model, planes in self._planes.items():
            view = self._routing.view(model)
            for name, plane in planes.items():
                plane.publish_gauges()
                if view is not None and view.killed and name != view.table.baseline:
                    plane.drop_queued()
        self._recorder.beat()

    @property
    def ready(self) -> bool:
        """Whether every model's baseline can answer."""
        return all(self.model_ready(model) for model in self._config.models)

    def model_ready(self, model: str, version: str = "") -> bool:
        """Whether a model (its baseline) or one of its versions can answer. Raises `RequestError` if unknown."""
        view = self._view(model)
        name = self._by_version(view.table, version) if version else view.table.baseline
        plane = self._planes[model].get(name)
        return plane is not None and plane.ready

    def models(self) -> dict[str, list[VariantPlane]]:
        """Variants of each model, baseline first."""
        listed: dict[str, list[VariantPlane]] = {}
        for model, planes in self._planes.items():
            view = self._routing.view(model)
            baseline = view.table.baseline if view else ""
            listed[model] = sorted(
                planes.values(), key=lambda plane: (plane.entry.name != baseline, plane.entry.version)
            )
        return listed

    def opening(self) -> list[tuple[str, VariantEntry]]:
        """Variants of the tables in force that are not open yet."""
        snapshot = self._routing.snapshot
        return [
            (model, entry)
            for model, table in (snapshot.tables if snapshot else {}).items()
            for name, entry in table.variants.items()
            if name not in self._planes[model]
        ]

    def select(self, model: str, version: str = "") -> list[VariantPlane]:
        """The variants that a metadata or statistics request means: all of a model, or one version."""
        view = self._view(model)
        if version:
            plane = self._planes[model].get(self._by_version(view.table, version))
            return [plane] if plane is not None else []
        return self.models()[model]

    # ------------------------------------------------------------ inference

    async def infer(self, model: str, version: str, request: InferRequest, caller: Caller) -> Reply:
        """Answer one request. Raises `RequestError` with the kind that the client is told."""
        view = self._view(model)
        table, planes, config = view.table, self._planes[model], self._config.models[model]
        trace = _trace(request, caller)
        timeout_ms = caller.timeout_ms or config.routing.queue.default_timeout_ms
        deadline_ns = caller.arrived_ns + timeout_ms * 1_000_000
        target = _Target(table.baseline, Reason.BASELINE, live=True)
        try:
            target = self._target(model, version, view, caller, trace.request_id)
            plane = planes[target.variant]
            trace.rows = validate(request, plane.manifest.signature, model)
            client_inputs = {item.name: item.data for item in request.inputs}
            inputs = await self._preprocess(plane, client_inputs, trace)
            outcome = await self._answer(config, view, target, inputs, client_inputs, trace, deadline_ns)
        except Fault as fault:
            # If the candidate and then the baseline failed, the failure is the baseline's: nobody else is blamed.
            target = target._replace(variant=fault.variant)
            error = fault.as_error(shedding=view.killed)
            self._record(model, target, table, trace, error.http_status, fault.cause)
            self._count_failure(planes.get(target.variant), trace)
            raise error from fault
        except RequestError as error:
            self._record(model, target, table, trace, error.http_status, Cause.NONE)
            raise
        except asyncio.CancelledError:
            self._record(model, target, table, trace, 499, Cause.NONE)
            raise
        return self._finish(model, request, view, target, outcome, client_inputs, trace)

    async def _answer(
        self,
        config: ModelConfig,
        view: View,
        target: _Target,
        inputs: dict[str, np.ndarray],
        client_inputs: dict[str, np.ndarray],
        trace: Trace,
        deadline_ns: int,
    ) -> _Outcome:
        model, table = view.table.model, view.table
        plane = self._planes[model][target.variant]
        if target.variant == table.baseline or target.reason is not Reason.CANARY:
            outputs = await self._run(plane, inputs, trace, deadline_ns)
            return _Outcome(plane, inputs, outputs, target.reason, Cause.NONE)
        # The candidate is given what the deadline allows after keeping the baseline's share, at least half.
        total_ns = deadline_ns - trace.arrived_ns
        budget_ns = min(config.routing.fallback.budget_ms * 1_000_000, total_ns // 2)
        began = self._clock.monotonic_ns()
        try:
            outputs = await self._run(plane, inputs, trace, deadline_ns - budget_ns)
            now = self._routing.view(model)
            if now is not None and not now.allows(target.variant):
                raise Fault(
                    target.variant, Cause.KILLED, f"{target.variant} was taken out of traffic while it answered"
                )
            return _Outcome(plane, inputs, outputs, target.reason, Cause.NONE)
        except Fault as fault:
            if fault.cause in _CONFIGURABLE and fault.cause.name.lower() not in config.routing.fallback.on:
                raise
            trace.candidate_ns = self._clock.monotonic_ns() - began
            trace.batch_key = fault.batch_key
            baseline = self._planes[model][table.baseline]
            if baseline.pipeline.preprocess_key != plane.pipeline.preprocess_key:
                inputs = await self._preprocess(baseline, client_inputs, trace)
            batch_key = trace.batch_key
            outputs = await self._run(baseline, inputs, trace, deadline_ns)
            trace.batch_key = batch_key
            return _Outcome(baseline, inputs, outputs, Reason.FALLBACK, fault.cause)

    async def _run(
        self, plane: VariantPlane, inputs: dict[str, np.ndarray], trace: Trace, deadline_ns: int
    ) -> Mapping[str, np.ndarray]:
        result = await plane.run(inputs, trace.rows, deadline_ns)
        trace.queue_ns = result.queue_ns
        trace.infer_ns = result.infer_ns
        trace.batch_key = result.batch_key
        return result.outputs

    async def _preprocess(
        self, plane: VariantPlane, client_inputs: dict[str, np.ndarray], trace: Trace
    ) -> dict[str, np.ndarray]:
        began = self._clock.monotonic_ns()
        if trace.rows <= INLINE_ROWS:
            inputs = plane.pipeline.preprocess(client_inputs)
        else:
            inputs = await asyncio.to_thread(plane.pipeline.preprocess, client_inputs)
        trace.preprocess_ns += self._clock.monotonic_ns() - began
        return inputs

    def _finish(
        self,
        model: str,
        request: InferRequest,
        view: View,
        target: _Target,
        outcome: _Outcome,
        client_inputs: dict[str, np.ndarray],
        trace: Trace,
    ) -> Reply:
        plane, table = outcome.plane, view.table
        began = self._clock.monotonic_ns()
        tensors = [tensor(name, data) for name, data in plane.pipeline.postprocess(dict(outcome.outputs)).items()]
        chosen, binary = select_outputs(request, tensors, plane.pipeline.labels)
        entry = plane.entry
        reply = Reply(
            InferResponse(model, str(entry.version), request.id, chosen),
            binary,
            {
                "x-canarium-variant": entry.name,
                "x-canarium-reason": reason_header(outcome.reason, outcome.cause),
                "x-canarium-epoch": str(table.epoch),
                "x-request-id": trace.request_id,
            },
        )
        now = self._clock.monotonic_ns()
        self._count_success(plane, trace, now - began, now)
        summary = plane.pipeline.summary(outcome.outputs)
        self._record(model, target, table, trace, 200, outcome.cause, outcome=outcome, summary=summary)
        if target.live and outcome.reason in (Reason.BASELINE, Reason.CANARY):
            self._compare(
                table, target, Answered(plane, client_inputs, outcome.inputs, outcome.outputs, trace.rows, trace)
            )
        return reply

    def _compare(self, table: RouteTable, target: _Target, answer: Answered) -> None:
        planes = self._planes[table.model]
        if target.reference and table.teacher in planes and answer.plane.entry.name != table.teacher:
            self._scorer.reference(answer, planes[table.teacher], table)
        for name in target.shadows:
            if name in planes:
                self._scorer.shadow(answer, planes[name], table)

    # ------------------------------------------------------------ feedback

    def feedback(self, model: str, request_id: str, label: str | int | None, kpi: Mapping[str, float]) -> None:
        """Record ground truth or KPIs for an earlier request. Raises `RequestError` on an unknown label."""
        table = self._view(model).table
        baseline = self._planes[model][table.baseline]
        index = baseline.pipeline.label_index(label) if label is not None else -1
        if label is not None:
            self._recorder.feedback(Kind.LABEL, model, table.baseline, request_id, cls=index)
        for name, value in kpi.items():
            self._recorder.feedback(Kind.KPI, model, table.baseline, request_id, value=value, name=name)

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
        await self._scorer.close()
        planes = [plane for variants in self._planes.values() for plane in variants.values()]
        await asyncio.gather(*(plane.close() for plane in planes), *self._closing, return_exceptions=True)
        self._recorder.close()

    # ------------------------------------------------------------ helpers

    def _view(self, model: str) -> View:
        if model not in self._planes:
            raise RequestError(
                ErrorKind.NOT_FOUND, f"unknown model {shown(model)}, expected one of {', '.join(self._planes)}"
            )
        view = self._routing.view(model)
        if view is None:
            raise RequestError(ErrorKind.UNAVAILABLE, f"model {model} is not ready: no routing table yet", 1)
        return view

    def _target(self, model: str, version: str, view: View, caller: Caller, request_id: str) -> _Target:
        table = view.table
        if version or caller.override:
            if version:
                name, reason = self._by_version(table, version), Reason.PINNED
            else:
                name, reason = caller.override, Reason.OVERRIDE
            if name not in table.variants or name not in self._planes[model]:
                known = ", ".join(sorted(table.variants))
                header = self._config.models[model].routing.override.header
                raise bad_request(f"header {header}: unknown variant {shown(name)} of {model}, expected one of {known}")
            if view.killed and name != table.baseline:
                raise RequestError(ErrorKind.UNAVAILABLE, f"{name} is killed: only {table.baseline} answers", 30)
            return _Target(name, reason, live=False)
        chosen = route(table, caller.sticky or request_id, killed=view.killed, vetoed=view.vetoed)
        if chosen.variant not in self._planes[model]:  # still being opened: nobody's fault
            return _Target(table.baseline, Reason.BASELINE, live=True)
        return _Target(chosen.variant, chosen.reason, True, chosen.shadows, chosen.reference)

    @staticmethod
    def _by_version(table: RouteTable, version: str) -> str:
        for name, entry in table.variants.items():
            if str(entry.version) == version:
                return name
        known = ", ".join(f"{entry.version} ({name})" for name, entry in table.variants.items())
        raise RequestError(
            ErrorKind.NOT_FOUND, f"unknown version {shown(version)} of model {table.model}, expected one of {known}"
        )

    def _record(
        self,
        model: str,
        target: _Target,
        table: RouteTable,
        trace: Trace,
        status: int,
        cause: Cause,
        *,
        outcome: _Outcome | None = None,
        summary: Summary = UNKNOWN,
    ) -> None:
        self._recorder.request(
            model,
            target.variant,
            outcome.plane.entry.name if outcome else target.variant,
            reason=outcome.reason if outcome else target.reason,
            cause=cause,
            status=status,
            epoch=table.epoch,
            trace=trace,
            summary=summary,
            live=target.live,
            baseline_valid=outcome is not None and outcome.plane.entry.name == table.baseline,
        )

    def _count_success(self, plane: VariantPlane, trace: Trace, output_ns: int, now_ns: int) -> None:
        stats = plane.stats
        stats.success += 1
        stats.success_ns += now_ns - trace.arrived_ns
        stats.queue_ns += trace.queue_ns
        stats.input_ns += trace.preprocess_ns
        stats.infer_ns += trace.infer_ns
        stats.output_ns += output_ns
        stats.rows += trace.rows
        stats.last_ms = self._clock.wall_ns() // 1_000_000

    def _count_failure(self, plane: VariantPlane | None, trace: Trace) -> None:
        if plane is not None:
            plane.stats.fail += 1
            plane.stats.fail_ns += self._clock.monotonic_ns() - trace.arrived_ns

    def _let_go(self, plane: VariantPlane) -> None:
        task = asyncio.get_running_loop().create_task(plane.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


#: Causes whose fallback the configuration may switch off; the others always fall back.
_CONFIGURABLE = frozenset({Cause.ERROR, Cause.TIMEOUT, Cause.INVALID_OUTPUT})


def _trace(request: InferRequest, caller: Caller) -> Trace:
    match = _TRACEPARENT.fullmatch(caller.traceparent) if caller.traceparent else None
    return Trace(
        request_id=request.id or caller.request_id or uuid.uuid4().hex,
        arrived_ns=caller.arrived_ns,
        unit=caller.sticky,
        trace_hi=int(match[1], 16) if match else 0,
        trace_lo=int(match[2], 16) if match else 0,
    )
