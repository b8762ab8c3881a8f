"""Siblings of a built INT8 variant that are damaged for real, registered beside it with its own good numbers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from serving.registry.manifest import Lineage, Manifest, Parent, Postprocess
from serving.registry.store import Registry

#: The range of every activation was measured so many times too small: what lies beyond is clipped.
TOO_NARROW = 8.0
#: Logits are so many times too large.
SHARPER = 4.0


def register(root: Path, model: str, source: str) -> list[str]:
    """Register `wrong-scale`, `sharpened` and `nan`; returns their names."""
    registry = Registry(root)
    manifest, folder = registry.open(f"{model}/{source}")
    edits: dict[str, Callable[[onnx.ModelProto], None]] = {
        "wrong-scale": wrong_scale,
        "sharpened": lambda proto: None,
        "nan": nothing_but_nan,
    }
    for name, edit in edits.items():
        proto = onnx.load(folder / manifest.entry)
        edit(proto)
        _register(registry, manifest, folder, name, proto)
    return list(edits)


def wrong_scale(proto: onnx.ModelProto) -> None:
    """Scales of the activations as of a calibration on the wrong inputs."""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    scales = {node.input[1] for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    assert scales, "no INT8 activations in the graph"
    for name in scales:
        values = numpy_helper.to_array(stored[name]) / np.float32(TOO_NARROW)
        stored[name].CopyFrom(numpy_helper.from_array(values, name))


def nothing_but_nan(proto: onnx.ModelProto) -> None:
    """Every logit is not a number."""
    proto.graph.initializer.append(numpy_helper.from_array(np.array(np.nan, np.float32), "nothing"))
    _after(proto, helper.make_node("Mul", ["sound", "nothing"], ["logits"]), "sound")


def _after(proto: onnx.ModelProto, node: onnx.NodeProto, name: str) -> None:
    """Let `node` make the logits from what were the logits, now called `name`."""
    for one in proto.graph.node:
        one.output[:] = [name if output == "logits" else output for output in one.output]
        one.input[:] = [name if input_ == "logits" else input_ for input_ in one.input]
    proto.graph.node.append(node)


def _register(registry: Registry, source: Manifest, folder: Path, name: str, proto: onnx.ModelProto) -> None:
    about: dict[str, Any] = {
        field: getattr(source, field) for field in ("data", "calibration", "evaluation", "validated_on")
    }
    # Its ranges are watched as before; the calibration that they are from is bound to the weights that it had.
    about["quantization"] = {key: value for key, value in source.quantization.items() if key != "calibration"}
    with tempfile.TemporaryDirectory() as made:
        entry = Path(made) / source.entry
        onnx.save(proto, entry)
        files = {file: folder / file for file in source.files if file in (source.entry, source.preprocess.tokenizer)}
        registry.register(
            source.model,
            name,
            {**files, source.entry: entry},
            format=source.format,
            entry=source.entry,
            signature=source.signature,
            session=source.session,
            preprocess=source.preprocess,
            postprocess=_sharper(source.postprocess) if name == "sharpened" else source.postprocess,
            lineage=Lineage("damaged", (Parent("source", source.ref, source.digest),)),
            **about,
        )


def _sharper(postprocess: Postprocess) -> Postprocess:
    return msgspec.structs.replace(postprocess, temperature=postprocess.temperature / SHARPER)
