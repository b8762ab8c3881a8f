"""PyTorch on the CPU: safetensors weights and a class from the table below, never a pickle.

The artifact's entry is a `.safetensors` file whose metadata holds `class` (a key of
`serving.runtimes.modules.CLASSES`) and `arguments` (JSON, the class's keyword arguments).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from serving.errors import RegistryError
from serving.registry.manifest import Manifest
from serving.registry.verified import content
from serving.runtimes.base import NUMPY_TYPES, TorchMode, check_names

if TYPE_CHECKING:
    import torch


class TorchSession:
    """A session of PyTorch; see `serving.runtimes.base.Session`.

    The number of threads is a property of the process: the last session opened sets it.

    Args:
        mode: `eager`; `compiled`, by `torch.compile` at the first run, which needs a C++ compiler; or `bfloat16`,
            matrix products in that type (faster only on a CPU that has it); or `torchao`, by which weights are
            kept in INT8 (one scale for each output; an optional package).

    Raises:
        RegistryError: the file cannot be loaded or names no registered class.
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        *,
        threads: int = 1,
        mode: TorchMode = "eager",
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.backends.mha.set_fastpath_enabled(False)
        module = module_of(content(manifest, folder, manifest.entry), manifest.entry, manifest.ref)
        if mode == "torchao":
            _round_weights(module)
        self._module: Callable[..., Any] | None = torch.compile(module, dynamic=True) if mode == "compiled" else module
        self._half = mode == "bfloat16"
        self._ref = manifest.ref
        self._inputs = tuple(spec.name for spec in manifest.session.inputs)
        self._outputs = [(spec.name, NUMPY_TYPES[spec.datatype]) for spec in manifest.session.outputs]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch

        module = self._module
        if module is None:
            raise RuntimeError(f"{self._ref}: the session is closed")
        check_names(inputs, self._inputs, self._ref)
        tensors = [torch.from_numpy(inputs[name]) for name in self._inputs]
        with torch.inference_mode():
            if self._half:
                with torch.autocast("cpu", torch.bfloat16):
                    values = module(*tensors)
            else:
                values = module(*tensors)
        if isinstance(values, torch.Tensor):
            values = (values,)
        return {
            name: (value.float() if self._half else value).numpy().astype(dtype, copy=False)
            for (name, dtype), value in zip(self._outputs, values, strict=True)
        }

    def share(self) -> TorchSession:
        return copy(self)

    def close(self) -> None:
        self._module = None


def _round_weights(module: torch.nn.Module) -> None:
    """INT8 weights by torchao, in place. Not its dynamic INT8: ranges of a batch make answers depend on neighbours."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise RegistryError("torchao is not installed: pip install 'canarium[torchao]'") from error
    quantize_(module, Int8WeightOnlyConfig())


def load_module(path: Path, ref: str) -> torch.nn.Module:
    """A registered module with its weights, in evaluation mode. Raises `RegistryError`."""
    try:
        return module_of(path.read_bytes(), path.name, ref)
    except OSError as error:
        raise RegistryError(f"{ref}: PyTorch cannot load {path.name}: {error}") from error


def module_of(data: bytes, file: str, ref: str) -> torch.nn.Module:
    """The same of the bytes of a file."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    from serving.runtimes.modules import CLASSES

    try:
        weights = load(data)  # which checks the frame
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        name = metadata.get("class", "")
        if name not in CLASSES:
            raise RegistryError(f"{ref}: {file} names class {name!r}; registered are {', '.join(sorted(CLASSES))}")
        module = CLASSES[name](**json.loads(metadata["arguments"]))
        module.load_state_dict(weights)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RegistryError(f"{ref}: PyTorch cannot load {file}: {error}") from error
    return module.eval()
