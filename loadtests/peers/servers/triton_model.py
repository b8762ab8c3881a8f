"""What Triton's Python backend loads: one instance is one process with one session."""

from __future__ import annotations

import os
import sys
from typing import Any

sys.path[:0] = os.environ["PEER_PATH"].split(os.pathsep)  # the backend's embedded Python ignores PYTHONPATH

import numpy as np  # noqa: E402
import triton_python_backend_utils as pb  # noqa: E402
from shared import model_from_environment, stack  # noqa: E402


class TritonPythonModel:
    """Takes the requests that the dynamic batcher put together."""

    def initialize(self, args: dict[str, str]) -> None:
        self._model = model_from_environment()

    def execute(self, requests: list[Any]) -> list[Any]:
        model = self._model
        if model.text:
            texts = [pb.get_input_tensor_by_name(request, "text").as_numpy()[0, 0].decode() for request in requests]
            labels, probabilities = model.classify(texts)
            return [
                pb.InferenceResponse(
                    [
                        pb.Tensor("probabilities", probabilities[at : at + 1].astype(np.float32)),
                        pb.Tensor("label", np.array([[labels[at].encode()]], dtype=object)),
                    ]
                )
                for at in range(len(requests))
            ]
        batch = {
            name: stack([pb.get_input_tensor_by_name(request, name).as_numpy()[0] for request in requests])
            for name, _ in model.inputs
        }
        outputs = model.run(batch)
        return [pb.InferenceResponse([pb.Tensor(model.output, row[None])]) for row in outputs]
