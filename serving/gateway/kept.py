"""The last published snapshot in a file, by which a gateway starts while the control plane is dead."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from serving.paths import write_private


class KeptSnapshot:
    """Writes beside whoever tells it of snapshots: a slow disk must not hold up the next one.

    Args:
        path: the file; replaced as a whole.
        write: writes it (blocking; called in a thread).
    """

    def __init__(self, path: Path, write: Callable[[Path, bytes], object] = write_private) -> None:
        self._path = path
        self._write = write
        self._next: bytes | None = None
        self._task: asyncio.Task[None] | None = None

    def keep(self, encoded: bytes) -> None:
        """Have it written; while another is, only the newest waits."""
        self._next = encoded
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def written(self) -> None:
        """Wait until nothing is left to be written."""
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while (encoded := self._next) is not None:
            self._next = None
            with contextlib.suppress(OSError):  # a full disk must not stop a gateway
                await asyncio.to_thread(self._write, self._path, encoded)
