"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from pathlib import Path

import numpy as np
import onnxruntime as ort

from serving.errors import RegistryError
from serving.registry.manifest import Manifest, Signature
from serving.registry.verified import onnx_source
from serving.runtimes.base import check_names

_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
}
_ERRORS_ONLY = 3


def session_options(threads: int) -> ort.SessionOptions:
    """Options that suit a server of several sessions: `threads` a run, one run at a time, no spinning."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ERRORS_ONLY
    # A spinning pool burns the cores that the other sessions and the event loop need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


class OnnxSession:
    """A session of ONNX Runtime; see `serving.runtimes.base.Session`.

    Raises:
        RegistryError: the file cannot be loaded, or its tensors are not those of the manifest.
    """

    def __init__(self, manifest: Manifest, folder: Path, *, threads: int = 1) -> None:
        with onnx_source(manifest, folder) as source:
            try:
                session = ort.InferenceSession(source, session_options(threads), providers=["CPUExecutionProvider"])
            except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
                raise RegistryError(f"{manifest.ref}: ONNX Runtime cannot load {manifest.entry}: {error}") from error
        session._model_bytes = None  # it would hold the file's bytes for good, to be opened once more
        _check_signature(session, manifest.session, manifest.ref)
        self._session: ort.InferenceSession | None = session
        self._ref = manifest.ref
        self._inputs = tuple(spec.name for spec in manifest.session.inputs)
        self._outputs = [spec.name for spec in manifest.session.outputs]
        self._running: set[ort.RunOptions] = set()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = self._session
        if session is None:
            raise RuntimeError(f"{self._ref}: the session is closed")
        check_names(inputs, self._inputs, self._ref)
        options = ort.RunOptions()
        self._running.add(options)
        try:
            values = session.run(self._outputs, inputs, options)
        except Exception as error:
            raise RuntimeError(f"{self._ref}: ONNX Runtime failed: {error}") from error
        finally:
            self._running.discard(options)
        return dict(zip(self._outputs, values, strict=True))

    def share(self) -> OnnxSession:
        twin = copy(self)
        twin._running = set()
        return twin

    def terminate(self) -> None:
        """End the runs in progress between two operators; each raises `RuntimeError`."""
        for options in tuple(self._running):
            options.terminate = True

    def close(self) -> None:
        self.terminate()
        self._session = None


def _check_signature(session: ort.InferenceSession, expected: Signature, ref: str) -> None:
    for what, nodes, specs in (
        ("inputs", session.get_inputs(), expected.inputs),
        ("outputs", session.get_outputs(), expected.outputs),
    ):
        has = {node.name: _TYPES.get(node.type, node.type) for node in nodes}
        wants = {spec.name: spec.datatype for spec in specs}
        if has != wants:
            raise RegistryError(f"{ref}: the model's {what} are {has}, the manifest says {wants}")
