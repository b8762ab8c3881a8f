"""Triton Inference Server through PyTriton: its HTTP and gRPC front ends and its dynamic batcher, Python computes."""

from __future__ import annotations

from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
from shared import MAX_BATCH, TYPES, Model, options


def tensors(specs: list[dict[str, Any]]) -> list[Tensor]:
    """PyTriton's form of `model.json`'s inputs or outputs; its shapes leave the first axis out."""
    return [
        Tensor(
            name=spec["name"],
            dtype=TYPES.get(spec["datatype"], np.bytes_),
            shape=tuple(spec["shape"][1:]) or (1,),
        )
        for spec in specs
    ]


def callable_of(model: Model) -> Any:
    """One inference callable; each is a process of the Python backend's own."""

    @batch
    def infer(**inputs: np.ndarray) -> list[np.ndarray]:
        if not model.text:
            return [model.run(inputs)]
        labels, probabilities = model.classify([row[0].decode() for row in inputs["text"]])
        return [probabilities, np.array([[label.encode()] for label in labels])]

    return infer


if __name__ == "__main__":
    given = options()
    models = [Model(given.model, given.threads) for _ in range(given.workers)]
    config = TritonConfig(
        http_address="127.0.0.1",
        grpc_address="127.0.0.1",
        http_port=given.port,
        grpc_port=given.grpc_port,
        allow_metrics=False,
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name=given.model.name,
            infer_func=[callable_of(model) for model in models],
            inputs=tensors(models[0].about["inputs"]),
            outputs=tensors(models[0].about["outputs"]),
            config=ModelConfig(max_batch_size=MAX_BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
            strict=False,
        )
        triton.serve()
