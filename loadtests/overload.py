"""What is left of a server that is asked for 120 % of what it can do.

    python -m loadtests.overload [--url http://127.0.0.1:8000] [--seconds 600]

First the peak: the most *good* answers a second (status 200 within the deadline) in open loops at 80, 90, 100 and
110 % of what a closed loop got. Then 120 % of the peak for a long time. A server holds if it still gives 95 % of
its peak, and if the 99th percentile of the answers that it accepted to give is under the threshold of its latency
objective. Exit code 1 if it does not.

Requests have several rows, so that the model's work is the bottleneck and not what a refusal costs the gateway:
generator, gateway and model share the machine.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from deployments.quickstart.running import DATA, Quickstart
from loadtests.load import LoadError, Result, http_request, run
from loadtests.payloads import Row, read_rows
from loadtests.rss import of_processes
from serving.errors import CanariumError
from serving.paths import Paths
from serving.processes import free_ports, members

#: Offered load over the peak, and the shares of the closed loop's rate among which the peak is looked for.
OVER, STEPS = 1.2, (0.8, 0.9, 1.0, 1.1)
#: Closed-loop connections: enough to keep the model busy, few enough that none is refused.
CONNECTIONS, MAX_BUSY = 4, 512
GOODPUT_KEPT = 0.95


@dataclass(frozen=True)
class Overload:
    """One run. Rates are good answers a second."""

    peak: float
    steps: tuple[tuple[float, Result], ...]
    offered: float
    result: Result

    @property
    def kept(self) -> float:
        """Goodput under overload over the peak."""
        return self.result.rate / self.peak

    def holds(self, threshold_ms: float) -> bool:
        return self.kept >= GOODPUT_KEPT and self.result.latency_us["p99"] < threshold_ms * 1000


def requests_of(model: str, texts: Sequence[Row], rows: int, count: int = 400) -> list[bytes]:
    """Complete requests of `rows` rows each, without an id of their own, for that many users."""
    path = f"/v2/models/{model}/infer"
    made = []
    for number in range(count):
        data = [texts[(number * rows + row) % len(texts)].text for row in range(rows)]
        tensor = {"name": "text", "datatype": "BYTES", "shape": [rows], "data": data}
        headers = {"Content-Type": "application/json", "x-user-id": f"user-{number}"}
        made.append(http_request(path, json.dumps({"inputs": [tensor]}).encode(), headers))
    return made


def overload(
    port: int,
    requests: Sequence[bytes],
    *,
    seconds: float,
    step_s: float = 10.0,
    deadline_s: float = 1.0,
    say: Callable[[str], None] = print,
) -> Overload:
    """Find the peak and go beyond it. Raises `LoadError` if the generator cannot run or nothing is answered."""
    common: dict[str, Any] = {"timeout_s": deadline_s}
    closed = run(port, requests, connections=CONNECTIONS, seconds=step_s, **common)
    if not closed.count:
        raise LoadError(f"port {port} gives no good answer: {dict(closed.codes)}, {dict(closed.failures)}")
    say(_line(f"closed loop, {CONNECTIONS} connections", closed))
    steps = []
    for share in STEPS:
        rate = share * closed.rate
        result = run(port, requests, connections=MAX_BUSY, seconds=step_s, rate=rate, **common)
        say(_line(f"open loop, {rate:.0f}/s", result))
        steps.append((rate, result))
    peak = max(result.rate for _, result in steps)
    offered = OVER * peak
    result = run(port, requests, connections=MAX_BUSY, seconds=seconds, rate=offered, **common)
    say(_line(f"open loop, {offered:.0f}/s", result))
    return Overload(peak, tuple(steps), offered, result)


HEADER = (
    "| load | good answers/s | p50 ms | p99 ms | p99.9 ms | max ms | other answers | failures | not sent |\n"
    "|---|---:|---:|---:|---:|---:|---|---|---:|"
)


def _line(name: str, result: Result) -> str:
    latencies = [f"{result.latency_us[q] / 1000:.1f}" if result.count else "" for q in ("p50", "p99", "p99.9", "max")]
    other = ", ".join(f"{count} x {code}" for code, count in result.codes.items() if code != "200")
    failures = ", ".join(f"{count} x {kind}" for kind, count in result.failures.items() if count)
    return f"| {name} | {result.rate:.1f} | {' | '.join(latencies)} | {other} | {failures} | {result.unsent} |"


class MemoryWatch:
    """The resident memory of an instance's processes together, MiB, now and every `every_s` seconds until `stop`."""

    def __init__(self, instance: str, every_s: float = 60.0) -> None:
        self.readings: list[float] = []
        self._instance, self._every_s = instance, every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def stop(self) -> list[float]:
        self._stopped.set()
        self._thread.join(10)
        return self.readings

    def _work(self) -> None:
        while True:
            self.readings.append(sum(one.total for one in of_processes(members(self._instance)).values()))
            if self._stopped.wait(self._every_s):
                return


@click.command()
@click.option("--url", help="A running server (http://127.0.0.1:port); starts the quickstart if not given.")
@click.option("--model", default="moderation", show_default=True)
@click.option("--rows", type=click.IntRange(min=1), default=4, show_default=True, help="Rows of each request.")
@click.option("--seconds", type=click.FloatRange(min=1), default=600.0, show_default=True, help="Of the overload.")
@click.option("--step", type=click.FloatRange(min=1), default=20.0, show_default=True, help="Of the other runs.")
@click.option("--deadline-ms", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option("--threshold-ms", type=click.FloatRange(min=1), default=100.0, show_default=True)
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers here.")
def main(
    url: str | None,
    model: str,
    rows: int,
    seconds: float,
    step: float,
    deadline_ms: int,
    threshold_ms: float,
    path: Path | None,
) -> None:
    """Measure and judge."""
    with ExitStack() as stack:
        memory: MemoryWatch | None = None
        try:
            if url is None:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="canarium-overload-"))
                server = stack.enter_context(
                    Quickstart(_overrides(folder), say=lambda line: click.echo(line, err=True))
                )
                url = server.http_url
                memory = MemoryWatch(Paths.of(server.state_dir).instance)
            port = urlsplit(url).port or 80
            click.echo(HEADER)
            found = overload(
                port,
                requests_of(model, read_rows(DATA), rows),
                seconds=seconds,
                step_s=step,
                deadline_s=deadline_ms / 1000,
                say=click.echo,
            )
        except (CanariumError, LoadError, ValueError) as error:
            raise click.ClickException(str(error)) from None
        readings = memory.stop() if memory is not None else []
    holds = found.holds(threshold_ms)
    click.echo(
        f"\ngoodput at {OVER:.0%} of the peak: {found.kept:.1%} of it; "
        f"p99 of accepted requests {found.result.latency_us['p99'] / 1000:.1f} ms, threshold {threshold_ms:g} ms"
    )
    if readings:
        click.echo(f"resident MiB of all processes by minute: {', '.join(f'{one:.0f}' for one in readings)}")
    click.echo("it holds" if holds else "it does not hold")
    if path is not None:
        numbers = {
            "peak": found.peak,
            "offered": found.offered,
            "kept": found.kept,
            "steps": [{"rate": rate, **result.as_json()} for rate, result in found.steps],
            "overload": found.result.as_json(),
            "resident_mib": readings,
        }
        path.write_text(json.dumps(numbers, indent=1, default=dict) + "\n")
    sys.exit(not holds)


def _overrides(folder: str) -> tuple[str, ...]:
    names = ("http", "grpc", "monitor", "control")
    ports = [f"server.{name}_port={port}" for name, port in zip(names, free_ports(4), strict=True)]
    return (*ports, f"state.dir={Path(folder) / 'state'}")


if __name__ == "__main__":
    main()
