"""What every worker of a batcher is, and how one fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from serving.contract import Cause
from serving.errors import CanariumError
from serving.gateway.auditor import AUDIT, unpacked
from serving.gateway.frames import Frame, FrameKind
from serving.runtimes.audit import Audit

RunNow = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


class WorkerFailure(CanariumError):
    """A variant did not answer a batch.

    Attributes:
        cause: ERROR (the session raised), DIED, TIMEOUT (hung) or OVERLOADED.
        batch_key: the same for all requests of one failed batch; 0 if it never reached a worker.
    """

    def __init__(self, cause: Cause, message: str, batch_key: int = 0) -> None:
        super().__init__(message)
        self.cause = cause
        self.message = message
        self.batch_key = batch_key


class Worker(Protocol):
    """Runs one batch at a time."""

    name: str
    #: Called (on the loop) when `available` has changed; set by the batcher.
    on_change: Callable[[], None] | None
    #: Called (on the loop) with audits that came with an answer; set by who records them.
    on_audits: Callable[[list[Audit]], None] | None
    #: Nanoseconds that the batch it answered last ran, without the wait for batches of others; 0: not known.
    ran_ns: int
    #: Among free workers the lowest rank goes first: 0 in this process or on this node, 1 elsewhere.
    rank: int

    @property
    def available(self) -> bool:
        """Whether it is connected and not hung."""
        ...

    @property
    def hung(self) -> bool:
        """Whether it still owes the answer to a batch that was overdue."""
        ...

    @property
    def run_now(self) -> RunNow | None:
        """Runs one batch while the loop waits, where that takes less than to wait for it would (now). The function
        raises `WorkerFailure`."""
        ...

    async def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch. Raises `WorkerFailure`."""
        ...

    async def close(self) -> None:
        """Let go of the worker; a batch in flight fails."""
        ...


class WorkerBase:
    """Availability and its notification."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.on_change: Callable[[], None] | None = None
        self.on_audits: Callable[[list[Audit]], None] | None = None
        self.ran_ns = 0
        self.rank = 0

    @property
    def run_now(self) -> RunNow | None:
        return None

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()

    def _audited(self, audits: list[Audit]) -> None:
        if audits and self.on_audits is not None:
            self.on_audits(audits)

    def _outputs(self, frame: Frame) -> dict[str, np.ndarray]:
        """The arrays of an answer, and take what came with it. Raises `WorkerFailure` if it is an error."""
        self.ran_ns = frame.ran_ns
        if AUDIT in frame.tensors:
            self._audited(unpacked(frame.tensors.pop(AUDIT)))
        return batch_outputs(self.name, frame)


def batch_outputs(name: str, frame: Frame) -> dict[str, np.ndarray]:
    """The arrays of an answer. Raises `WorkerFailure` if it is an error."""
    if frame.kind is FrameKind.OK:
        return frame.tensors
    if frame.kind is FrameKind.ERROR:
        raise WorkerFailure(frame.cause, frame.text)
    raise WorkerFailure(Cause.DIED, f"{name} answered a batch with {frame.kind.name}")


def json_object(text: str) -> dict[str, Any]:
    """The object in an answer's text. Raises `WorkerFailure` if it is something else."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise WorkerFailure(Cause.ERROR, "the worker's answer is not a JSON object")
    return value
