"""The same model in other forms of storage and arithmetic, to see which is fastest here."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from serving.build.cache import Tick
from serving.runtimes.base import TorchMode

#: form -> (format of the artifact, mode of a torch session)
FORMS: dict[str, tuple[str, TorchMode]] = {
    "dynamic-int8": ("onnx", "eager"),
    "fp16": ("onnx", "eager"),
    "torch": ("torch", "eager"),
    "torch-bf16": ("torch", "bfloat16"),
    "torch-compile": ("torch", "compiled"),
    "torchao-int8": ("torch", "torchao"),
}


def tools(mode: TorchMode) -> dict[str, str]:
    """What a mode needs beyond the libraries that every step depends on: which is there, so that it is tried again."""
    if mode == "compiled":
        return {"compiler": shutil.which(os.environ.get("CXX", "g++")) or "absent"}
    if mode == "torchao":
        try:
            return {"torchao": version("torchao")}
        except PackageNotFoundError:
            return {"torchao": "absent"}
    return {}


def convert(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Write `model.onnx` or `model.safetensors` in the form named by `parameters["form"]`.

    `needs`: `onnx`, the folder of the fp32 ONNX file; `module`, that of the torch module.
    """
    form = parameters["form"]
    if FORMS[form][0] == "torch":
        shutil.copyfile(needs["module"] / "model.safetensors", out / "model.safetensors")
    elif form == "fp16":
        _half(needs["onnx"] / "model.onnx", out / "model.onnx")
    else:
        _dynamic(needs["onnx"] / "model.onnx", out, parameters["operators"])


def _half(source: Path, target: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def _dynamic(source: Path, out: Path, operators: list[str]) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.getLogger().setLevel(logging.ERROR)  # the quantizer logs to the root logger
    prepared = out / "prepared.onnx"
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_dynamic(
        prepared, out / "model.onnx", op_types_to_quantize=operators, per_channel=True, weight_type=QuantType.QInt8
    )
    prepared.unlink()
