"""The monitor without its loops: spools in, statistics and trips out, all state in one commit."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

import msgspec
import numpy as np

from monitoring.beside import Beside
from monitoring.config import MonitorConfig, MonitorModel
from monitoring.event import Event, is_error
from monitoring.evidence import Evidence, events
from monitoring.guard import Trip
from monitoring.ingest import CHUNK, Chunk, Flow, Ingest, IngestState, Key, Totals
from monitoring.objectives import Objectives, by_model, slo_verdict
from monitoring.slo import HistoryState
from monitoring.state import VERSION, Committed
from monitoring.verdicts import Verdict
from monitoring.windows import VariantState, Window
from serving.clock import Clock
from serving.contract import C_CAPACITY, C_PAYLOADS, C_ROWS, C_WORKERS, Flag, Kind, Latch, Reason, Snapshot

log = logging.getLogger("canarium.monitor")

#: Share of records lost over the last minute above which statistics are not trusted.
LOSS_LIMIT = 0.01
LOSS_SPAN_S = 60.0
#: Traffic as predictions assume it: over this span, ending so long ago (seconds).
RATE_SPAN_S, RATE_LAG_S = 60, 2
#: How long (seconds) and how many records wait for the snapshot of their epoch: gateways may hear of it first.
EARLY_S, EARLY_MAX = 5.0, 20_000


class ModelWatch(Evidence):
    """Everything about one model."""

    def __init__(self, name: str, config: MonitorModel) -> None:
        super().__init__(name, config)
        self.name = name
        self.config = config
        self.windows: dict[str, Window] = {}
        self.objectives = Objectives(config)
        self.early: deque[Event] = deque()
        self.overdue = -1  # the newest epoch whose snapshot was waited for in vain

    def window(self, variant: str) -> Window:
        return self.windows.setdefault(variant, Window())

    def state(self) -> dict[str, Any]:
        return {
            "guards": self.guards.state(),
            "join": self.joiner.state(),
            "reliability": self.reliability.state(),
            "saturation": self.saturation.state(),
            "noise": self.noise.state(),
            "returns": self.returns.state() if self.returns is not None else None,
            "windows": {variant: window.state() for variant, window in self.windows.items()},
            "objectives": self.objectives.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.guards.load(state["guards"])
        self.joiner.load(state["join"])
        self.reliability.load(state["reliability"])
        self.saturation.load(state["saturation"])
        self.noise.load(state["noise"])
        if self.returns is not None and state["returns"] is not None:
            self.returns.load(state["returns"])
        windows = msgspec.convert(state["windows"], dict[str, VariantState], strict=False)
        self.windows = {variant: Window(stored) for variant, stored in windows.items()}
        stored = msgspec.convert(state["objectives"], dict[str, HistoryState], strict=False)
        self.objectives = Objectives(self.config, stored)


class Watch:
    """All models of one node.

    Raises whatever a damaged state raises from `restore`; nothing else raises but bugs and the disk.
    """

    def __init__(self, config: MonitorConfig, clock: Clock, beside: Beside | None = None) -> None:
        self.config = config
        self.clock = clock
        self._began_ns = clock.monotonic_ns()
        self.beside = beside or Beside()
        self.models = {name: ModelWatch(name, model) for name, model in config.models.items()}
        self.ingest = Ingest(config.spool_dir, clock)
        self.snapshot: Snapshot | None = None
        self.foreign = 0  # records of models or series that this monitor does not know
        self.last_record_mono_ns = 0
        self._losses: deque[tuple[float, int, int]] = deque()
        self._latest: dict[Key, Totals] | None = None  # as of the last tick
        self._rows: deque[tuple[float, dict[str, int]]] = deque()  # monotonic seconds, rows asked of each model

    # ------------------------------------------------------------ input

    def apply(self, snapshot: Snapshot) -> bool:
        """Take over a routing snapshot; False if it is of an older lease than the one in force."""
        if self.snapshot is not None and snapshot.lease < self.snapshot.lease:
            return False
        self.snapshot = snapshot
        for model in self.models.values():
            model.guards.configure(snapshot)
        return True

    def step(self, limit: int = CHUNK) -> tuple[int, list[Trip]]:
        """Read what is new, about `limit` records at most: (records read, guards that tripped)."""
        count = 0
        files = len(self.ingest.gateways)
        for chunk in self.ingest.poll(max(256, limit // max(1, files))):  # bounds the time until the loop breathes
            count += len(chunk.records)
            self._feed(chunk)
        self._release()
        return count, [trip for model in self.models.values() for trip in model.guards.trips()]

    def tick(self) -> None:
        """Once a second: look for new and finished files, sample the objectives and the loss."""
        self.ingest.scan()
        self.ingest.settle()
        totals = self._latest = self.ingest.totals()
        now_s = self.clock.wall_ns() / 1e9
        for model in self.models.values():
            if model.config.slo:
                model.objectives.add(now_s, by_model(totals, model.name))
        flow = self.ingest.flow()
        mono_s = self.clock.monotonic_ns() / 1e9
        self._losses.append((mono_s, flow.written, flow.dropped))
        while self._losses[0][0] < mono_s - LOSS_SPAN_S:
            self._losses.popleft()
        rows = dict.fromkeys(self.models, 0)
        for (name, _), item in totals.items():
            if name in rows:
                rows[name] += int(item.cells[C_ROWS])
        self._rows.append((mono_s, rows))
        while self._rows[0][0] < mono_s - RATE_SPAN_S:
            self._rows.popleft()

    def _feed(self, chunk: Chunk) -> None:
        records = chunk.records
        self.last_record_mono_ns = int(records["mono_ns"][-1])
        names = [(self.models.get(model), variant) for model, variant in chunk.series]
        errors = np.zeros(len(records), dtype=bool)
        known = len(names)
        for at, (series, event) in enumerate(events(records, [variant for _, variant in names])):
            model = names[series][0] if series < known else None
            if model is None:
                self.foreign += 1
                continue
            if event.kind == Kind.REQUEST:
                errors[at] = is_error(event, model.guards.baseline)
            if model.early or self._early(model, event.epoch):
                model.early.append(event)
            else:
                model.take(event)
        self._chart(chunk, names, errors)

    def _release(self) -> None:
        """Hand on what waited for its snapshot, in order of arrival; or for too long."""
        now_ns = self.clock.monotonic_ns()
        for model in self.models.values():
            while model.early:
                event = model.early[0]
                if self._early(model, event.epoch):
                    # A time yet to come is one from before a reboot: it has waited since this process began.
                    since_ns = event.mono_ns if event.mono_ns <= now_ns else self._began_ns
                    if now_ns - since_ns < EARLY_S * 1e9 and len(model.early) < EARLY_MAX:
                        break
                    # Cut off from the control plane: those that follow need not wait, and commits go on.
                    model.overdue = event.epoch
                model.early.popleft()
                model.take(event)

    @staticmethod
    def _early(model: ModelWatch, epoch: int) -> bool:
        known = model.guards.epoch
        return known is not None and epoch > max(known, model.overdue)

    @property
    def settled(self) -> bool:
        """Whether all that was read is in the statistics; only then may the state be committed."""
        return not any(model.early for model in self.models.values())

    def _chart(self, chunk: Chunk, names: list[tuple[ModelWatch | None, str]], errors: Any) -> None:
        records = chunk.records
        seconds = (records["wall_ns"] // 1_000_000_000).astype(np.int64)
        served = (records["kind"] == Kind.REQUEST) & (records["flags"] & Flag.CLIENT_FAULT == 0)
        served &= ~np.isin(records["reason"], (Reason.PINNED, Reason.OVERRIDE))  # golden rows are no traffic
        paired = ((records["kind"] == Kind.REFERENCE) | (records["kind"] == Kind.SHADOW)) & (records["status"] == 200)
        by, now_s = records["answered"], self.clock.wall_ns() // 1_000_000_000
        for series in np.unique(records["series"]).tolist():
            model, variant = names[series] if series < len(names) else (None, "")
            if model is None:
                continue
            mine = records["series"] == series
            teachers = [at for at, name in enumerate(names) if name == (model, model.guards.teacher)]
            requests, pairs = mine & served, mine & paired & np.isin(by, teachers)
            window = model.window(variant)
            window.rewind(now_s)
            if requests.any():
                durations = records["total_us"][requests].astype(np.float64)
                window.requests(seconds[requests], durations, errors[requests])
            if pairs.any():
                rows, flips = (records[name][pairs].astype(np.int64) for name in ("rows", "flips"))
                window.pairs(seconds[pairs], rows, flips)

    # ------------------------------------------------------------ output

    @property
    def loss_ratio(self) -> float:
        """Share of the records of the last minute that were dropped."""
        if len(self._losses) < 2:
            return 0.0
        (_, written, dropped), (_, written_now, dropped_now) = self._losses[0], self._losses[-1]
        return min(1.0, (dropped_now - dropped) / max(1, written_now - written))

    @property
    def degraded(self) -> str:
        """Why statistics cannot be trusted now, or ""."""
        loss = self.loss_ratio
        if loss <= LOSS_LIMIT:
            return ""
        return f"{loss * 100:.1f} % of the last minute's records were lost, over {LOSS_LIMIT * 100:g} %"

    @property
    def lag_s(self) -> float:
        """Age of the newest record read while others wait, seconds; 0 when everything is read."""
        if self.ingest.flow().pending <= 0 or not self.last_record_mono_ns:
            return 0.0
        return max(0.0, (self.clock.monotonic_ns() - self.last_record_mono_ns) / 1e9)

    def flow(self) -> Flow:
        return self.ingest.flow()

    def totals(self) -> dict[Key, Totals]:
        return self.ingest.totals()

    def _recent(self) -> dict[Key, Totals]:
        """The totals as of the last tick, which are at most a second old and cost nothing."""
        return self._latest if self._latest is not None else self.totals()

    def unused(self) -> dict[str, int]:
        """Records that were read and that guards did not use, by why, since this process began or its state.

        `foreign`: of an unknown model or series; `late`: too old for the charts, not for guards; `unknown_epoch`:
        nobody knows by what weights it was routed; `before_arming`: from before the candidate was armed.
        """
        models = self.models.values()
        return {
            "foreign": self.foreign,
            "late": sum(window.late for model in models for window in model.windows.values()),
            "unknown_epoch": sum(model.guards.unknown_epochs for model in models),
            "before_arming": sum(model.guards.skipped_epochs for model in models),
        }

    def verdicts(self) -> dict[str, list[Verdict]]:
        """Verdicts by model: the statistical guards of each candidate, the objectives by variant, what runs beside."""
        now_ns, degraded = self.clock.wall_ns(), self.degraded
        return {
            name: [
                *model.guards.verdicts(degraded),
                *(slo_verdict(status, now_ns) for status in model.objectives.status()),
                *self.beside.verdicts(name, model.guards.baseline, now_ns // 1_000_000),
            ]
            for name, model in self.models.items()
        }

    def answering(self, model: str) -> set[str]:
        """The variants of a model that answer requests or copies of them: always the baseline, alone while killed."""
        guards = self.models[model].guards
        if self.snapshot is not None and any(self.snapshot.kills.get(name, Latch()).on for name in (model, "*")):
            return {guards.baseline}
        return {guards.baseline, *(name for name, candidate in guards.candidates.items() if candidate.live)}

    def sampled(self) -> dict[Key, int]:
        """Rows that gateways have sampled of each (model, variant)."""
        return {key: int(item.cells[C_PAYLOADS]) for key, item in self._recent().items()}

    def counts(self) -> dict[str, dict[str, dict[str, float]]]:
        """By model and candidate: `ModelGuards.counts`, and `workers` that take a batch now, also the baseline's."""
        totals = self._recent()
        found: dict[str, dict[str, dict[str, float]]] = {}
        for name, model in self.models.items():
            found[name] = {**model.guards.counts(), model.guards.baseline: {}}
            for variant, counts in found[name].items():
                item = totals.get((name, variant))
                counts["workers"] = int(item.cells[C_WORKERS]) if item is not None else 0
        return found

    def headroom(self) -> dict[str, float | None]:
        """By model: rows a second that its baseline can do, as measured, over those asked of the model lately.

        Under 1 the baseline could not carry the present traffic alone. None while either is not known.
        """
        totals = self._recent()
        found: dict[str, float | None] = dict.fromkeys(self.models)
        if len(self._rows) < 2:
            return found
        (then_s, then), (now_s, now) = self._rows[0], self._rows[-1]
        for name, model in self.models.items():
            item = totals.get((name, model.guards.baseline))
            capacity = int(item.cells[C_CAPACITY]) / 1000 if item is not None else 0.0
            rate = (now[name] - then[name]) / max(1.0, now_s - then_s)
            if capacity and rate > 0:
                found[name] = round(capacity / rate, 3)
        return found

    def assumptions(self) -> dict[str, dict[str, dict[str, float]]]:
        """By model and candidate: `ModelGuards.assumptions`, and the model's requests a second (`rate`)."""
        # The newest second or two are still being written.
        now_s = self.clock.wall_ns() // 1_000_000_000 - RATE_LAG_S
        found: dict[str, dict[str, dict[str, float]]] = {}
        for name, model in self.models.items():
            rate = sum(window.rate(now_s, RATE_SPAN_S) for window in model.windows.values())
            found[name] = {
                variant: {"rate": round(rate, 3), **said} for variant, said in model.guards.assumptions().items()
            }
        return found

    def series(self, name: str, seconds: int) -> dict[str, Any] | None:
        """The console's charts of one model (`/v1/series`); None for an unknown model."""
        model = self.models.get(name)
        if model is None:
            return None
        now_s = self.clock.wall_ns() // 1_000_000_000
        return {
            "model": name,
            "step_s": 1,
            "at": list(range(now_s - seconds, now_s)),
            "variants": {variant: window.series(now_s, seconds) for variant, window in sorted(model.windows.items())},
            "slo": [status for status in model.objectives.status() if status.variant == "*"],
        }

    def calibration(self, name: str) -> dict[str, Any] | None:
        """How calibrated the variants of a model are (`/v1/calibration/MODEL`); None for an unknown model."""
        model = self.models.get(name)
        if model is None:
            return None
        return {"model": name, "teacher": model.guards.teacher, **model.calibration()}

    # ------------------------------------------------------------ storage

    def state(self, actuator: dict[str, Any]) -> bytes:
        """Everything, encoded at one moment."""
        return msgspec.msgpack.encode(
            Committed(
                version=VERSION,
                ingest=msgspec.to_builtins(self.ingest.state()),
                models={name: model.state() for name, model in self.models.items()},
                actuator=actuator,
                snapshot=msgspec.json.encode(self.snapshot) if self.snapshot is not None else b"",
                golden=self.beside.golden_state(self.config.models),
            )
        )

    def restore(self, stored: Committed) -> None:
        """Continue from a commit. Raises `KeyError`, `TypeError` or `ValueError` if it is damaged."""
        ingest = Ingest(self.config.spool_dir, self.clock, msgspec.convert(stored.ingest, IngestState, strict=False))
        for name, state in stored.models.items():
            if name in self.models:
                self.models[name].load(state)
        self.ingest = ingest
        self.ingest.remove_folded(self.ingest.folded_files)
        if stored.snapshot:
            self.snapshot = msgspec.json.decode(stored.snapshot, type=Snapshot)
            for model in self.models.values():
                model.guards.configure(self.snapshot)
        self.beside.load_golden(stored.golden, self.config.models)
