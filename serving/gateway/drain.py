"""Leaving before a node goes: `canarium drain` asks, every gateway of the node finishes what it has.

Both sides share one file, `run/drain`. Its time changes when somebody asks. A gateway holds a shared lock on it for as
long as it has requests, so whoever can lock it alone knows that all are done; a crash lets go as well. What was asked
before a gateway started is not meant for it: nothing has to be taken back when the node comes back.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from serving.gateway.dataplane import DataPlane
from serving.transport.http1 import Http1Server

log = logging.getLogger(__name__)

#: How long others may go on sending to one that is not ready any more, seconds: until all of them have noticed.
LEAVE_S = 10.0
#: How long what was asked may take then, seconds: whoever ends the node waits for less.
FINISH_S = 600.0


def ask(path: Path) -> None:
    """Ask all gateways that run now to leave. Raises `OSError`: none has run there yet, or it is not ours."""
    before = path.stat().st_mtime_ns
    later = max(time.time_ns(), before + 1_000_000)  # another time, whatever the clock says
    os.utime(path, ns=(later, later))


def finished(path: Path) -> bool:
    """Whether no gateway there has requests, or takes any. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


class Drain:
    """A gateway's part.

    Args:
        path: the file, made if it is absent.
        plane: is not ready any more once this begins.
        http: ends its connections behind their next answers from then on.
        finish: takes no more connections and answers what was asked, for so many seconds at most.
        sleep: how to wait, in seconds; tests bring their own.
    """

    def __init__(
        self,
        path: Path,
        plane: DataPlane,
        http: Http1Server,
        finish: Callable[[float], Awaitable[None]],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._plane, self._http, self._finish, self._sleep = plane, http, finish, sleep
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)  # waits for no more than a look of `finished`
        self._seen_ns = os.fstat(self._descriptor).st_mtime_ns
        self._leaving: asyncio.Task[None] | None = None

    def look(self) -> None:
        """Begin to leave if that was asked; run on a tick."""
        if self._leaving is None and self._descriptor >= 0 and os.fstat(self._descriptor).st_mtime_ns != self._seen_ns:
            self._leaving = asyncio.get_running_loop().create_task(self._leave())

    async def _leave(self) -> None:
        log.warning("asked to drain: not ready any more; in %g s it takes no more connections", LEAVE_S)
        self._plane.leaving = self._http.leaving = True
        await self._sleep(LEAVE_S)
        await self._finish(FINISH_S)
        self.close()
        log.warning("drained")

    def close(self) -> None:
        """This gateway has no requests and takes none."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
