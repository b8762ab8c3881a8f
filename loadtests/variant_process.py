"""An isolated variant's process without Ray: an artifact's session behind a `WorkerServer`, until SIGTERM.

python -m loadtests.variant_process REGISTRY ARTIFACT RUNTIME SOCKET
"""

from __future__ import annotations

import asyncio
import signal
import sys

import uvloop

from serving.gateway.worker_server import WorkerServer
from serving.registry.store import Registry
from serving.runtimes.base import open_session


async def main(registry: str, artifact: str, runtime: str, socket: str) -> None:
    """Serve until told to stop."""
    manifest, folder = Registry(registry).open(artifact)
    server = WorkerServer(open_session(manifest, folder, runtime=runtime, threads=1), socket)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await server.start()
    await stop.wait()
    await server.close(drain_s=1)


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:5]))
