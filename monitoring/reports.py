"""Drift reports: made in a process of their own when they are due, kept, listed, and turned into verdicts.

At most one is made at a time. A process that takes too long is killed and counted. What comes of a report is an alert:
nothing is rolled back or paused because inputs have changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from monitoring.beside import Beside, described
from monitoring.config import MonitorConfig
from monitoring.drift.job import BUSY, DONE, NO_LIBRARY, REPORTS, STAMP, Job, Summary, job_of
from monitoring.payloads import prune
from serving.clock import Clock

log = logging.getLogger("canarium.monitor")

Key = tuple[str, str]  # (model, variant)
#: How often the folders are looked at (the command line makes reports too) and old files removed, seconds.
LOOK_S, TIDY_S = 5.0, 60.0
#: A first report is tried so long after the start at most, one that could not be made so long after that, seconds.
FIRST_S, AGAIN_S = 600.0, 60.0
_FILE = re.compile(rf"{STAMP.pattern}\.(html|json)")


class Reports:
    """All reports of one monitor.

    Args:
        beside: where the newest summaries and what became of reports are left.
        sampled: rows sampled so far of each (model, variant): no report is due while nothing was added.
    """

    def __init__(
        self, config: MonitorConfig, clock: Clock, beside: Beside, sampled: Callable[[], dict[Key, int]]
    ) -> None:
        self._config = config
        self._beside = beside
        self._clock = clock
        self._sampled = sampled
        self._root = Path(config.state_dir) / REPORTS
        self._process: asyncio.subprocess.Process | None = None
        self._due_s: dict[Key, float] = {}
        self._reported: dict[Key, int] = {}  # rows sampled when its last report was begun
        self._known: dict[Key, list[Summary]] = {}
        self._looked_s = self._tidied_s = float("-inf")
        self._missing = False

    # ------------------------------------------------------------ the loop

    async def step(self) -> None:
        """Once a second: see what there is, remove what is old, make what is due. Returns when that is done."""
        now_s = self._clock.monotonic_ns() / 1e9
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            await self._look()
        if now_s - self._tidied_s >= TIDY_S:
            self._tidied_s = now_s
            await asyncio.to_thread(self._tidy)
        if (key := self._next(now_s)) is not None:
            await self._make(key, now_s)

    def _next(self, now_s: float) -> Key | None:
        sampled = self._sampled()
        for name, model in self._config.models.items():
            if not model.drift.sampled or not model.drift.every_s or self._missing:
                continue
            for variant in model.variants:
                key = (name, variant)
                due = self._due_s.setdefault(key, now_s + min(FIRST_S, model.drift.every_s))
                if now_s >= due and sampled.get(key, 0) > self._reported.get(key, 0):
                    return key
        return None

    async def _make(self, key: Key, now_s: float) -> None:
        settings = self._config.models[key[0]].drift
        self._due_s[key], self._reported[key] = now_s + settings.every_s, self._sampled().get(key, 0)
        job = job_of(self._config, *key, self._clock.wall_ns() // 1_000_000)
        status, words = await self._run(job, settings.timeout_s)
        if status == DONE:
            self._beside.report_results["done"] += 1
            await self._look()
        elif status == BUSY:  # the command line makes one
            self._due_s[key] = now_s + AGAIN_S
            del self._reported[key]
        elif status is None:
            self._beside.report_results["killed"] += 1
            log.error("report on %s of %s: killed after %g s", key[1], key[0], settings.timeout_s)
        else:
            self._beside.report_results["failed"] += 1
            self._missing = status == NO_LIBRARY  # nothing changes that while this process runs
            log.error("report on %s of %s: %s", key[1], key[0], words)

    async def _run(self, job: Job, timeout_s: float) -> tuple[int | None, str]:
        """The exit status, None if it had to be killed, and its last words."""
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
        )
        self._process = process
        try:
            _, errors = await asyncio.wait_for(process.communicate(msgspec.json.encode(job)), timeout_s)
        except TimeoutError:
            return None, ""
        finally:
            await self.close()
        lines = errors.decode(errors="replace").strip().splitlines()
        return process.returncode, lines[-1] if lines else f"ended with {process.returncode}"

    async def close(self) -> None:
        """End the process that is at work, if any."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    # ------------------------------------------------------------ what there is

    async def _look(self) -> None:
        self._known = await asyncio.to_thread(self._read)
        newest = ((key, self._newest(key, summaries)) for key, summaries in self._known.items())
        self._beside.drift = {key: summary for key, summary in newest if summary is not None}

    def _newest(self, key: Key, summaries: list[Summary]) -> Summary | None:
        """The latest on the artifact in use: what was said of its predecessor is no verdict on it."""
        version = self._config.models[key[0]].variants[key[1]].version
        return next((one for one in summaries if one.version == version), None)

    def _read(self) -> dict[Key, list[Summary]]:
        """All summaries, the newest first; those that are known are not read again."""
        known = {(one.model, one.variant, one.stamp): one for many in self._known.values() for one in many}
        found: dict[Key, list[Summary]] = {}
        for name, variant, path in self._files("json"):
            summary = known.get((name, variant, path.stem))
            try:
                summary = summary or msgspec.json.decode(path.read_bytes(), type=Summary)
            except (OSError, ValueError, RecursionError) as error:
                log.warning("%s: %s", path, error)
                continue
            found.setdefault((name, variant), []).insert(0, summary)
        return found

    def _files(self, suffix: str) -> Iterator[tuple[str, str, Path]]:
        for name, model in self._config.models.items():
            for variant in model.variants:
                for path in sorted((self._root / name / variant).glob(f"*.{suffix}")):
                    if _FILE.fullmatch(path.name):
                        yield name, variant, path

    def _tidy(self) -> None:
        now_ms = self._clock.wall_ns() // 1_000_000
        for name, model in self._config.models.items():
            drift = model.drift
            if self._config.payload_dir:
                folder = Path(self._config.payload_dir) / name
                prune(folder, now_ms, int(drift.keep_rows_s * 1000), drift.keep_rows_bytes)
        kept: Counter[Key] = Counter()
        for name, variant, path in reversed(list(self._files("json"))):
            kept[name, variant] += 1
            if kept[name, variant] > self._config.models[name].drift.keep_reports:
                path.unlink(missing_ok=True)
                path.with_suffix(".html").unlink(missing_ok=True)

    def listed(self, model: str | None = None) -> list[dict[str, Any]]:
        """All reports, the newest first, with the paths by which they are fetched."""
        found = [one for (name, _), many in self._known.items() if model in (None, name) for one in many]
        return [described(one) for one in sorted(found, key=lambda one: one.stamp, reverse=True)]

    def file(self, model: str, variant: str, name: str) -> Path | None:
        """A report's file; None for any name that is not that of one."""
        known = self._config.models.get(model)
        if known is None or variant not in known.variants or not _FILE.fullmatch(name):
            return None
        path = self._root / model / variant / name
        return path if path.is_file() else None


#: How a report process is started; a job goes to its standard input.
COMMAND = (sys.executable, "-m", "monitoring.drift.report")


def environment() -> dict[str, str]:
    """Of a report process: one thread of each numerical library, nothing told to anybody."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **threads, "DO_NOT_TRACK": "1"}
