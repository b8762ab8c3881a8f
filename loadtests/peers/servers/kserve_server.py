"""KServe's Python model server. It does not batch: that is the work of a sidecar in a cluster."""

from __future__ import annotations

import argparse
from typing import Any

from kserve import InferOutput, InferRequest, InferResponse, ModelServer, logging
from kserve import Model as KServeModel
from shared import Model, options


class Peer(KServeModel):  # type: ignore[misc]
    """Speaks the Open Inference Protocol, JSON and binary, over HTTP and gRPC."""

    def __init__(self, folder: Any, threads: int) -> None:
        super().__init__(folder.name)
        self._folder, self._threads = folder, threads
        self._model: Model | None = None
        self.load()

    def load(self) -> bool:
        self._model = Model(self._folder, self._threads)
        self.ready = True
        return True

    def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> InferResponse:
        model = self._model
        assert model is not None
        if model.text:
            texts = [value.decode() if isinstance(value, bytes) else value for value in payload.inputs[0].as_numpy()]
            labels, probabilities = model.classify(texts)
            outputs = [
                _tensor("probabilities", "FP32", probabilities),
                InferOutput("label", [len(labels)], "BYTES", data=labels),
            ]
        else:
            outputs = [_tensor(model.output, "FP32", model.run({each.name: each.as_numpy() for each in payload.inputs}))]
        return InferResponse(payload.id or "", self.name, outputs, use_binary_outputs=payload.use_binary_outputs)


def _tensor(name: str, datatype: str, data: Any) -> InferOutput:
    output = InferOutput(name, list(data.shape), datatype)
    output.set_data_from_numpy(data, binary_data=False)
    return output


if __name__ == "__main__":
    given = options()
    server = ModelServer(
        http_port=given.port,
        grpc_port=given.grpc_port,
        workers=given.workers,
        enable_grpc=bool(given.grpc_port),
        enable_latency_logging=False,
        access_log_format=None,
    )
    server.start([Peer(given.model, given.threads)])
