"""What an audit for saturation costs, and what it sees of an INT8 artifact and of wrong scales in it.

    python -m loadtests.audits moderation/int8 --registry .canarium/registry

Rows are the artifact's golden rows. Times are processor time of one thread, median of a row.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from serving.registry.manifest import GOLDEN_FILE, Manifest
from serving.registry.store import Registry
from serving.runtimes.audit import RowAudit
from serving.runtimes.onnx import OnnxSession
from serving.runtimes.pipeline import Pipeline
from serving.runtimes.saturation import ranges_of

Row = dict[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact")
    parser.add_argument("--registry", default=".canarium/registry")
    given = parser.parse_args()
    manifest, folder = Registry(given.registry).open(given.artifact)
    rows = golden_rows(manifest, folder)
    path = folder / manifest.entry
    served, audit = OnnxSession(manifest, folder), RowAudit(path)
    session_ms, audit_ms = median_ms(served.run, rows), median_ms(audit.run, rows)
    print(f"{manifest.ref}: {len(audit.ranges)} quantized activations, {len(rows)} rows")
    share = f"{audit_ms / 10:.2f} % of a core at one a second"
    print(f"one row: session {session_ms:.2f} ms, audit {audit_ms:.2f} ms: {share}")
    print(f"as built: {told(audit, rows)}")
    for factor in (2, 4):
        with tempfile.TemporaryDirectory() as scratch:
            every = damaged(path, Path(scratch), factor)
            print(f"every scale 1/{factor}: {told(RowAudit(every), rows)}")
            shares = []
            for one in audit.ranges:
                shares.append(mean_share(RowAudit(damaged(path, Path(scratch), factor, one.name)), rows))
            print(f"one scale 1/{factor}: {100 * min(shares):.3f} to {100 * max(shares):.3f} %, by tensor")


def golden_rows(manifest: Manifest, folder: Path) -> list[Row]:
    """Session inputs of the golden rows."""
    pipeline, rows = Pipeline(manifest, folder), []
    for line in (folder / GOLDEN_FILE).read_text().splitlines():
        inputs = {}
        for tensor in json.loads(line)["inputs"]:
            text = tensor["datatype"] == "BYTES"
            values = [value.encode() for value in tensor["data"]] if text else tensor["data"]
            inputs[tensor["name"]] = np.array(values, object if text else np.float32).reshape(tensor["shape"])
        rows.append(pipeline.preprocess(inputs))
    return rows


def median_ms(run: Callable[[Mapping[str, np.ndarray]], object], rows: list[Row]) -> float:
    """Milliseconds of processor time of a row."""
    run(rows[0])
    taken = []
    for row in rows:
        began = time.thread_time_ns()
        run(row)
        taken.append((time.thread_time_ns() - began) / 1e6)
    return float(np.median(taken))


def mean_share(audit: RowAudit, rows: list[Row]) -> float:
    return sum(audit.run(row).share for row in rows) / len(rows)


def told(audit: RowAudit, rows: list[Row]) -> str:
    worst = max(audit.run(row).worst for row in rows)
    return f"{100 * mean_share(audit, rows):.3f} % outside, one tensor up to {100 * worst:.1f} %"


def damaged(path: Path, folder: Path, factor: float, only: str = "") -> Path:
    """A copy whose activations (`only` one of them) are quantized by scales that are too small."""
    model = onnx.load(path)
    names = {one.name for one in ranges_of(model)}
    wrong = {
        node.input[1]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in names and only in ("", node.input[0])
    }
    for tensor in model.graph.initializer:
        if tensor.name in wrong:
            scale = numpy_helper.to_array(tensor) / np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(scale.astype(np.float32), tensor.name))
    out = folder / "model.onnx"
    onnx.save(model, out)
    return out


if __name__ == "__main__":
    main()
