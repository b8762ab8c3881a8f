"""Drives `load.c`, the load generator for measurements on a machine that the server shares.

    result = run(port, [http_request("/v2/models/m/infer", body)], connections=32, seconds=5)

The C file is compiled with the system's compiler when it is newer than the binary. Requests are complete
and prebuilt, so that the generator spends a few microseconds of CPU on each.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("load.c")
#: Everything the benchmarks build; ignored by git.
BUILD = SOURCE.parents[1] / ".bench"

QUANTILES = ("p50", "p90", "p99", "p99.9", "max")


class LoadError(Exception):
    """The generator could not be compiled or could not run; the message says why."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one run measured.

    Attributes:
        count: good answers: status 2xx and what was expected of them. Rate and latencies are theirs.
        seconds: length of the measured window; longer in an open loop if answers came late.
        rate: good answers a second.
        latency_us: `mean`, `p50`, `p90`, `p99`, `p99.9`, `max` in microseconds; empty without a good answer.
        cpu_s: CPU seconds of the generator itself within the window.
        codes: answers by HTTP status; `"OK"` and the like for gRPC.
        failures: what went wrong without a status, by kind: refused, lost, timeout, protocol, wrong.
        unsent: open loop: due while every connection was busy, and therefore not sent.
        unfinished: closed loop: still without an answer at the end of the window.
        bytes: of the good answers, heads included.
    """

    count: int
    seconds: float
    rate: float
    latency_us: Mapping[str, float]
    cpu_s: float
    codes: Mapping[str, int]
    failures: Mapping[str, int]
    unsent: int = 0
    unfinished: int = 0
    bytes: int = 0

    @property
    def failed(self) -> int:
        """Requests sent that got no good answer. A wrong answer had a good status and counts once."""
        refused = sum(count for code, count in self.codes.items() if not (code.startswith("2") or code == "OK"))
        return refused + sum(self.failures.values())

    @property
    def cpu_us_per_request(self) -> float | None:
        """Microseconds of the generator's CPU for each good answer."""
        return self.cpu_s * 1e6 / self.count if self.count else None

    @classmethod
    def parse(cls, text: str) -> Result:
        """Read the generator's output. Raises `LoadError` if it is something else."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError):
            raise LoadError(f"not the output of the load generator: {text[:200]!r}") from None

    def as_json(self) -> dict[str, Any]:
        """The form `parse` reads."""
        return {name: getattr(self, name) for name in self.__slots__}


def http_request(path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, method: str = "POST") -> bytes:
    """One complete HTTP/1.1 request with its length; `headers` go in as they are."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join((*lines, "", "")).encode("latin-1") + body


def pack(requests: Sequence[bytes]) -> bytes:
    """The generator's input file: each request after its length, 32 bits, little endian."""
    return b"".join(len(request).to_bytes(4, "little") + request for request in requests)


def compiled(folder: Path = BUILD) -> Path:
    """The generator's binary, compiled if it is missing or older than its source. Raises `LoadError`."""
    binary = folder / "load"
    if binary.exists() and binary.stat().st_mtime > SOURCE.stat().st_mtime:
        return binary
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise LoadError("a C compiler is needed (Debian: apt-get install gcc libc6-dev)")
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f"load.{os.getpid()}"
    command = [compiler, "-O2", "-Wall", "-Wextra", "-o", str(fresh), str(SOURCE), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise LoadError(f"{SOURCE.name} does not compile:\n{done.stderr}")
    fresh.replace(binary)
    return binary


def run(
    port: int,
    requests: Sequence[bytes],
    *,
    connections: int,
    seconds: float,
    rate: float | None = None,
    warmup: float = 1.0,
    timeout_s: float = 10.0,
    expect: str | None = None,
    expect_bytes: int | None = None,
    seed: int = 1,
    folder: Path = BUILD,
) -> Result:
    """Load 127.0.0.1:`port` and return what was measured.

    Args:
        requests: complete requests, sent in rotation.
        connections: busy connections; with `rate`, the most that may be busy.
        seconds: the measured window, after `warmup` seconds of the same kind that are not counted.
        rate: Poisson arrivals a second, latency from the scheduled moment; None for a closed loop.
        timeout_s: limit on each answer.
        expect: a text that every good answer contains.
        expect_bytes: the exact length of every good answer's body.
        seed: of the arrivals.

    Raises:
        LoadError: it could not run. Failing requests do not raise: they are in the result.
    """
    command = [str(compiled(folder)), "--port", str(port), "--connections", str(connections)]
    command += ["--seconds", str(seconds), "--warmup", str(warmup), "--timeout", str(timeout_s), "--seed", str(seed)]
    command += [] if rate is None else ["--rate", str(rate)]
    command += [] if expect is None else ["--expect", expect]
    command += [] if expect_bytes is None else ["--expect-bytes", str(expect_bytes)]
    with tempfile.NamedTemporaryFile(prefix="load-", suffix=".requests") as file:
        file.write(pack(requests))
        file.flush()
        limit_s = warmup + seconds + timeout_s + 30
        try:
            done = subprocess.run(
                [*command, "--requests", file.name], capture_output=True, text=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise LoadError(f"the load generator did not end within {limit_s:g} s") from None
    if done.returncode:
        raise LoadError(done.stderr.strip() or f"the load generator ended with code {done.returncode}")
    return Result.parse(done.stdout)
