"""The files of sampled rows: their names, and what is removed when.

ROOT/MODEL/START-GATEWAY.jsonl      as a gateway writes it, a JSON line a row
ROOT/MODEL/START-GATEWAY.parquet    the same rows, once it is finished; while both are there this one counts
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import NamedTuple

LINES, PARQUET = ".jsonl", ".parquet"
#: A gateway ends a file after an hour at most; after so long nobody writes to it any more (milliseconds).
FINISHED_MS = 3_900_000
_NAME = re.compile(r"(\d{13})-[A-Za-z0-9-]+\.(jsonl|parquet)")


class Segment(NamedTuple):
    """One file of rows; `start_ms` is when it was begun, milliseconds since the epoch."""

    start_ms: int
    path: Path
    size: int

    def finished(self, now_ms: int) -> bool:
        return now_ms - self.start_ms > FINISHED_MS


def segments(folder: Path) -> list[Segment]:
    """The files of one model, the oldest first, each row in one of them only."""
    found: dict[str, Segment] = {}
    for path in _files(folder):
        match = _NAME.fullmatch(path.name)
        if match is None or (path.suffix == LINES and path.stem in found):
            continue
        with contextlib.suppress(OSError):
            found[path.stem] = Segment(int(match[1]), path, path.stat().st_size)
    return sorted(found.values())


def prune(folder: Path, now_ms: int, keep_ms: int, keep_bytes: int) -> int:
    """Remove files begun over `keep_ms` ago, and the oldest beyond `keep_bytes`; returns how many."""
    removed, total = 0, 0
    for segment in reversed(segments(folder)):
        total += segment.size
        # A gateway ends a file after an hour or a quarter of `keep_ms`: not much of one that goes is younger.
        if now_ms - segment.start_ms > keep_ms or total > keep_bytes:
            for suffix in (LINES, PARQUET):
                with contextlib.suppress(OSError):
                    segment.path.with_suffix(suffix).unlink(missing_ok=True)
            removed += 1
    return removed


def _files(folder: Path) -> list[Path]:
    """Parquet before lines. A folder that is not there has none."""
    try:
        return sorted(folder.iterdir(), key=lambda path: (path.suffix != PARQUET, path.name))
    except OSError:
        return []
