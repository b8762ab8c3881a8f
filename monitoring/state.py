"""The monitor's memory on disk: one file, replaced as a whole, so that a crash loses nothing twice."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import msgspec

log = logging.getLogger("canarium.monitor")

FILE = "state.msgpack"
VERSION = 14


class Committed(msgspec.Struct):
    """Where reading stopped and everything that was concluded until there."""

    version: int
    ingest: dict[str, Any]
    models: dict[str, Any]
    actuator: dict[str, Any]
    snapshot: bytes = b""
    golden: dict[str, Any] = {}


def read(directory: str | Path) -> Committed | None:
    """The last commit; None if there is none. A damaged one is set aside, with a warning."""
    path = Path(directory) / FILE
    try:
        stored = msgspec.msgpack.decode(path.read_bytes(), type=Committed)
        if stored.version != VERSION:
            raise ValueError(f"version {stored.version}, expected {VERSION}")
        return stored
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        set_aside(directory, error)
        return None


def set_aside(directory: str | Path, error: Exception) -> None:
    """Keep an unusable state file under another name: the monitor starts anew."""
    path = Path(directory) / FILE
    log.error("%s: cannot be used (%s), starting from nothing; kept as %s.bad", path, error, FILE)
    try:
        path.replace(path.with_name(f"{FILE}.bad"))
    except OSError as problem:
        log.error("%s: cannot be renamed: %s", path, problem)


def write(directory: str | Path, payload: bytes) -> None:
    """Replace the state file: write, fsync, rename, fsync the directory. Raises `OSError`."""
    folder = Path(directory)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = folder / f"{FILE}.new"
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(payload)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    unfinished.replace(folder / FILE)
    entry = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)
