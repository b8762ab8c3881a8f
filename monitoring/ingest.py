"""All spools of this node: what is new in them, and what they add up to.

Totals are the counters of live files plus those of finished ones, which are drained, folded into
the totals and removed. `written = consumed + dropped + pending` holds at every moment. The whole
state (positions and totals) is one value, committed together with the statistics that were made from
it; a file is removed only after the commit that folded it. What a commit holds of a file is never
taken back, whether the file is older after a loss of power, unreadable or gone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from monitoring.spoolfile import GAUGES, Cells, Kept, Records, SpoolFile
from serving.clock import Clock, boot_id, suspended_ns
from serving.contract import C_LATENCY, CELLS, LATENCY_CELLS, SPOOL_SUFFIX, SpoolMeta

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

    files: dict[str, Kept] = {}
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
        self._boot = boot_id()
        self._files: dict[str, SpoolFile] = {}
        self._header_errors = 0  # of files that are folded
        self._bad: dict[str, tuple[int, int]] = {}
        self.bad_files = 0
        self._state = state or IngestState()
        self._kept = dict(self._state.files)  # files of the last commit that are not open
        self._listed: set[str] | None = None  # as of the last look; None before the first
        self._folded = {(item.model, item.variant): _totals(item) for item in self._state.folded}

    # ------------------------------------------------------------ reading

    def scan(self) -> None:
        """Open new files; forget none. What is no spool is counted once and left alone."""
        try:
            names = sorted(entry.name for entry in os.scandir(self._directory) if entry.name.endswith(SPOOL_SUFFIX))
        except OSError:
            return
        self._listed = listed = set(names)
        self._bad = {name: seen for name, seen in self._bad.items() if name in listed}
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
            self._files[nonce] = SpoolFile(path, self._kept.get(nonce))
            self._kept.pop(nonce, None)
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
        known = len(self._files) + len(self._kept)
        for nonce in [nonce for nonce, kept in self._kept.items() if self._lost(nonce) and self._dead(kept)]:
            self._fold(nonce, self._kept.pop(nonce))
        for file in [file for file in self._files.values() if file.pending <= 0 and self._finished(file)]:
            file.poll(0)
            if file.pending <= 0 and not file.in_doubt:
                self._retire(file)
        return len(self._files) + len(self._kept) < known

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
            _add(sums, file.meta, file.cells, gauges=True)
        for kept in self._kept.values():
            _add(sums, kept.meta, np.array(kept.cells, dtype=np.uint64), gauges=False)
        return sums

    def flow(self) -> Flow:
        """What became of all records ever written."""
        here = [file.position for file in self._files.values()] + [kept.position for kept in self._kept.values()]
        state = self._state
        return Flow(
            written=state.written + sum(position.accepted for position in here),
            consumed=state.consumed + sum(position.consumed for position in here),
            lost=state.lost + sum(position.lost for position in here),
            corrupt=state.corrupt + sum(position.corrupt for position in here),
            pending=sum(position.pending for position in here),
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
        state.files = {**self._kept, **{nonce: file.kept() for nonce, file in self._files.items()}}
        state.folded = [
            FoldedSeries(model, variant, item.cells.tolist(), sorted(item.latency.items()))
            for (model, variant), item in self._folded.items()
        ]
        return state

    # ------------------------------------------------------------ finished files

    def _finished(self, file: SpoolFile) -> bool:
        return file.closed or file.gone or self._dead(file)

    def _dead(self, file: SpoolFile | Kept) -> bool:
        """Whether the process that wrote it is no more."""
        if file.boot and self._boot and file.boot != self._boot:
            return True
        silent_ns = self._clock.monotonic_ns() - file.beat_mono_ns
        if silent_ns < 0:
            return True  # a beat from the future is one from before a reboot
        return silent_ns > SILENT_NS and not _runs(file.pid, file.start_mono_ns)

    def _lost(self, nonce: str) -> bool:
        """Whether a file of the last commit is not there any more, or is there and cannot be read."""
        name = f"{nonce}{SPOOL_SUFFIX}"
        return self._listed is not None and (name not in self._listed or name in self._bad)

    def _retire(self, file: SpoolFile) -> None:
        try:
            file.refresh_cells()
        except OSError as error:
            log.warning("%s: %s", file.path, error)
        self._fold(file.nonce, file.kept())
        self._header_errors += file.header_errors
        del self._files[file.nonce]
        file.close()

    def _fold(self, nonce: str, kept: Kept) -> None:
        if kept.cells:
            _add(self._folded, kept.meta, np.array(kept.cells, dtype=np.uint64), gauges=False)
        position, state = kept.position, self._state
        state.written += position.accepted
        state.consumed += position.consumed
        state.lost += position.lost + position.pending
        state.corrupt += position.corrupt
        state.folded_files.append(nonce)


def _totals(item: FoldedSeries) -> Totals:
    cells = np.zeros(CELLS, dtype=np.uint64)
    cells[: len(item.cells)] = item.cells[:CELLS]
    return Totals(cells, dict(item.latency))


def _add(sums: dict[Key, Totals], meta: SpoolMeta, blocks: Cells, gauges: bool) -> None:
    for index, (model, variant) in enumerate(meta.series):
        item = sums.setdefault((model, variant), Totals(np.zeros(CELLS, dtype=np.uint64), {}))
        cells = blocks[index].copy()
        bounds = [*meta.latency_buckets_ms.get(model, []), float("inf")]
        for bound, count in zip(bounds, cells[C_LATENCY : C_LATENCY + LATENCY_CELLS].tolist(), strict=False):
            item.latency[bound] = item.latency.get(bound, 0) + count
        cells[C_LATENCY : C_LATENCY + LATENCY_CELLS] = 0
        if not gauges:
            cells[list(GAUGES)] = 0
        item.cells += cells


def _runs(pid: int, start_mono_ns: int) -> bool:
    """Whether the process that had begun by then still runs (its pid may have been given away).

    By no wall clock, which may be set meanwhile. Processes' ages go on while the machine sleeps and the monotonic clock
    does not: when it slept is not known, so all of it is allowed for.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    started_s = int(stat.rsplit(b")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    return started_s < (start_mono_ns + suspended_ns()) / 1e9 + 2.0
