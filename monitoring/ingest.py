"""All spools of this node: what is new in them, and what they add up to.

Totals are the counters of live files plus those of finished ones, which are drained, folded into
the totals and removed. `written = consumed + dropped + pending` holds at every moment. The whole
state (positions and folded totals) is one value, committed together with the statistics that were
made from it; a file is removed only after the commit that folded it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from monitoring.spoolfile import GAUGES, Cells, Position, Records, SpoolFile
from serving.clock import Clock
from serving.contract import C_LATENCY, CELLS, LATENCY_CELLS, SPOOL_SUFFIX

log = logging.getLogger("canarium.monitor")

Key = tuple[str, str]  # (model, variant)
#: A writer is gone only after so long without a beat: its pid may be in another namespace.
SILENT_NS = 5_000_000_000
FILES_MAX = 256  # spools read at once; more wait for the next ones to finish
CHUNK = 8192


class Chunk(msgspec.Struct):
    """Intact records of one file, in order; `series[i]` names what their series id i means."""

    gateway: str
    series: list[Key]
    records: Records


class Totals(msgspec.Struct):
    """Counters of one (model, variant) over all files, live and finished.

    `cells` (u64, `contract.C_*`) without the latency cells; `latency` maps the upper bound of each
    bucket in milliseconds (inf for the last) to its count.
    """

    cells: Cells
    latency: dict[float, int]


class Flow(msgspec.Struct, frozen=True):
    """Records by what became of them. `lost`: overwritten unread; `corrupt`: damaged."""

    written: int
    consumed: int
    lost: int
    corrupt: int
    pending: int

    @property
    def dropped(self) -> int:
        return self.lost + self.corrupt


class FoldedSeries(msgspec.Struct):
    model: str
    variant: str
    cells: list[int]
    latency: list[tuple[float, int]]


class IngestState(msgspec.Struct):
    """What is stored between runs."""

    positions: dict[str, Position] = {}
    folded: list[FoldedSeries] = []
    folded_files: list[str] = []
    written: int = 0
    consumed: int = 0
    lost: int = 0
    corrupt: int = 0


class Ingest:
    """Reads every spool in a directory. `scan` finds files, `poll` reads, `settle` retires the dead."""

    def __init__(self, spool_dir: str | Path, clock: Clock, state: IngestState | None = None) -> None:
        self._directory = Path(spool_dir)
        self._clock = clock
        self._files: dict[str, SpoolFile] = {}
        self._header_errors = 0  # of files that are folded
        self._bad: dict[str, tuple[int, int]] = {}
        self.bad_files = 0
        self._state = state or IngestState()
        self._folded = {(item.model, item.variant): _totals(item) for item in self._state.folded}

    # ------------------------------------------------------------ reading

    def scan(self) -> None:
        """Open new files; forget none. What is no spool is counted once and left alone."""
        try:
            names = sorted(entry.name for entry in os.scandir(self._directory) if entry.name.endswith(SPOOL_SUFFIX))
        except OSError:
            return
        self._bad = {name: seen for name, seen in self._bad.items() if name in set(names)}
        for name in names:
            nonce = name.removesuffix(SPOOL_SUFFIX)
            if nonce not in self._files and nonce not in self._state.folded_files and len(self._files) < FILES_MAX:
                self._open(nonce, self._directory / name)

    def _open(self, nonce: str, path: Path) -> None:
        try:
            status = path.stat()
            if self._bad.get(path.name) == (status.st_size, status.st_mtime_ns):
                return
            self._bad[path.name] = (status.st_size, status.st_mtime_ns)
            self._files[nonce] = SpoolFile(path, self._state.positions.get(nonce))
            del self._bad[path.name]
        except (OSError, ValueError) as error:
            self.bad_files += 1
            log.warning("spool left alone: %s", error)

    def poll(self, limit: int = CHUNK) -> Iterator[Chunk]:
        """New records, at most `limit` of each file."""
        for file in list(self._files.values()):
            try:
                records = file.poll(limit)
            except OSError as error:
                log.warning("%s: %s", file.path, error)
                continue
            if len(records):
                yield Chunk(file.meta.gateway, [(model, variant) for model, variant in file.meta.series], records)

    def settle(self) -> bool:
        """Fold finished files whose records are all read. True if any was: commit, then `remove_folded`."""
        known = len(self._files)
        for file in [file for file in self._files.values() if file.pending <= 0 and self._finished(file)]:
            file.poll(0)
            if file.pending <= 0 and not file.in_doubt:
                self._fold(file)
        return len(self._files) < known

    @property
    def folded_files(self) -> list[str]:
        """Nonces of files that are folded into the totals and not removed yet."""
        return list(self._state.folded_files)

    def remove_folded(self, nonces: list[str]) -> None:
        """Remove files, all of which a commit that has reached the disk has folded."""
        for nonce in nonces:
            try:
                (self._directory / f"{nonce}{SPOOL_SUFFIX}").unlink(missing_ok=True)
                self._state.folded_files.remove(nonce)
            except (OSError, ValueError) as error:
                log.warning("spool %s: cannot be removed: %s", nonce, error)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    # ------------------------------------------------------------ totals

    def totals(self) -> dict[Key, Totals]:
        """Counters per (model, variant); reads the aggregate pages afresh."""
        sums = {key: Totals(item.cells.copy(), dict(item.latency)) for key, item in self._folded.items()}
        for file in self._files.values():
            try:
                file.refresh_cells()
            except OSError as error:
                log.warning("%s: %s", file.path, error)
            _add_file(sums, file, gauges=True)
        return sums

    def flow(self) -> Flow:
        """What became of all records ever written."""
        here = [file.position for file in self._files.values()]
        state = self._state
        return Flow(
            written=state.written + sum(position.accepted for position in here),
            consumed=state.consumed + sum(position.consumed for position in here),
            lost=state.lost + sum(position.lost for position in here),
            corrupt=state.corrupt + sum(position.corrupt for position in here),
            pending=sum(position.accepted - position.next + 1 for position in here),
        )

    @property
    def header_errors(self) -> int:
        """Looks at files whose header could not be believed, since this process began."""
        return self._header_errors + sum(file.header_errors for file in self._files.values())

    @property
    def gateways(self) -> list[str]:
        """Names of the processes whose spools are being read."""
        return sorted(file.meta.gateway for file in self._files.values())

    def state(self) -> IngestState:
        """The state to commit."""
        state = self._state
        state.positions = {nonce: msgspec.structs.replace(file.position) for nonce, file in self._files.items()}
        state.folded = [
            FoldedSeries(model, variant, item.cells.tolist(), sorted(item.latency.items()))
            for (model, variant), item in self._folded.items()
        ]
        return state

    # ------------------------------------------------------------ finished files

    def _finished(self, file: SpoolFile) -> bool:
        if file.closed or file.gone:
            return True
        silent_ns = self._clock.monotonic_ns() - file.beat_mono_ns
        if silent_ns < 0:
            return True  # a beat from the future is one from before a reboot
        return silent_ns > SILENT_NS and not _runs(file.pid, file.start_wall_ns)

    def _fold(self, file: SpoolFile) -> None:
        try:
            file.refresh_cells()
        except OSError as error:
            log.warning("%s: %s", file.path, error)
        _add_file(self._folded, file, gauges=False)
        position, state = file.position, self._state
        state.written += position.accepted
        state.consumed += position.consumed
        state.lost += position.lost
        state.corrupt += position.corrupt
        state.folded_files.append(file.nonce)
        self._header_errors += file.header_errors
        del self._files[file.nonce]
        file.close()


def _totals(item: FoldedSeries) -> Totals:
    cells = np.zeros(CELLS, dtype=np.uint64)
    cells[: len(item.cells)] = item.cells[:CELLS]
    return Totals(cells, dict(item.latency))


def _add_file(sums: dict[Key, Totals], file: SpoolFile, gauges: bool) -> None:
    for index, (model, variant) in enumerate(file.meta.series):
        item = sums.setdefault((model, variant), Totals(np.zeros(CELLS, dtype=np.uint64), {}))
        cells = file.cells[index].copy()
        bounds = [*file.meta.latency_buckets_ms.get(model, []), float("inf")]
        for bound, count in zip(bounds, cells[C_LATENCY : C_LATENCY + LATENCY_CELLS].tolist(), strict=False):
            item.latency[bound] = item.latency.get(bound, 0) + count
        cells[C_LATENCY : C_LATENCY + LATENCY_CELLS] = 0
        if not gauges:
            cells[list(GAUGES)] = 0
        item.cells += cells


def _runs(pid: int, start_wall_ns: int) -> bool:
    """Whether the process that started at that time still runs (its pid may have been given away)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    except (OSError, StopIteration):
        return False
    ticks = int(stat.rsplit(b")", 1)[1].split()[19])
    started_s = int(boot.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
    return started_s < start_wall_ns / 1e9 + 2.0
