"""KServe's Python model server. It does not batch: that is the work of a sidecar in a cluster."""

from __future__ import annotations

from typing import Any

from kserve import InferOutput, InferRequest, InferResponse, ModelServer
from kserve import Model as KServeModel
from shared import Model, options


class Peer(KServeModel):  # type: ignore[misc]
    """Speaks the Open Inference Protocol, JSON and binary, over HTTP and gRPC."""

    def __init__(self, folder: Any, threads: int) -> None:
        super().__init__(folder.name)
        self._folder, self._threads = folder, threads
        self._opened: Model | None = None
        self.ready = True

    @property
    def _model(self) -> Model:
        """Opened in the worker that uses it: with several workers KServe pickles this object, a session it cannot."""
        if self._opened is None:
            self._opened = Model(self._folder, self._threads)
        return self._opened

    def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> InferResponse:
        model = self._model
        if model.text:
            texts = [value.decode() if isinstance(value, bytes) else value for value in payload.inputs[0].as_numpy()]
            labels, probabilities = model.classify(texts)
            outputs = [
                _tensor("probabilities", probabilities, False),
                InferOutput("label", [len(labels)], "BYTES", data=labels),
            ]
        else:
            inputs = {each.name: each.as_numpy() for each in payload.inputs}
            outputs = [_tensor(model.output, model.run(inputs), payload.use_binary_outputs)]
        return InferResponse(payload.id or "", self.name, outputs, use_binary_outputs=payload.use_binary_outputs)


def _tensor(name: str, data: Any, binary: bool) -> InferOutput:
    output = InferOutput(name, list(data.shape), "FP32")
    output.set_data_from_numpy(data, binary_data=binary)
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
