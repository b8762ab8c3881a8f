"""Did the machine stand still? A measurement that it did is worth nothing and is made again."""

from __future__ import annotations

import threading
import time

STEP_S = 0.01


class StallMeter:
    """A thread that wakes every 10 ms and keeps the longest time that it was not let run. A context manager."""

    def __init__(self) -> None:
        self.worst_ms = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> StallMeter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _work(self) -> None:
        before = time.monotonic()
        while not self._ended.wait(STEP_S):
            before, last = time.monotonic(), before
            self.worst_ms = max(self.worst_ms, (before - last - STEP_S) * 1000)
