"""A replica's process for test_audited_worker.py: an ONNX session behind a WorkerServer, audited.

python audited_worker.py SOCKET FOLDER EVERY_S
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

import qdq_kit
from worker_process import serve

from serving.clock import SystemClock
from serving.config_monitoring import GuardsConfig, SaturationGuard
from serving.gateway.auditor import auditor_of
from serving.gateway.worker_server import WorkerServer
from serving.runtimes.onnx import OnnxSession


async def main(path: str, folder: Path, every_s: float) -> None:
    manifest = qdq_kit.manifest()
    guards = GuardsConfig(saturation=SaturationGuard(every_s=every_s))
    auditor = auditor_of(manifest, folder, guards, SystemClock())
    await serve(WorkerServer(OnnxSession(manifest, folder), path, auditor=auditor))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])))
