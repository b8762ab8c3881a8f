"""What a request goes through, whatever protocol it came by.

validate → route → preprocess → batch → variant → check → postprocess (→ fall back); then, behind the
answer, the record for the monitor and the shadow and reference work. No client sees a candidate's
failure: the baseline answers in its place inside the same deadline.
"""

from __future__ import annotations

import asyncio
import math
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from serving.clock import Clock
from serving.config import Config, ModelConfig
from serving.contract import C_SHED, Cause, Kind, Reason, Snapshot
from serving.core.rate import TokenBucket
from serving.core.routing import bucket_of, route
from serving.errors import ErrorKind, RequestError, bad_request
from serving.gateway.caller import Caller
from serving.gateway.live import LiveRouting, View
from serving.gateway.payloads import PayloadLog
from serving.gateway.planes import PlaneFactory, Planes, by_version
from serving.gateway.recorder import UNKNOWN, Recorder, Trace, reason_header
from serving.gateway.scoring import Answered, Scorer
from serving.gateway.slices import Slices
from serving.gateway.variants import Answer, Fault, VariantPlane
from serving.protocol.types import Admission, InferRequest, InferResponse, TensorHead, shown, tensor
from serving.protocol.validate import check_heads, select_outputs, validate
from serving.runtimes.answers import Summary

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{16})([0-9a-f]{16})-[0-9a-f]{16}-[0-9a-f]{2}")
#: Causes whose fallback the configuration may switch off; the others always fall back.
_CONFIGURABLE = frozenset({Cause.ERROR, Cause.TIMEOUT, Cause.INVALID_OUTPUT})


class Reply(NamedTuple):
    """An answer and who gave it."""

    response: InferResponse
    binary_outputs: frozenset[str]
    variant: str
    reason: str  # as in `x-canarium-reason`
    epoch: int
    request_id: str


class _Work(msgspec.Struct):
    """One request on its way: what was decided, and what is known so far."""

    model: str
    config: ModelConfig
    view: View
    trace: Trace
    deadline_ns: int
    variant: str  # to whom it was routed
    reason: Reason = Reason.BASELINE
    cause: Cause = Cause.NONE
    live: bool = True
    judged: bool = True
    shadows: tuple[str, ...] = ()
    reference: bool = False
    diverted: bool = False  # a candidate's, which is not open here
    unopened: int = 0  # candidates that are not, as a record holds them
    client_inputs: dict[str, np.ndarray] = {}
    inputs: dict[str, np.ndarray] = {}
    ready_ns: int = 0  # when these were made


class DataPlane:
    """All models of one gateway process. Everything runs on its event loop."""

    def __init__(
        self,
        config: Config,
        routing: LiveRouting,
        recorder: Recorder,
        clock: Clock,
        plane_factory: PlaneFactory,
        payloads: PayloadLog | None = None,
    ) -> None:
        self._config = config
        self._payloads = payloads
        self._routing = routing
        self._recorder = recorder
        self._clock = clock
        self.planes = Planes(list(config.models), routing, plane_factory)
        self._scorer = Scorer(recorder, clock, (config.server.max_inflight_mib << 20) // 4)
        self.slices = {name: Slices(model.slices) for name, model in config.models.items()}
        self.leaving = False
        self._reserves = {
            name: TokenBucket() for name, model in config.models.items() if model.capacity.on_kill == "reserve"
        }

    # ------------------------------------------------------------ what is served

    async def apply(self, snapshot: Snapshot) -> None:
        """Take over a published snapshot (see `Planes.apply`)."""
        await self.planes.apply(snapshot)
        self.enforce()

    def enforce(self) -> None:
        """Drop what is queued at variants that may not answer any more; run after each change and on a tick."""
        self._routing.tick()
        for model, variants in self.planes.all().items():
            view = self._routing.view(model)
            for plane in variants:
                plane.publish_gauges()
                if view is not None and view.killed and plane.entry.name != view.table.baseline:
                    plane.drop_queued()
        if self._payloads is not None:
            self._payloads.publish()
        self._recorder.beat()

    @property
    def ready(self) -> bool:
        """Whether every model's baseline can answer, and this gateway is not about to go."""
        if self.leaving:
            return False
        return all(self._routing.view(model) and self.model_ready(model) for model in self._config.models)

    def model_ready(self, model: str, version: str = "") -> bool:
        """Whether a model (its baseline) or one of its versions can answer. Raises `RequestError` if unknown."""
        table = self._view(model).table
        plane = self.planes.get(model, by_version(table, version) if version else table.baseline)
        return plane is not None and plane.ready

    def select(self, model: str, version: str = "") -> list[VariantPlane]:
        """The variants that a metadata or statistics request means: all of a model, or one version."""
        view = self._view(model)
        if version:
            plane = self.planes.get(model, by_version(view.table, version))
            return [plane] if plane is not None else []
        return self.planes.all()[model]

    def pins_candidate(self, model: str, version: str) -> bool:
        """Whether `version` is a candidate's now: to pin it is a choice like that of the override header."""
        view = self._routing.view(model) if model in self._config.models else None
        return view is not None and any(
            str(entry.version) == version for name, entry in view.table.variants.items() if name != view.table.baseline
        )

    # ------------------------------------------------------------ inference

    def admission(self, model: str) -> Admission:
        """What refuses inputs that no variant of a model takes; may be asked on another thread.

        Raises:
            RequestError: there is no such model, or none that could be asked.
        """
        planes = self.planes.of(model)
        if not planes:
            self._view(model)

        def ask(heads: Sequence[TensorHead]) -> None:
            refusals: list[RequestError] = []
            for plane in planes:
                try:
                    plane.batcher.refuse_if_too_large(check_heads(heads, plane.manifest.signature, model))
                    return
                except RequestError as error:
                    refusals.append(error)
            if refusals:
                raise refusals[0]

        return ask

    async def infer(self, model: str, version: str, request: InferRequest, caller: Caller) -> Reply:
        """Answer one request. Raises `RequestError` with the kind that the client is told."""
        try:
            view = self._view(model)
        except RequestError as refusal:
            if not (version or caller.override):
                self.refused(model, refusal.http_status)
            raise
        config = self._config.models[model]
        trace = _trace(request, caller)
        timeout_ms = caller.timeout_ms or config.routing.queue.default_timeout_ms
        if caller.within_ms is not None:
            timeout_ms = min(timeout_ms, caller.within_ms)
        deadline_ns = caller.arrived_ns + timeout_ms * 1_000_000
        work = _Work(model, config, view, trace, deadline_ns, view.table.baseline)
        try:
            plane = self._route(work, version, caller)
            rows = validate(request, plane.manifest.signature, model)
            plane.batcher.refuse_if_too_large(rows)
            trace.rows = rows  # not those of a refused one: headroom is measured against them
            if work.live and model in self._reserves:
                self._keep_reserve(work)
            work.client_inputs = {item.name: item.data for item in request.inputs}
            trace.slices = caller.slices | self.slices[model].of_inputs(work.client_inputs)
            answerer, answer = await self._answer(work, plane)
            return self._finish(work, request, answerer, answer)
        except Fault as fault:
            error = fault.as_error(shedding=view.killed)
            # Whoever failed first is recorded: if the baseline failed after the candidate, the candidate was routed to.
            first = fault.first or fault
            work.variant, work.cause, trace.batch_key = first.variant, first.cause, first.batch_key
            self._refused(work, error.http_status)
            raise error from fault
        except RequestError as error:
            self._refused(work, error.http_status)
            raise
        except asyncio.CancelledError:
            self._refused(work, 499)
            raise
        except Exception:
            self._refused(work, 500)
            raise

    def refused(self, model: str, status: int) -> None:
        """Count a request that is refused before `infer` decides who answers it; no matter if the client is to blame.

        It counts as the baseline's, which would have answered it in the end.
        """
        if model in self._config.models and (status == 429 or status >= 500):
            view = self._routing.view(model)
            baseline = view.table.baseline if view is not None else self._config.models[model].baseline
            self._recorder.refused(model, baseline, status)

    def _keep_reserve(self, work: _Work) -> None:
        """Take no more for a model than its baseline could do alone. Raises `RequestError` OVERLOADED."""
        baseline = self.planes.get(work.model, work.view.table.baseline)
        if baseline is None or not (rate := baseline.capacity):
            return
        wait_s = self._reserves[work.model].take(work.trace.rows, rate, self._clock.monotonic_ns())
        if wait_s:
            self._recorder.count(work.model, work.variant, C_SHED)
            raise RequestError(
                ErrorKind.OVERLOADED,
                f"{work.model} takes no more than its baseline {work.view.table.baseline} can do alone "
                f"({rate:.0f} rows/s here, capacity.on_kill: reserve)",
                max(1, math.ceil(wait_s)),
            )

    def _route(self, work: _Work, version: str, caller: Caller) -> VariantPlane:
        """Decide who is to answer. Raises `RequestError` for a version or variant that cannot."""
        model, view = work.model, work.view
        table = view.table
        if version or caller.override:
            if version:
                name, work.reason = by_version(table, version), Reason.PINNED
            else:
                name, work.reason = caller.override, Reason.OVERRIDE
            work.live = False
            if name not in table.variants:
                known = ", ".join(sorted(table.variants))
                header = work.config.routing.override.header
                raise bad_request(f"header {header}: unknown variant {shown(name)} of {model}, expected one of {known}")
            work.variant = name
            if view.killed and name != table.baseline:
                why = "the monitor is silent" if view.monitor_lost else f"{name} is killed"
                raise RequestError(ErrorKind.UNAVAILABLE, f"{why}: only {table.baseline} answers", 30)
            plane = self.planes.get(model, name)
            if plane is None:
                raise RequestError(ErrorKind.UNAVAILABLE, f"{name} is being opened, try again", 1)
            return plane
        request_id = work.trace.request_id
        chosen = route(table, caller.sticky or request_id, request_id, killed=view.killed, vetoed=view.vetoed)
        work.unopened = self.planes.unopened(table)
        plane = self.planes.get(model, chosen.variant)
        if plane is not None:
            work.variant, work.reason = chosen.variant, chosen.reason
            work.shadows, work.reference = chosen.shadows, chosen.reference
            return plane
        work.diverted = chosen.variant != table.baseline
        plane = self.planes.get(model, table.baseline)  # the candidate is still being opened: nobody's fault
        if plane is None:
            raise RequestError(ErrorKind.UNAVAILABLE, f"{table.baseline} is being opened, try again", 1)
        return plane

    async def _answer(self, work: _Work, plane: VariantPlane) -> tuple[VariantPlane, Answer]:
        """The chosen variant's answer, or the baseline's if a candidate fails. Raises `Fault`."""
        if work.reason is not Reason.CANARY:
            try:
                answer = await self._run(work, plane, work.deadline_ns)
            except Fault as own:
                self._excuse(work, own)
                raise
            now = self._routing.view(work.model)
            if now is None or not now.killed or plane.entry.name == now.table.baseline:
                return plane, answer
            fault = Fault(plane.entry.name, Cause.KILLED, f"{plane.entry.name} was killed while it answered")
            if not work.live:
                raise fault
            return await self._fall_back(work, plane, fault)
        # The candidate is given what the deadline allows after keeping the baseline's share, at least half.
        fallback = work.config.routing.fallback
        own_ns = candidates_share(work.deadline_ns - work.trace.arrived_ns, fallback.budget_ms)
        began = self._clock.monotonic_ns()
        try:
            answer = await self._run(work, plane, work.trace.arrived_ns + own_ns)
            now = self._routing.view(work.model)
            if now is None or now.allows(plane.entry.name):
                return plane, answer
            raise Fault(plane.entry.name, Cause.KILLED, f"{plane.entry.name} was taken out of traffic")
        except Fault as fault:
            self._excuse(work, fault)
            if fault.cause in _CONFIGURABLE and fault.cause.name.lower() not in fallback.on:
                raise
            work.trace.candidate_ns = self._clock.monotonic_ns() - began
            return await self._fall_back(work, plane, fault)

    def _excuse(self, work: _Work, fault: Fault) -> None:
        """Have a failure tell nothing of its variant if there was too little time, as the client or making its inputs
        left no more.

        Too little is less than half of what a candidate has by the default deadline. It is the same for the baseline:
        a race in which one of them is excused would be decided by that.
        """
        if fault.cause not in (Cause.TIMEOUT, Cause.OVERLOADED):
            return
        routing, arrived_ns = work.config.routing, work.trace.arrived_ns
        fair_ns = candidates_share(routing.queue.default_timeout_ms * 1_000_000, routing.fallback.budget_ms) // 2
        own_ns = candidates_share(work.deadline_ns - arrived_ns, routing.fallback.budget_ms)
        if arrived_ns + own_ns - (work.ready_ns or self._clock.monotonic_ns()) < fair_ns:
            work.judged = False

    async def _fall_back(self, work: _Work, failed: VariantPlane, fault: Fault) -> tuple[VariantPlane, Answer]:
        view = self._routing.view(work.model) or work.view
        baseline = self.planes.get(work.model, view.table.baseline)
        if baseline is None:
            raise fault
        if baseline.pipeline.preprocess_key != failed.pipeline.preprocess_key:
            work.inputs = {}
        try:
            answer = await self._run(work, baseline, work.deadline_ns)
        except Fault as second:
            second.first = fault if fault.cause is not Cause.KILLED else None
            if second.first is None:
                self._excuse(work, second)
            raise
        work.reason, work.cause, work.trace.batch_key = Reason.FALLBACK, fault.cause, fault.batch_key
        return baseline, answer

    async def _run(self, work: _Work, plane: VariantPlane, deadline_ns: int) -> Answer:
        trace = work.trace
        with plane.used():
            if not work.inputs:
                plane.refuse_if_late(trace.rows, deadline_ns)
                await self._prepare(work, plane, deadline_ns)
            trace.dispatched = True
            answer = await plane.run(work.inputs, trace.rows, deadline_ns)
        trace.queue_ns, trace.infer_ns, trace.batch_key = answer.queue_ns, answer.infer_ns, answer.batch_key
        return answer

    async def _prepare(self, work: _Work, plane: VariantPlane, deadline_ns: int) -> None:
        """Make the session inputs. Raises as `VariantPlane.preprocess`."""
        baseline = self.planes.get(work.model, work.view.table.baseline)
        if baseline is not None and baseline.pipeline.preprocess_key == plane.pipeline.preprocess_key:
            deadline_ns = work.deadline_ns  # they are the baseline's as well: not to be made twice
        began = self._clock.monotonic_ns()
        work.inputs = await plane.preprocess(work.client_inputs, work.trace.rows, deadline_ns)
        work.ready_ns = self._clock.monotonic_ns()
        work.trace.preprocess_ns += work.ready_ns - began

    def _finish(self, work: _Work, request: InferRequest, plane: VariantPlane, answer: Answer) -> Reply:
        trace, table, entry = work.trace, work.view.table, plane.entry
        began = self._clock.monotonic_ns()
        tensors = [tensor(name, data) for name, data in answer.tensors.items()]
        chosen, binary = select_outputs(request, tensors, plane.pipeline.labels)
        reply = Reply(
            InferResponse(work.model, str(entry.version), request.id, chosen),
            binary,
            entry.name,
            reason_header(work.reason, work.cause, work.view.monitor_lost),
            table.epoch,
            trace.request_id,
        )
        now = self._clock.monotonic_ns()
        trace.postprocess_ns = answer.output_ns + now - began
        plane.stats.succeeded(trace, now - trace.arrived_ns, self._clock.wall_ns() // 1_000_000)
        summary = plane.pipeline.summary(answer.outputs)
        self._record(work, 200, entry.name, summary)
        if work.live and work.reason in (Reason.BASELINE, Reason.CANARY):
            self._compare(work, Answered(plane, work.client_inputs, work.inputs, answer.outputs, trace.rows, trace))
            if self._payloads is not None and self._payloads.wants(work.model, trace.request_id):
                self._payloads.offer(work.model, entry, plane.pipeline, work.client_inputs, work.inputs, summary)
        return reply

    def _compare(self, work: _Work, answer: Answered) -> None:
        table = work.view.table
        teacher = self.planes.get(work.model, table.teacher) if work.reference or work.shadows else None
        if work.reference and teacher is not None and teacher is not answer.plane:
            self._scorer.reference(answer, teacher, table)
        share = round(work.config.routing.noise_percent * 100)
        if (
            answer.plane.entry.name == table.teacher
            and (table.candidates or table.shadow)
            and bucket_of(table.salt, work.trace.request_id, "noise") < share
        ):
            self._scorer.again(answer, table, share)
        for name in work.shadows:
            shadow = self.planes.get(work.model, name)
            if shadow is not None:
                self._scorer.shadow(answer, shadow, teacher, table)

    # ------------------------------------------------------------ feedback

    def feedback(self, model: str, request_id: str, label: str | int | None, kpi: Mapping[str, float]) -> None:
        """Record ground truth or KPIs for an earlier request. Raises `RequestError` on an unknown label."""
        name = self._view(model).table.baseline
        if label is not None:
            baseline = self.planes.get(model, name)
            if baseline is None:
                raise RequestError(ErrorKind.UNAVAILABLE, f"{name} is being opened, try again", 1)
            index = baseline.pipeline.label_index(label)
            self._recorder.feedback(Kind.LABEL, model, name, request_id, cls=index)
        for key, value in kpi.items():
            self._recorder.feedback(Kind.KPI, model, name, request_id, value=value, name=key)

    async def close(self) -> None:
        await self._scorer.close()
        await self.planes.close()
        if self._payloads is not None:
            await asyncio.to_thread(self._payloads.close)
            self._payloads.publish()
        self._recorder.close()

    # ------------------------------------------------------------ helpers

    def _view(self, model: str) -> View:
        if model not in self._config.models:
            known = ", ".join(self._config.models)
            raise RequestError(ErrorKind.NOT_FOUND, f"unknown model {shown(model)}, expected one of {known}")
        view = self._routing.view(model)
        if view is None:
            raise RequestError(ErrorKind.UNAVAILABLE, f"model {model} is not ready: no routing table yet", 1)
        return view

    def _refused(self, work: _Work, status: int) -> None:
        plane = self.planes.get(work.model, work.variant)
        if plane is not None:
            plane.stats.failed(self._clock.monotonic_ns() - work.trace.arrived_ns)
        self._record(work, status, work.variant)

    def _record(self, work: _Work, status: int, answered: str, summary: Summary = UNKNOWN) -> None:
        table = work.view.table
        self._recorder.request(
            work.model,
            work.variant,
            answered,
            reason=work.reason,
            cause=work.cause,
            status=status,
            epoch=table.epoch,
            trace=work.trace,
            summary=summary,
            live=work.live,
            judged=work.judged,
            baseline_valid=status == 200 and (answered == table.baseline or work.reason is Reason.FALLBACK),
            killed=work.view.killed,
            diverted=work.diverted,
            unopened=work.unopened,
        )


def candidates_share(total_ns: int, budget_ms: int) -> int:
    """What a candidate has of a request's time: all but what is kept for the baseline, which is at most half."""
    return total_ns - min(budget_ms * 1_000_000, total_ns // 2)


def _trace(request: InferRequest, caller: Caller) -> Trace:
    match = _TRACEPARENT.fullmatch(caller.traceparent) if caller.traceparent else None
    return Trace(
        request_id=request.id or caller.request_id or uuid.uuid4().hex,
        arrived_ns=caller.arrived_ns,
        unit=caller.sticky,
        trace_hi=int(match[1], 16) if match else 0,
        trace_lo=int(match[2], 16) if match else 0,
    )
