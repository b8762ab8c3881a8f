"""From a torch module to ONNX."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.build.cache import Tick

OPSET = 17


def export_onnx(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Write `model.onnx`: input_ids int64 [batch, tokens] -> logits float32 [batch, C], both axes free."""
    import torch

    from serving.runtimes.torch import load_module

    torch.backends.mha.set_fastpath_enabled(False)
    module = load_module(needs["module"] / parameters["weights"], parameters["weights"])
    example = torch.tensor([[2, 5, 6, 7, 0], [2, 5, 0, 0, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces its own successor
        torch.onnx.export(
            module,
            (example,),
            str(out / "model.onnx"),
            dynamo=False,
            opset_version=OPSET,
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_axes={"input_ids": {0: "batch", 1: "tokens"}, "logits": {0: "batch"}},
        )
