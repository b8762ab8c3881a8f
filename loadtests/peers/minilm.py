"""all-MiniLM-L6-v2 as an ONNX file, in fp32 and in INT8.

The weights come from a package of the Python package index (Apache-2.0, sentence-transformers); the encoder is
BERT (Devlin et al. 2019, arXiv:1810.04805) with mean pooling over unmasked tokens and unit length.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

#: Layers, heads, width of the embedding, and BERT's epsilon of layer normalisation.
LAYERS, HEADS, WIDTH, EPSILON = 6, 12, 384, 1e-12
OPSET = 17
CALIBRATION_ROWS, CALIBRATION_TOKENS, CALIBRATION_BATCH = 128, 64, 16


class MiniLM(nn.Module):
    """int64 ids and mask [n, T] to unit embeddings [n, 384]."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self._weights = {name.removeprefix("bert."): value.float() for name, value in weights.items()}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        table = self._weights
        positions = torch.arange(input_ids.shape[1])
        hidden = table["embeddings.word_embeddings.weight"][input_ids]
        hidden = hidden + table["embeddings.position_embeddings.weight"][positions]
        hidden = self._normalise("embeddings.LayerNorm", hidden + table["embeddings.token_type_embeddings.weight"][0])
        mask = attention_mask.float()
        bias = (1.0 - mask[:, None, None, :]) * -1e4
        for index in range(LAYERS):
            hidden = self._layer(f"encoder.layer.{index}", hidden, bias)
        summed = (hidden * mask[:, :, None]).sum(1)
        mean = summed / mask.sum(1, keepdim=True).clamp(min=1.0)
        unit: torch.Tensor = mean / mean.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return unit

    def _layer(self, name: str, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            self._heads(self._linear(f"{name}.attention.self.{part}", hidden)) for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5 + bias
        mixed = (scores.softmax(-1) @ value).transpose(1, 2)
        mixed = mixed.reshape(mixed.shape[0], mixed.shape[1], WIDTH)
        mixed = self._linear(f"{name}.attention.output.dense", mixed)
        hidden = self._normalise(f"{name}.attention.output.LayerNorm", hidden + mixed)
        inner = nn.functional.gelu(self._linear(f"{name}.intermediate.dense", hidden))
        return self._normalise(f"{name}.output.LayerNorm", hidden + self._linear(f"{name}.output.dense", inner))

    def _linear(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(hidden, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _normalise(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return nn.functional.layer_norm(hidden, (WIDTH,), weight, bias, EPSILON)

    @staticmethod
    def _heads(hidden: torch.Tensor) -> torch.Tensor:
        return hidden.reshape(hidden.shape[0], hidden.shape[1], HEADS, WIDTH // HEADS).transpose(1, 2)


def export(weights: Path, target: Path) -> None:
    """Write the fp32 model; rows and tokens are free axes."""
    model = MiniLM(load_file(weights)).eval()
    ids = torch.randint(1000, 20_000, (2, 16))
    with torch.no_grad():
        torch.onnx.export(
            model,
            (ids, torch.ones_like(ids)),
            str(target),
            input_names=["input_ids", "attention_mask"],
            output_names=["embedding"],
            dynamic_axes={name: {0: "n", 1: "t"} for name in ("input_ids", "attention_mask")} | {"embedding": {0: "n"}},
            opset_version=OPSET,
            dynamo=False,
        )


class _Texts:
    """Calibration batches of equal length, as ONNX Runtime asks for them."""

    def __init__(self, tokenizer: Path, texts: Sequence[str]) -> None:
        self._batches = self._make(tokenizer, texts)

    @staticmethod
    def _make(path: Path, texts: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.enable_truncation(CALIBRATION_TOKENS)
        tokenizer.enable_padding(length=CALIBRATION_TOKENS)
        for at in range(0, min(len(texts), CALIBRATION_ROWS), CALIBRATION_BATCH):
            rows = tokenizer.encode_batch(list(texts[at : at + CALIBRATION_BATCH]))
            yield {
                "input_ids": np.array([row.ids for row in rows], np.int64),
                "attention_mask": np.array([row.attention_mask for row in rows], np.int64),
            }

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def quantize(source: Path, target: Path, tokenizer: Path, texts: Sequence[str], *, reduce_range: bool) -> None:
    """Write the INT8 model: static ranges, weights per channel, products without weights left in float."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.getLogger().setLevel(logging.ERROR)  # the quantizer logs to the root logger
    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    graph = onnx.load(prepared).graph
    weights = {tensor.name for tensor in graph.initializer}
    operators = ["MatMul", "Gemm"]
    floating = [node.name for node in graph.node if node.op_type in operators and not weights.intersection(node.input)]
    quantize_static(
        prepared,
        target,
        _Texts(tokenizer, texts),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=operators,
        nodes_to_exclude=floating,
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"OpTypesToExcludeOutputQuantization": operators},
    )
    prepared.unlink()
