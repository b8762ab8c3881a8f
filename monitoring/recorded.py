"""Reading recorded events: spools, live ones included, and Parquet files. Nothing is changed or removed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from monitoring import parquet
from monitoring.ingest import CHUNK
from monitoring.recording import Recording, merged
from monitoring.spoolfile import PATIENCE, SpoolFile
from serving.contract import RECORD_DTYPE, SPOOL_SUFFIX


class Found(msgspec.Struct):
    """What the files held.

    Args:
        lost: records that the rings had overwritten already; of all models.
        corrupt: records that are not what was written; of all models.
        unreadable: for each file that could not be read, why.
    """

    recording: Recording
    files: int = 0
    lost: int = 0
    corrupt: int = 0
    unreadable: list[str] = []


def read(paths: Sequence[Path], model: str, since_ns: int = 0, until_ns: int = 1 << 63) -> Found:
    """The records of one model, from files and from folders of files.

    Raises:
        ValueError: a folder without such files, or no record of the model; the message says what there is.
    """
    parts: list[Recording] = []
    found = Found(merged([], model))
    for path in [file for given in paths for file in _files(given)]:
        try:
            parts.append(parquet.read(path) if parquet.is_parquet(path) else _spool(path, found))
        except parquet.MissingError:
            raise
        except (OSError, ValueError) as error:
            text = str(error)
            found.unreadable.append(text if str(path) in text else f"{path}: {text}")
        else:
            found.files += 1
    found.recording = merged(parts, model, since_ns, until_ns)
    if not len(found.recording.records):
        raise ValueError(_nothing(model, parts, found.unreadable))
    return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in (SPOOL_SUFFIX, parquet.SUFFIX))
    if not files:
        raise ValueError(
            f"{path}: holds no *{SPOOL_SUFFIX} and no *{parquet.SUFFIX}; "
            "the spools of an instance are in run/spool of its state directory"
        )
    return files


def _nothing(model: str, parts: list[Recording], unreadable: list[str]) -> str:
    models = sorted({name for part in parts for name, _ in part.series})
    there = f"there are records of {', '.join(models)}" if models else "there are no records at all"
    if model in models:
        there = "none is from the time asked for"
    return "\n".join([f"no records of the model {model!r}: {there}", *unreadable])


def _spool(path: Path, found: Found) -> Recording:
    """All that a spool holds now. Raises `OSError` or `ValueError` if it is none."""
    file = SpoolFile(path)
    try:
        for _ in range(PATIENCE):  # a newest record that is damaged is waited for so often, then passed over
            file.poll(0)
        end = file.position.accepted
        chunks = [np.empty(0, dtype=RECORD_DTYPE)]
        while file.position.next <= end:  # a live one goes on: what it had at the start is enough
            chunks.append(file.poll(CHUNK))
        records = np.concatenate(chunks)
        found.lost += file.position.lost
        found.corrupt += file.position.corrupt
        return Recording(
            [(model, variant) for model, variant in file.meta.series],
            [file.nonce],
            np.zeros(len(records), dtype=np.int64),
            records,
        )
    finally:
        file.close()
