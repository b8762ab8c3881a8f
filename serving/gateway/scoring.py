"""Work that no client waits for: shadow answers and the teacher's opinion of a candidate's answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any

import msgspec
import numpy as np

from serving import contract
from serving.clock import Clock
from serving.contract import BUCKETS, Cause, Kind, RouteTable
from serving.core.arrays import bytes_of
from serving.gateway.recorder import Recorder, Trace
from serving.gateway.variants import Fault, VariantPlane
from serving.runtimes.answers import divergence, in_common

#: Pieces of shadow and reference work under way at once; beyond it they are shed and counted.
MAX_IN_FLIGHT = 128
#: Seconds after which nobody wants a shadow or reference answer any more.
PATIENCE_S = 5.0


class Answered(msgspec.Struct):
    """An answer that was returned to a client, as the scorer needs it."""

    plane: VariantPlane
    client_inputs: dict[str, np.ndarray]
    session_inputs: dict[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    rows: int
    trace: Trace
    pieces: int = 0  # of work under way that hold it
    bytes: int = 0  # what they hold

    def size(self) -> int:
        """Bytes of its tensors. Those that came as bytes are views of the request's whole body."""
        held = [*self.client_inputs.values(), *self.outputs.values()]
        if self.session_inputs is not self.client_inputs:
            held += self.session_inputs.values()
        return sum(map(bytes_of, held))


class Scorer:
    """Runs a bounded number of background comparisons; sheds and counts the rest.

    Args:
        max_bytes: what all of them may hold of requests that were answered, and so are in flight no more. One that
            is larger is compared while nothing else is.
    """

    def __init__(self, recorder: Recorder, clock: Clock, max_bytes: int) -> None:
        self._recorder = recorder
        self._clock = clock
        self._max_bytes = max_bytes
        self._bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def reference(self, answer: Answered, teacher: VariantPlane, table: RouteTable) -> None:
        """Have the teacher answer what a candidate answered, and record the pair."""
        candidate = answer.plane.entry.name
        if not self._spawn(answer, self._reference(answer, teacher, table, table.reference_bp)):
            self._recorder.count(table.model, candidate, contract.C_REFERENCE_SHED)

    def shadow(self, answer: Answered, shadow: VariantPlane, teacher: VariantPlane | None, table: RouteTable) -> None:
        """Have a shadow variant answer the same input, and compare it with the teacher's answer.

        If another variant answered the client, the teacher is asked as well; without a teacher, or for a
        shadow of the teacher itself, the comparison is with what was returned.
        """
        if not self._spawn(answer, self._shadow(answer, shadow, teacher, table)):
            self._recorder.count(table.model, shadow.entry.name, contract.C_SHADOW_SHED)

    def again(self, answer: Answered, table: RouteTable, share: int) -> None:
        """Have the teacher answer once more what it has answered, and record how far it differs from itself.

        Args:
            share: basis points of its answers for which this is done.
        """
        if not self._spawn(answer, self._reference(answer, answer.plane, table, share)):
            self._recorder.count(table.model, answer.plane.entry.name, contract.C_REFERENCE_SHED)

    async def close(self) -> None:
        """Cancel what is under way."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, answer: Answered, work: Coroutine[Any, Any, None]) -> bool:
        more = 0 if answer.pieces else answer.size()
        if len(self._tasks) >= MAX_IN_FLIGHT or (more and self._bytes and self._bytes + more > self._max_bytes):
            work.close()
            return False
        answer.pieces += 1
        answer.bytes += more
        self._bytes += more
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._done, answer))
        return True

    def _done(self, answer: Answered, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        answer.pieces -= 1
        if not answer.pieces:
            self._bytes -= answer.bytes
            answer.bytes = 0

    async def _reference(self, answer: Answered, teacher: VariantPlane, table: RouteTable, share: int) -> None:
        candidate = answer.plane
        try:
            outputs, infer_ns = await self._answer(answer, teacher)
        except Exception as error:
            shed = isinstance(error, Fault) and error.cause is Cause.OVERLOADED
            cell = contract.C_REFERENCE_SHED if shed else contract.C_REFERENCE_ERROR
            self._recorder.count(table.model, candidate.entry.name, cell)
            return
        self._recorder.count(table.model, candidate.entry.name, contract.C_REFERENCE_OK)
        self._pair(Kind.REFERENCE, table, answer, candidate, answer.outputs, teacher, outputs, share, infer_ns)

    async def _shadow(
        self, answer: Answered, shadow: VariantPlane, teacher: VariantPlane | None, table: RouteTable
    ) -> None:
        name, judge, judged = shadow.entry.name, answer.plane, answer.outputs
        try:
            outputs, infer_ns = await self._answer(answer, shadow)
            if teacher is not None and teacher is not shadow and teacher is not judge:
                judge, (judged, _) = teacher, await self._answer(answer, teacher)
        except Exception as error:
            cause = error.cause if isinstance(error, Fault) else Cause.ERROR
            self._recorder.count(table.model, name, _SHADOW_CELLS.get(cause, contract.C_SHADOW_ERROR))
            return
        self._recorder.count(table.model, name, contract.C_SHADOW_OK)
        share = table.shadow.get(name, BUCKETS)
        self._pair(Kind.SHADOW, table, answer, shadow, outputs, judge, judged, share, infer_ns)

    async def _answer(self, answer: Answered, plane: VariantPlane) -> tuple[Mapping[str, np.ndarray], int]:
        inputs = answer.session_inputs
        with plane.used():
            deadline = self._clock.monotonic_ns() + int(PATIENCE_S * 1e9)
            if plane.pipeline.preprocess_key != answer.plane.pipeline.preprocess_key:
                inputs = await plane.preprocess(answer.client_inputs, answer.rows, deadline)
            result = await plane.run(inputs, answer.rows, deadline, live=False)
        return result.outputs, result.infer_ns

    def _pair(
        self,
        kind: Kind,
        table: RouteTable,
        answer: Answered,
        variant: VariantPlane,
        outputs: Mapping[str, np.ndarray],
        reference: VariantPlane,
        ref_outputs: Mapping[str, np.ndarray],
        share: int,
        infer_ns: int,
    ) -> None:
        summary = variant.pipeline.summary(outputs)
        classes = variant.pipeline.classes(outputs)
        ref_classes = reference.pipeline.classes(ref_outputs)
        ref_prob = reference.pipeline.probability(ref_outputs, summary.cls)
        ref_shares, shares = reference.pipeline.shares(ref_outputs), variant.pipeline.shares(outputs)
        self._recorder.pair(
            kind,
            table.model,
            variant.entry.name,
            reference.entry.name,
            trace=answer.trace,
            epoch=table.epoch,
            summary=summary,
            classes=classes,
            ref_classes=ref_classes,
            ref_prob=ref_prob,
            apart=divergence(ref_shares, shares),
            common=in_common(ref_shares, shares),
            inclusion=share / BUCKETS,
            infer_ns=infer_ns,
        )


_SHADOW_CELLS = {
    Cause.OVERLOADED: contract.C_SHADOW_SHED,
    Cause.TIMEOUT: contract.C_SHADOW_TIMEOUT,
}
