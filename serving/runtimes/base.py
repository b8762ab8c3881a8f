"""What every runtime offers: a session takes arrays by name and gives arrays by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from serving.errors import RegistryError
from serving.registry.manifest import Manifest

#: runtime -> the artifact format it loads
FORMATS = {"onnxruntime": "onnx", "torch": "torch"}

#: Open Inference Protocol element type -> numpy element type of session tensors (no strings).
NUMPY_TYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}


TorchMode = Literal["eager", "compiled", "bfloat16", "torchao"]


class Session(Protocol):
    """A loaded model. `run` may be called from several threads at once and releases the GIL."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the outputs named in the manifest's `session` signature.

        Raises:
            ValueError: the names are not those of the signature.
            RuntimeError: the runtime failed.
        """
        ...

    def share(self) -> Session:
        """Another session over the same weights; each is ended and closed on its own."""
        ...

    def close(self) -> None:
        """Give the memory back, once all that share it are closed; ends runs in progress where the runtime can."""
        ...


def open_session(manifest: Manifest, folder: Path, *, runtime: str, threads: int, mode: TorchMode = "eager") -> Session:
    """Load an artifact.

    Args:
        manifest: what to load.
        folder: its files by name, as `Registry.open` gives it.
        runtime: "onnxruntime" or "torch".
        threads: threads of one run. With "torch" they are shared by the process.
        mode: for "torch", how the module runs (see `TorchSession`); other runtimes have one way.

    Raises:
        RegistryError: the runtime is unknown, cannot load this format, or refuses the file.
    """
    if runtime not in FORMATS:
        raise RegistryError(f"{manifest.ref}: unknown runtime {runtime!r}, use one of {', '.join(FORMATS)}")
    if FORMATS[runtime] != manifest.format:
        fitting = next(name for name, format in FORMATS.items() if format == manifest.format)
        raise RegistryError(
            f"{manifest.ref} is a {manifest.format} artifact, which runtime {runtime!r} cannot load; "
            f"use runtime: {fitting}"
        )
    # Imported here so that a process pays only for the runtime it uses.
    if runtime == "onnxruntime":
        from serving.runtimes.onnx import OnnxSession

        return OnnxSession(manifest, folder, threads=threads)
    from serving.runtimes.torch import TorchSession

    return TorchSession(manifest, folder, threads=threads, mode=mode)


def check_names(given: Mapping[str, np.ndarray], expected: tuple[str, ...], ref: str) -> None:
    """Raise `ValueError` unless the inputs are exactly those expected."""
    if given.keys() != set(expected):
        raise ValueError(f"{ref}: the session takes {', '.join(expected)}; got {', '.join(sorted(given)) or 'nothing'}")
