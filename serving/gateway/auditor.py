"""Audits beside the answers: one row now and then, in a thread that everything else goes before.

What is looked at stays in the process that computed it; only a few numbers leave it (`Audit`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from serving.clock import Clock
from serving.config_monitoring import GuardsConfig
from serving.core.arrays import Arrays, rows_of
from serving.registry.manifest import EMBEDDING_FILE, Manifest
from serving.registry.verified import content, onnx_source
from serving.runtimes.audit import Audit, RowAudit
from serving.runtimes.embedding import Familiar

log = logging.getLogger(__name__)

#: The tensor of an answer's frame that carries finished audits to the gateway: float32 [n, fields], an `Audit` a row.
AUDIT = "canarium.audit"
#: Finished audits that wait for an answer to go with; of more the oldest are forgotten.
KEPT = 16
_LEAST_URGENT = 19


class Audits(Protocol):
    def run(self, inputs: Mapping[str, np.ndarray]) -> Audit: ...


def in_thread(work: Callable[[], None]) -> None:
    """Run it in a thread of its own, with the least priority that the system knows."""

    def run() -> None:
        with contextlib.suppress(OSError):  # Linux knows priorities of threads; others may refuse
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LEAST_URGENT)
        work()

    threading.Thread(target=run, name="canarium-audit", daemon=True).start()


class Auditor:
    """Audits at most one row every so many seconds, one at a time.

    Args:
        make: opens what audits; called in the thread when the first row is there. What it raises ends the auditing.
        axes: the axis of the rows of inputs where that is not the first; None: one value for all.
        every_s: seconds between two audits.
        start: runs the work elsewhere.
    """

    def __init__(
        self,
        make: Callable[[], Audits],
        axes: Mapping[str, int | None],
        *,
        every_s: float,
        clock: Clock,
        start: Callable[[Callable[[], None]], None] = in_thread,
    ) -> None:
        self._make = make
        self._axes = axes
        self._every_ns = int(every_s * 1e9)
        self._clock = clock
        self._start = start
        self._due_ns = 0
        self._busy = False
        self._off = False
        self._audits: Audits | None = None
        self._finished: deque[Audit] = deque(maxlen=KEPT)

    def offer(self, inputs: Arrays) -> None:
        """The inputs of a batch that was answered; copies its first row if an audit is due. Never raises."""
        if self._busy or self._off or (now := self._clock.monotonic_ns()) < self._due_ns:
            return
        self._busy, self._due_ns = True, now + self._every_ns
        try:
            row = {name: np.array(values) for name, values in rows_of(inputs, 0, 1, self._axes).items()}
            self._start(lambda: self._audit(row))
        except Exception as error:
            self._stop(error)

    def take(self) -> list[Audit]:
        """What was finished since the last time."""
        found = []
        while self._finished:
            found.append(self._finished.popleft())
        return found

    def _audit(self, row: Arrays) -> None:
        try:
            if self._audits is None:
                self._audits = self._make()
            self._finished.append(self._audits.run(row))
            self._busy = False
        except Exception as error:
            self._stop(error)

    def _stop(self, error: Exception) -> None:
        self._off, self._audits = True, None
        log.warning("no row is audited: %s", error)


def auditor_of(manifest: Manifest, folder: Path, guards: GuardsConfig, clock: Clock) -> Auditor | None:
    """The auditor of an artifact: of saturation, of embeddings, of both at once as often as either is wanted.

    None if it has neither ranges to leave nor embeddings that were measured, or nobody wants audits.
    """
    saturation_s = guards.saturation.every_s if manifest.static_int8 else 0.0
    embedding_s = guards.ood.every_s if EMBEDDING_FILE in manifest.files else 0.0
    wanted = [seconds for seconds in (saturation_s, embedding_s) if seconds]
    if not wanted:
        return None

    def make() -> RowAudit:
        familiar = None
        if embedding_s:
            measured_by = Familiar.parse(content(manifest, folder, EMBEDDING_FILE), EMBEDDING_FILE)
            familiar = (measured_by, manifest.postprocess.logits)
        with onnx_source(manifest, folder) as source:
            return RowAudit(source, saturation=bool(saturation_s), familiar=familiar)

    return Auditor(make, manifest.layout.inputs, every_s=min(wanted), clock=clock)


def packed(audits: list[Audit]) -> np.ndarray:
    """Audits as the tensor `AUDIT`."""
    return np.array(audits, np.float32).reshape(len(audits), len(Audit._fields))


def unpacked(tensor: np.ndarray) -> list[Audit]:
    """The audits in such a tensor; of another shape none."""
    if tensor.ndim != 2 or tensor.shape[1] != len(Audit._fields):
        return []
    return [Audit(*row) for row in tensor.tolist()]
