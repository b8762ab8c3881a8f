"""The bare session: the same file in a loop without any server, which is the most that this machine can give.

Batches of 1 to 32 rows on one session with one thread, one with two, and two processes with one thread each. The best
of these, in rows a second, is what the servers are measured against.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from loadtests.peers import cases, models
from loadtests.peers.cases import Case
from loadtests.peers.servers.shared import Model

BATCHES = (1, 4, 8, 16, 32)
#: (processes, threads in each)
SHAPES = ((1, 1), (1, 2), (2, 1))


def ceiling(case: Case, seconds: float) -> list[dict[str, Any]]:
    """Rows a second of each shape and batch size, measured for `seconds` each."""
    found = []
    for processes, threads in SHAPES:
        for batch in BATCHES:
            command = [sys.executable, "-m", "loadtests.peers.ceiling", case.name]
            command += [str(threads), str(batch), str(seconds)]
            running = [
                subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
                for _ in range(processes)
            ]
            for each in running:  # all are ready before any begins
                assert each.stdout is not None
                each.stdout.readline()
            for each in running:
                assert each.stdin is not None
                each.stdin.write("go\n")
                each.stdin.flush()
            results = [json.loads(each.communicate(timeout=seconds + 60)[0]) for each in running]
            found.append(
                {
                    "processes": processes,
                    "threads": threads,
                    "batch": batch,
                    "rows_per_s": round(sum(each["rows_per_s"] for each in results), 1),
                    "ms_per_batch": round(max(each["ms_per_batch"] for each in results), 3),
                }
            )
    return found


def _loop(case: Case, threads: int, batch: int, seconds: float) -> dict[str, float]:
    model = Model(models.FOLDER / case.model, threads)
    rows = list(cases.rows(case))
    batches = [(rows * 2)[at : at + batch] for at in range(0, len(rows), batch)]
    for each in batches:
        model.predict(each)
    print("ready", flush=True)
    sys.stdin.readline()
    began = now = time.perf_counter()
    done = 0
    while now - began < seconds:
        model.predict(batches[done % len(batches)])
        done += 1
        now = time.perf_counter()
    return {"rows_per_s": done * batch / (now - began), "ms_per_batch": (now - began) / done * 1e3}


if __name__ == "__main__":
    name, *numbers = sys.argv[1:]
    (one,) = (case for case in cases.CASES if case.name == name)
    print(json.dumps(_loop(one, int(numbers[0]), int(numbers[1]), float(numbers[2]))))
