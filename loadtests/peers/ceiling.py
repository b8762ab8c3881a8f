"""The bare session: the same file in a loop without any server, which is the most that this machine can give.

Batches of 1 to 32 rows on one session with one thread, one with two, and two processes with one thread each. The best
of these, in rows a second, is what the servers are measured against.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from loadtests.peers import cases, models
from loadtests.peers.cases import Case
from loadtests.peers.servers.shared import Model, Row

BATCHES = (1, 4, 8, 16, 32)
#: (processes, threads in each)
SHAPES = ((1, 1), (1, 2), (2, 1))


def ceiling(case: Case, seconds: float) -> list[dict[str, Any]]:
    """Rows a second of each shape and batch size, measured for `seconds` each."""
    return [row for processes, threads in SHAPES for row in _shape(case, processes, threads, seconds)]


def _shape(case: Case, processes: int, threads: int, seconds: float) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "loadtests.peers.ceiling", case.name, str(threads), str(seconds)]
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(command)) for _ in range(processes)]
        for batch in BATCHES:
            for worker in workers:  # all have loaded before any begins
                worker.say(f"{batch}\n")
            results = [json.loads(worker.hear()) for worker in workers]
            yield {
                "processes": processes,
                "threads": threads,
                "batch": batch,
                "rows_per_s": round(sum(each["rows_per_s"] for each in results), 1),
                "ms_per_batch": round(max(each["ms_per_batch"] for each in results), 3),
            }


class _Worker:
    """A process that measures a batch size for every line it is told."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> _Worker:
        self.hear()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise OSError("the bare session ended; its error is above")
        return line


def _measure(model: Model, rows: list[Row], batch: int, seconds: float) -> dict[str, float]:
    batches = [(rows * 2)[at : at + batch] for at in range(0, len(rows), batch)]
    model.predict(batches[0])
    began = now = time.perf_counter()
    done = 0
    while now - began < seconds:
        model.predict(batches[done % len(batches)])
        done += 1
        now = time.perf_counter()
    return {"rows_per_s": done * batch / (now - began), "ms_per_batch": (now - began) / done * 1e3}


def main(name: str, threads: str, seconds: str) -> None:
    """Load the session, say so, and measure every batch size that comes on standard input."""
    (case,) = (case for case in cases.CASES if case.name == name)
    model = Model(models.FOLDER / case.model, int(threads))
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(_measure(model, list(cases.rows(case)), int(line), float(seconds))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
