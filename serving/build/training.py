"""What every training step needs of PyTorch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def prepare_torch(seed: int, threads: int) -> None:
    """Make what follows repeatable on this machine."""
    import torch

    torch.set_num_threads(threads)
    torch.backends.mha.set_fastpath_enabled(False)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


def save_module(path: Path, module: torch.nn.Module, name: str, arguments: Mapping[str, Any]) -> None:
    """Write weights as safetensors whose metadata names the registered class and its arguments."""

    metadata = {"class": name, "arguments": json.dumps(dict(arguments), sort_keys=True)}
    write_weights(path, module, metadata)


def write_weights(path: Path, module: torch.nn.Module, metadata: Mapping[str, str]) -> None:
    """Write a module's weights as safetensors, the same bytes for the same weights.

    The library itself writes the metadata in another order each time; here the header is sorted.
    """
    from safetensors.torch import save

    weights = {key: value.contiguous() for key, value in module.state_dict().items()}
    stored = save(weights, metadata=dict(metadata))
    length = int.from_bytes(stored[:8], "little")
    header = json.dumps(json.loads(stored[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors stay aligned
    path.write_bytes(len(header).to_bytes(8, "little") + header + stored[8 + length :])
