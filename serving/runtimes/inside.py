"""The inner tensors of an ONNX model, as a session of its own shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class Inside:
    """A second session over served bytes, which returns tensors that clients never see; its weights are held once more.

    Args:
        model: an `onnx.ModelProto`; its outputs are taken off.
        names: what is shown: inner tensors, or inputs of the graph.
        optimized: let ONNX Runtime fuse nodes. Not where quantizations are looked at: they would be fused away; a run
            takes several times as long then as one of the served session.
    """

    def __init__(self, model: Any, names: Sequence[str], *, optimized: bool = False) -> None:
        import onnx
        import onnxruntime as ort

        from serving.runtimes.onnx import session_options

        given = {node.name for node in model.graph.input}
        self._names = list(names)
        self._shown = [name for name in dict.fromkeys(names) if name not in given]
        kept = list(model.graph.output)[:1] if not self._shown else []
        del model.graph.output[:]
        model.graph.output.extend([*kept, *(onnx.ValueInfoProto(name=name) for name in self._shown)])
        options = session_options(1)
        if not optimized:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The tensors by name, for session inputs. Raises what ONNX Runtime raises."""
        found = dict(inputs)
        if self._shown:
            found |= zip(self._shown, self._session.run(self._shown, inputs), strict=True)
        return {name: found[name] for name in self._names}
