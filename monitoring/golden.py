"""Golden rows: asked again on a schedule of every variant that answers anybody, through the real data plane.

Each is a request of one row pinned to the variant's version, which live statistics leave out. What is judged: the share
of right answers against a floor, and answers of another class than the variant gave to the same row when it was built.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np

from monitoring.beside import Beside, GoldenResult
from monitoring.config import GoldenSettings, MonitorConfig, MonitorVariant
from serving.clock import Clock

log = logging.getLogger("canarium.monitor")

Key = tuple[str, str]  # (model, variant)
#: Between two rows, and for one answer, seconds: golden rows are to be no load.
PAUSE_S, PATIENCE_S = 0.02, 5.0
#: A first run is made so long after the start, seconds.
FIRST_S = 15.0


class Row(msgspec.Struct, frozen=True):
    """One line of a golden file: a request of one row (inputs in the protocol's JSON), and what is known of it.

    `label`: the true class; "" if unknown. `probabilities`: what the variant answered when it was built, float32.
    """

    inputs: list[dict[str, Any]]
    label: str = ""
    probabilities: list[float] = []


def read(path: Path) -> list[Row]:
    """The rows of a JSON-lines file. Raises `OSError`, or `ValueError` naming file and line."""
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            rows.append(msgspec.json.decode(line, type=Row))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: line {number}: {error}") from error
    return rows


class Golden:
    """Runs the golden rows of all models, one request after the other.

    Args:
        client: of the inference endpoint, with what it asks for to be let in.
        beside: where results are left.
        live: the variants of a model that answer anybody, copies included.
        done: told of each new result.
        pause_s: between two rows.
    """

    def __init__(
        self,
        config: MonitorConfig,
        clock: Clock,
        client: httpx.AsyncClient,
        beside: Beside,
        live: Callable[[str], set[str]],
        done: Callable[[], None] = lambda: None,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._config = config
        self._clock = clock
        self._client = client
        self._beside = beside
        self._live = live
        self._done = done
        self._pause_s = pause_s
        self._rows: dict[str, list[Row]] = {}
        self._began_s = clock.monotonic_ns() / 1e9
        self._asked_s: dict[Key, float] = {}

    async def step(self) -> None:
        """Once a second: ask what is due. Returns when that is done."""
        now_s = self._clock.monotonic_ns() / 1e9
        for name, model in self._config.models.items():
            if not model.golden.every_s or now_s - self._began_s < min(FIRST_S, model.golden.every_s):
                continue
            live = self._live(name)
            for variant, settings in model.variants.items():
                key = (name, variant)
                if variant not in live:
                    self._beside.golden.pop(key, None)  # what it answered once says nothing of now
                    self._asked_s.pop(key, None)
                    continue
                if now_s - self._asked_s.get(key, -math.inf) < model.golden.every_s:
                    continue
                self._asked_s[key] = now_s
                rows = await self._load(model.golden_file(variant))
                if rows:
                    self._beside.golden[key] = await self._ask(key, settings, model.golden, model.labels, rows)
                    self._done()

    async def _load(self, path: str) -> list[Row]:
        if not path:
            return []
        if path not in self._rows:
            try:
                self._rows[path] = await asyncio.to_thread(read, Path(path))
            except (OSError, ValueError) as error:
                log.error("golden rows: %s", error)
        return self._rows.get(path, [])

    async def _ask(
        self, key: Key, variant: MonitorVariant, settings: GoldenSettings, labels: list[str], rows: list[Row]
    ) -> GoldenResult:
        own = not settings.file  # rows from elsewhere have no answers of this variant's
        answered = labelled = right = stored = flips = equal = 0
        for row in rows:
            probabilities = await self._answer(key, variant.version, row)
            await asyncio.sleep(self._pause_s)
            if probabilities is None or len(probabilities) != len(labels):
                continue
            answered += 1
            cls = int(np.argmax(probabilities))
            if row.label in labels:
                labelled += 1
                right += labels[cls] == row.label
            if own and len(row.probabilities) == len(labels):
                before = np.array(row.probabilities, np.float32)
                stored += 1
                flips += int(np.argmax(before)) != cls
                equal += before.tobytes() == probabilities.tobytes()
        return GoldenResult(
            at_ms=self._clock.wall_ns() // 1_000_000,
            rows=len(rows),
            answered=answered,
            labelled=labelled,
            right=right,
            stored=stored,
            flips=flips,
            equal=equal,
            same_isa=variant.same_isa,
            floor=settings.floor,
            flips_max=settings.flips_max,
        )

    async def _answer(self, key: Key, version: int, row: Row) -> Any:
        """The probabilities float32 [classes] that a variant gives; None if it gives none."""
        model, variant = key
        try:
            response = await self._client.post(
                f"/v2/models/{model}/versions/{version}/infer",
                json={"inputs": row.inputs, "outputs": [{"name": "probabilities"}]},
                timeout=PATIENCE_S,
            )
            response.raise_for_status()
            found = {output["name"]: output["data"] for output in response.json()["outputs"]}
            probabilities = np.array(found["probabilities"], np.float32).ravel()
            self._beside.golden_requests[model, variant, "ok"] += 1
            return probabilities
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            self._beside.golden_requests[model, variant, "error"] += 1
            return None
