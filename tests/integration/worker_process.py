"""A replica's process for test_workers.py: a session that does as its input says, behind a WorkerServer.

python worker_process.py SOCKET [MAX_QUEUE]
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping

import numpy as np
import uvloop

from serving.gateway.worker_server import WorkerServer


class Obedient:
    """Returns its inputs (numbers doubled) after `sleep_ms`, and once the file `until` is there, or raises what `fail`
    says."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = dict(inputs)
        if (fail := arrays.pop("fail", None)) is not None:
            raise RuntimeError(f"{fail[0].decode()}\nsecond line")
        if (pause := arrays.pop("sleep_ms", None)) is not None:
            time.sleep(float(pause[0]) / 1000)
        if (gate := arrays.pop("until", None)) is not None:
            deadline = time.monotonic() + 120  # no process is to outlive its test for long
            while not os.path.exists(gate[0]) and time.monotonic() < deadline:
                time.sleep(0.005)
        if arrays.pop("unfit", None) is not None:
            return {"y": np.zeros(2, complex)}
        return {name: array if array.dtype.hasobject else array * 2 for name, array in arrays.items()}

    def close(self) -> None:
        pass


async def main(path: str, max_queue: int) -> None:
    await serve(WorkerServer(Obedient(), path, max_queue=max_queue, description={"variant": "obedient"}))


async def serve(server: WorkerServer) -> None:
    """Until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await server.start()
    await stop.wait()
    await server.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 32))
