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
    from safetensors.torch import save_file

    metadata = {"class": name, "arguments": json.dumps(dict(arguments), sort_keys=True)}
    weights = {key: value.contiguous() for key, value in module.state_dict().items()}
    save_file(weights, path, metadata=metadata)
