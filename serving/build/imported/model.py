"""The imported graph and its smaller siblings."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from serving.build.cache import BuildError, Tick, write_json
from serving.build.imported.sound import read_clips
from serving.build.imported.stream import feeds
from serving.build.quantize import static_int8
from serving.build.rows import spread
from serving.registry.files import file_digest

#: Smaller tensors are not worth a conversion when the graph is loaded.
_LEAST = 1024


def import_model(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Copy `needs["file"]` to `model.onnx`.

    Raises:
        BuildError: its SHA-256 is another, or it is no valid ONNX graph.
    """
    import onnx

    path = needs["file"]
    digest = file_digest(path)
    if digest != parameters["sha256"]:
        raise BuildError(f"{path}: its SHA-256 is {digest}, source.sha256 says {parameters['sha256']}")
    try:
        onnx.checker.check_model(onnx.load(path))
    except Exception as error:  # protobuf's and the checker's have no common base
        raise BuildError(f"{path}: not a valid ONNX model: {error}") from error
    shutil.copyfile(path, out / "model.onnx")


def halve(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Write `model.onnx` with its large weights rounded to FP16, and `quantization.json`.

    They are widened to FP32 when the graph is loaded: CPUs without FP16 arithmetic compute no slower, and what is
    rounded is what was saved.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    source = needs["model"] / "model.onnx"
    model = onnx.load(source)
    casts, kept = [], []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or values.size < _LEAST:
            kept.append(tensor)
            continue
        if np.abs(values).max() > np.finfo(np.float16).max:
            raise BuildError(f"weight {tensor.name} does not fit FP16: it holds {np.abs(values).max():g}")
        kept.append(numpy_helper.from_array(values.astype(np.float16), f"{tensor.name}.half"))
        casts.append(helper.make_node("Cast", [f"{tensor.name}.half"], [tensor.name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, out / "model.onnx")
    made = {"method": "weights in FP16", "tool": "onnx", "weights": "FLOAT16", "activations": "FLOAT"}
    write_json(
        out / "quantization.json",
        {**made, "tensors": len(casts), "calibration": {"model_sha256": file_digest(source)}},
    )


def quantize(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """See `static_int8`; the clips of the calibration split side by side, each window with the state before it."""
    import onnxruntime as ort

    from serving.runtimes.onnx import session_options

    recipe, stream = parameters["quantize"], parameters["stream"]
    source = needs["model"] / "model.onnx"
    clips = read_clips(needs["data"], "calibration")
    session = ort.InferenceSession(source, session_options(1), providers=["CPUExecutionProvider"])
    batches = []
    for feed, answer in feeds(clips.windows, stream, parameters["inputs"]):
        batches.append(feed)
        names = [output.name for output in session.get_outputs()]
        answer.update(zip(names, session.run(names, feed), strict=True))
    most = max(1, recipe["rows"] // len(clips.windows))
    chosen = [batches[at] for at in spread(len(batches), most).tolist()]
    digests = msgspec.json.decode((needs["data"] / "data.json").read_bytes())["split_sha256"]
    rows = len(chosen) * len(clips.windows)
    static_int8(out, source, chosen, recipe, {"rows": rows, "data_sha256": digests["calibration"]})
