"""MLServer: the runtime class that `mlserver start` loads, with adaptive batching by its own settings."""

from __future__ import annotations

from typing import Any

import numpy as np
from mlserver import MLModel, types
from mlserver.codecs import NumpyCodec, StringCodec
from shared import Model


class Peer(MLModel):  # type: ignore[misc]
    """Gets batches that MLServer merged; for rows of different lengths it cannot merge, see the table's caveats."""

    async def load(self) -> bool:
        extra = self.settings.parameters.extra
        self._model = Model(extra["folder"], extra["threads"])
        return True

    async def predict(self, payload: types.InferenceRequest) -> types.InferenceResponse:
        model = self._model
        outputs: list[Any]
        if model.text:
            labels, probabilities = model.classify(StringCodec.decode_input(payload.inputs[0]))
            outputs = [
                NumpyCodec.encode_output("probabilities", probabilities),
                StringCodec.encode_output("label", labels),
            ]
        else:
            inputs = {each.name: NumpyCodec.decode_input(each) for each in payload.inputs}
            outputs = [NumpyCodec.encode_output(model.output, np.asarray(model.run(inputs)))]
        return types.InferenceResponse(model_name=self.name, outputs=outputs)
