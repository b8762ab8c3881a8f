"""Triton Inference Server with its Python backend: C++ front ends and dynamic batcher, one Python process an instance.

The binaries are those of PyTriton's wheel, run directly: PyTriton's own way in would add a second hop.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

from shared import MAX_BATCH, options

TYPES = {"FP32": "TYPE_FP32", "INT64": "TYPE_INT64", "BYTES": "TYPE_STRING"}


def model_config(about: dict[str, Any], name: str, workers: int) -> str:
    """`config.pbtxt`; shapes leave the first axis out, which is the batch."""

    def tensors(side: str) -> str:
        parts = [
            f'{{name: "{spec["name"]}" data_type: {TYPES[spec["datatype"]]} dims: {spec["shape"][1:] or [1]}}}'
            for spec in about[side]
        ]
        return "[" + ", ".join(parts) + "]"

    return f"""
name: "{name}"
backend: "python"
max_batch_size: {MAX_BATCH}
dynamic_batching {{ max_queue_delay_microseconds: 0 }}
instance_group [{{ kind: KIND_CPU count: {workers} }}]
input {tensors("inputs")}
output {tensors("outputs")}
"""


def layout(folder: Path, model: Path, workers: int, server: Path) -> None:
    """The model repository, and a backend folder with the stub of this Python version."""
    version = folder / "models" / model.name / "1"
    version.mkdir(parents=True)
    shutil.copyfile(Path(__file__).with_name("triton_model.py"), version / "model.py")
    about = json.loads((model / "model.json").read_text())
    (version.parent / "config.pbtxt").write_text(model_config(about, model.name, workers))
    backend = folder / "backends" / "python"
    shutil.copytree(server / "backends" / "python", backend)
    stub = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(server / "python_backend_stubs" / stub / "triton_python_backend_stub", backend)


if __name__ == "__main__":
    given = options()
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        sys.exit("nvidia-pytriton is not installed")
    package = Path(spec.origin).parent
    folder = Path(os.environ["PEER_FOLDER"])
    layout(folder, given.model, given.workers, package / "tritonserver")
    paths = [sysconfig.get_path("purelib"), str(Path(__file__).parent)]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{package.parent / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}",
        "PYTHONHOME": sys.base_prefix,
        "PEER_PATH": os.pathsep.join(paths),
        "PEER_MODEL": str(given.model),
        "PEER_THREADS": str(given.threads),
    }
    binary = package / "tritonserver" / "bin" / "tritonserver"
    command = [str(binary), f"--model-repository={folder / 'models'}", f"--backend-directory={folder / 'backends'}"]
    command += ["--http-address=127.0.0.1", f"--http-port={given.port}", "--allow-metrics=false"]
    command += ["--grpc-address=127.0.0.1", f"--grpc-port={given.grpc_port}", "--log-info=false", "--log-warning=false"]
    os.execve(binary, command, environment)
