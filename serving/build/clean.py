"""A clean folder for a while, which nothing outlasts: not even one whose process was killed stays."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.build.cache import BuildError
from serving.registry.files import locked

_PREFIX = ".verify-"
#: Held as long as a folder is in use; the kernel lets go of it when the process ends, however it ends.
_HELD = ".held"


@contextmanager
def clean_folder(parent: Path) -> Iterator[Path]:
    """A new empty folder in `parent`, removed at the end, as are those that processes that were killed have left.

    Raises:
        BuildError: it cannot be made.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with locked(parent / ".verify.lock"):  # so that nobody removes a folder that is not yet held
            _sweep(parent)
            folder = Path(tempfile.mkdtemp(dir=parent, prefix=_PREFIX))
            held = (folder / _HELD).open("ab")
            fcntl.flock(held, fcntl.LOCK_EX)
    except OSError as error:
        raise BuildError(f"cannot make a clean folder in {parent}: {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        held.close()


def _sweep(parent: Path) -> None:
    """Remove the folders that no process holds."""
    for folder in parent.glob(f"{_PREFIX}*/"):
        with (folder / _HELD).open("ab") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(folder, ignore_errors=True)
