"""Why a kill was set in the control word, for the audit log: the word itself has room for a number and nothing else.

One JSON line a kill in a file beside the word. The control plane takes the lines over with the kills and removes the
file. Whoever can write here can write the word, so what a line says is believed as far as the word is.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from serving.core.killswitch import KillNote

FILE = "control.kills"
#: Bytes. Of more than that nobody has taken notice for thousands of kills: it begins anew.
FILE_MAX = 256 * 1024
#: Characters of an actor or a reason.
TEXT_MAX = 1000


def beside(word: str | Path) -> Path:
    """The file for the word at this path."""
    return Path(word).with_name(FILE)


def leave(path: Path, note: KillNote) -> None:
    """Append a note. Raises `OSError`."""
    words = {name: _whole(text)[:TEXT_MAX] for name, text in (("actor", note.actor), ("reason", note.reason))}
    line = msgspec.json.encode(msgspec.structs.replace(note, **words))
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.fstat(descriptor).st_size > FILE_MAX:
            os.ftruncate(descriptor, 0)
        os.write(descriptor, b"\n%s\n" % line)  # one call: two kills at once do not mix; first the end of a torn line
    finally:
        os.close(descriptor)


def read(path: Path) -> tuple[KillNote, ...]:
    """The notes that can be read, in their order; none if there is no file."""
    try:
        with path.open("rb") as file:
            lines = file.read(2 * FILE_MAX).split(b"\n")
    except OSError:
        return ()
    found = []
    for line in filter(None, lines):
        try:
            found.append(msgspec.json.decode(line, type=KillNote))
        except msgspec.DecodeError:  # torn: the kill counts, its words are lost
            continue
    return tuple(found)


def _whole(text: str) -> str:
    """Without what no JSON can hold: bytes of a command line that were no text."""
    return text.encode("utf-8", "replace").decode()
