"""Journals: files of JSON lines that are only ever appended to, each line chained to the one before.

A line counts once its newline is on disk. What a crash left of an unfinished line is not read, and goes when the next
line is written. `previous` is the SHA-256 of the line before, so that no line in the middle can be edited, dropped or
moved unnoticed (the last ones can: an append-only file cannot prove that nothing came after its end).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec

from serving.decoding import UNREADABLE
from serving.errors import RegistryError
from serving.registry.files import sync_folder

Line = dict[str, Any]


class Journal:
    """One such file. Reading needs no lock; only one process at a time may append.

    Args:
        path: the file; it need not exist until something is appended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[Line]:
        """Every whole line, oldest first. Raises `RegistryError` naming a line that cannot be read."""
        return [self._decode(number, raw) for number, raw in enumerate(self._raw()[0], 1)]

    def append(self, line: Line) -> None:
        """Add a line; it is on disk when this returns. Raises `OSError`."""
        whole, torn = self._raw()
        data = msgspec.json.encode(line | {"previous": _digest(whole[-1]) if whole else ""}) + b"\n"
        new = not self.path.exists()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            if torn:
                os.ftruncate(descriptor, sum(len(raw) + 1 for raw in whole))
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            sync_folder(self.path.parent)

    @property
    def torn(self) -> bool:
        """Whether the end of a line is missing that a process was writing when it died."""
        return bool(self._raw()[1])

    def faults(self) -> list[str]:
        """What is wrong with the lines, one sentence each."""
        found, before, chained = [], "", False
        for number, raw in enumerate(self._raw()[0], 1):
            try:
                previous = self._decode(number, raw).get("previous")
            except RegistryError as error:
                found.append(str(error))
                previous = None
            else:
                # Journals from before the chain begin without it.
                if (previous is not None or chained) and previous != before:
                    found.append(f"{self.path}:{number}: does not follow the line before it; a line was edited or lost")
            chained, before = chained or previous is not None, _digest(raw)
        return found

    def _raw(self) -> tuple[list[bytes], bytes]:
        """The whole lines without their newlines, and what is left of one that was not finished."""
        try:
            *whole, torn = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return [], b""
        return whole, torn

    def _decode(self, number: int, raw: bytes) -> Line:
        try:
            return msgspec.json.decode(raw, type=Line)
        except UNREADABLE as error:
            raise RegistryError(
                f"{self.path}:{number}: not a line of the journal: {error}; restore the file from a copy"
            ) from error


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
