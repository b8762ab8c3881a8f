"""From a torch module to ONNX."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.build.cache import Tick

OPSET = 17


def export_onnx(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Write `model.onnx`.

    `parameters`: `weights`, the safetensors file of `needs["module"]`; `example`, one input as nested lists; `inputs`
    and `outputs`, their names; `free`, for each the axes of any length ({"0": "batch"}).
    """
    import torch

    from serving.runtimes.torch import load_module

    torch.backends.mha.set_fastpath_enabled(False)
    module = load_module(needs["module"] / parameters["weights"], parameters["weights"])
    free = {name: {int(axis): label for axis, label in axes.items()} for name, axes in parameters["free"].items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces its own successor
        torch.onnx.export(
            module,
            (torch.tensor(parameters["example"]),),
            str(out / "model.onnx"),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(parameters["inputs"]),
            output_names=list(parameters["outputs"]),
            dynamic_axes=free,
        )
