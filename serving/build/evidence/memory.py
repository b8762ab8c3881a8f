"""Memory of a session, measured in a process of its own: `python -m serving.build.evidence.memory < REQUEST`.

In the process of a build the number would be everyone's: torch, the data and the models measured before.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np

from serving.registry.manifest import Manifest

_LIMIT_S = 300


class Request(msgspec.Struct, frozen=True):
    """What to load and run: a manifest's JSON, its folder, a runtime, and `.npy` files of the session's inputs."""

    manifest: Manifest
    folder: str
    runtime: str
    inputs: dict[str, str]
    runs: int = 20


class Memory(msgspec.Struct, frozen=True):
    """Bytes resident: of the whole process after `runs`, its peak, and what loading and running the model added."""

    process_bytes: int
    peak_bytes: int
    model_bytes: int


def measure(
    manifest: Manifest, folder: Path, *, runtime: str, inputs: dict[str, np.ndarray], scratch: Path
) -> Memory | None:
    """Open a session in a process of its own with one thread, run it, and tell what it took.

    Args:
        inputs: session tensors of one batch.
        scratch: a folder for them, emptied afterwards.

    Returns:
        None where the system does not tell (no `/proc`).

    Raises:
        RuntimeError: the process failed; carries what it said last.
    """
    if not Path("/proc/self/status").exists():
        return None
    paths = {name: scratch / f"{name}.npy" for name in inputs}
    try:
        for name, path in paths.items():
            np.save(path, inputs[name])
        request = Request(manifest, str(folder), runtime, {name: str(path) for name, path in paths.items()})
        done = subprocess.run(
            [sys.executable, "-m", "serving.build.evidence.memory"],
            input=msgspec.json.encode(request),
            capture_output=True,
        )
    finally:
        for path in paths.values():
            path.unlink(missing_ok=True)
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise RuntimeError(f"measuring memory failed: {last}")
    return msgspec.json.decode(done.stdout, type=Memory)


def _status(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _main() -> None:
    from serving.runtimes.base import open_session

    signal.alarm(_LIMIT_S)  # a runtime that hangs must not hang the build
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    inputs = {name: np.load(path) for name, path in request.inputs.items()}
    if request.runtime == "torch":  # the library itself is no part of the model
        import torch

        torch.set_num_threads(1)
    else:
        import onnxruntime  # noqa: F401
    before = _status("VmRSS")
    session = open_session(request.manifest, Path(request.folder), runtime=request.runtime, threads=1)
    for _ in range(request.runs):
        session.run(inputs)
    after = _status("VmRSS")
    memory = Memory(after, _status("VmHWM"), max(0, after - before))
    sys.stdout.buffer.write(msgspec.json.encode(memory))


if __name__ == "__main__":
    _main()
