"""Evidently's default drift test in a process of its own.

Evidently takes seconds and hundreds of megabytes to import and sends telemetry unless told not to, so the simulations
talk to a child that does nothing else. The test is the one that Evidently chooses for a column by itself
(`get_stattest`): with more than 1,000 reference rows the normed Wasserstein distance, or the Jensen-Shannon distance if
there are at most five distinct values. It is called directly, not through a report, which takes a hundred times longer.
"""

from __future__ import annotations

import atexit
import functools
import math
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from typing import IO

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: Values that look like a column of a few classes.
FEW = 5


def scores(reference: Floats, windows: Sequence[Floats]) -> list[float]:
    """Drift score of each window against the reference; larger is further away."""
    child = _child()
    assert child.stdin is not None
    assert child.stdout is not None
    _write(child.stdin, reference)
    child.stdin.write(struct.pack("<q", len(windows)))
    for window in windows:
        _write(child.stdin, window)
    child.stdin.flush()
    return [float(value) for value in _read(child.stdout)]


@functools.cache
def _child() -> subprocess.Popen[bytes]:
    """The process, started when it is first needed and ended with this one."""
    child = subprocess.Popen(
        (sys.executable, "-m", "loadtests.detection.evidently_process"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "DO_NOT_TRACK": "1"},
    )
    atexit.register(child.kill)
    return child


def _write(stream: IO[bytes], values: Floats) -> None:
    stream.write(struct.pack("<q", len(values)) + np.ascontiguousarray(values, dtype="<f8").tobytes())


def _read(stream: IO[bytes]) -> Floats:
    (count,) = struct.unpack("<q", _exactly(stream, 8))
    return np.frombuffer(_exactly(stream, 8 * count), dtype="<f8").astype(np.float64)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    found = stream.read(size)
    if len(found) < size:
        raise EOFError("the Evidently process ended; is it installed (`pip install 'canarium[bench]'`)?")
    return found


def main() -> None:
    """Answer until the parent is gone."""
    import pandas as pd
    from evidently.legacy.calculations.stattests import get_stattest
    from evidently.legacy.core import ColumnType

    incoming, outgoing = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing but answers on the pipe
    while len(head := incoming.read(8)) == 8:
        (count,) = struct.unpack("<q", head)
        reference = np.frombuffer(_exactly(incoming, 8 * count), dtype="<f8").astype(np.float64)
        (count,) = struct.unpack("<q", _exactly(incoming, 8))
        windows = [_read(incoming) for _ in range(count)]
        kind = ColumnType.Categorical if len(np.unique(reference)) <= FEW else ColumnType.Numerical
        before = pd.Series(reference)
        found = []
        for window in windows:
            test = get_stattest(before, pd.Series(window), kind, None)
            drift, _ = test.func(before, pd.Series(window), kind, test.default_threshold)
            distance = "p_value" not in test.display_name
            found.append(drift if distance else -math.log(max(drift, 1e-300)))
        _write(outgoing, np.array(found))
        outgoing.flush()


if __name__ == "__main__":
    main()
