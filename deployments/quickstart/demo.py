"""`make demo`: the quickstart's story, live, with real mails.

    python -m deployments.quickstart.demo [--exit] [--json FILE] [--set key=value …]

Builds the variants if they are missing, starts a server with a state directory of its own, sends it
mails of the test split, gives a tenth of them first to a good variant and then to a damaged one, and
shows how a guard takes the damaged one away. Then it stays up until Ctrl-C, or leaves with --exit:
exit code 0 only if every beat was observed.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from deployments.quickstart.running import DATA, Quickstart
from deployments.quickstart.story import Story
from deployments.quickstart.timeline import Plan, Timeline
from loadtests.openloop import OpenLoop, Recorder
from loadtests.payloads import feedback_request, infer_requests, read_rows
from loadtests.percentiles import Histogram
from loadtests.transport import HttpTransport, PatientTransport, TransportError
from serving.client import AdminClient
from serving.clock import SystemClock
from serving.commands.render import verdict_table
from serving.errors import CanariumError

Json = dict[str, Any]
QUIET_TICK_S = 5.0
LABEL_QUEUE = 1000
#: Clients set deadlines of their own: these would rather wait than get no answer. What they waited is in the latencies.
DEADLINE_MS, ATTEMPTS = 10_000, 8


class Terminal:
    """Tells the story with rich; without a terminal, progress is a plain line every five seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("", spinner="dots") if console.is_terminal else None
        self._last_tick = 0.0

    def __enter__(self) -> Terminal:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def beat(self, number: int, title: str) -> None:
        self._console.print()
        self._console.print(Rule(Text(f"{number}  {title}", style="bold"), align="left"))

    def say(self, line: str) -> None:
        style = "bold red" if line.startswith("MISSING") else ""
        self._console.print(Text(f"{_clock()}  {line}", style=style))

    def now(self, line: str) -> None:
        if self._status is not None:
            self._status.update(Text(line, style="dim"))
        elif time.monotonic() - self._last_tick >= QUIET_TICK_S:
            self._last_tick = time.monotonic()
            self._console.print(Text(f"{_clock()}  … {line}"))

    def verdicts(self, rows: list[Json]) -> None:
        if rows:
            self._console.print(verdict_table(rows))


class AdminThread:
    """The synchronous admin client, called off the event loop so that the load keeps its schedule."""

    def __init__(self, client: AdminClient) -> None:
        self._client = client

    async def model(self, model: str) -> Json:
        return await asyncio.to_thread(self._client.model, model)

    async def verdicts(self, model: str) -> Json:
        return await asyncio.to_thread(self._client.verdicts, model)

    async def audit(self, model: str, limit: int) -> list[Json]:
        return await asyncio.to_thread(self._client.audit, model, limit=limit)

    async def traffic(self, model: str, weights: Mapping[str, float], reason: str) -> Json:
        return await asyncio.to_thread(self._client.traffic, model, weights=weights, reason=reason)


class Labels:
    """Sends true labels as feedback, one at a time, from a bounded queue; what does not fit is counted."""

    def __init__(self, url: str, model: str, timeline: Timeline) -> None:
        self._transport = HttpTransport(url, timeout_s=30)
        self._model, self._timeline = model, timeline
        self._queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue(LABEL_QUEUE)
        self.dropped = 0

    def give(self, request_id: str, label: str) -> None:
        try:
            self._queue.put_nowait((request_id, label))
        except asyncio.QueueFull:
            self.dropped += 1

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                request_id, label = await self._queue.get()
                try:
                    answer = await self._transport.send(feedback_request(self._model, request_id, label))
                    ok = 200 <= answer.status < 300
                except TransportError:
                    ok = False
                self._timeline.labels_sent += ok
                self._timeline.labels_failed += not ok
        finally:
            await self._transport.close()


async def tell(console: Console, quickstart: Quickstart, plan: Plan, rate: float) -> tuple[Timeline, Recorder]:
    """The story against a running server."""
    patient = (("x-canarium-timeout-ms", str(DEADLINE_MS)),)
    requests = infer_requests(plan.model, read_rows(DATA), prefix=f"demo-{os.getpid()}", headers=patient)
    with Terminal(console) as narrator, AdminClient(quickstart.control_url, actor="demo") as client:
        story = Story(plan, AdminThread(client), narrator, clock=SystemClock())
        labels = Labels(quickstart.http_url, plan.model, story.timeline)
        story.give_label = labels.give
        mails = PatientTransport(HttpTransport(quickstart.http_url, timeout_s=60), attempts=ATTEMPTS)
        load = OpenLoop(mails, requests, rate, on_response=story.on_response)
        worker = asyncio.create_task(labels.run())
        try:
            timeline = await story.tell(load)
        finally:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
            await mails.close()
    timeline.sent_again = mails.sent_again
    if timeline.labels_failed:
        timeline.missing.append(f"{timeline.labels_failed} labels were refused")
    return timeline, load.recorder


def show_timeline(console: Console, timeline: Timeline, recorder: Recorder, plan: Plan) -> None:
    """The numbers, in the order in which they happened."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    last, trip_to_last = timeline.last_candidate_answer_at, timeline.trip_to_last_candidate_answer_ms
    rows = [
        (f"first request routed to {plan.damaged}", _time(timeline.onset_at)),
        (f"{timeline.trip_action or 'trip'} by the monitor", _time(timeline.trip_at)),
        ("its reason", timeline.trip_reason or "-"),
        (f"last answer by {plan.damaged}", _time(last)),
        ("onset to trip", _number(timeline.onset_to_trip_s, "s", 2)),
        ("trip to the last candidate answer", _number(trip_to_last, "ms", 0)),
        ("requests routed to the candidate", str(timeline.routed_to_candidate)),
        ("suspect answers served", f"{timeline.suspect_answers}, of which wrong {timeline.wrong_suspect_answers}"),
        ("client failures", str(timeline.client_failures)),
        ("refused for want of room and sent again", str(timeline.sent_again)),
        ("true labels given", str(timeline.labels_sent)),
        ("answers", ", ".join(f"{name} {count}" for name, count in timeline.answers.items())),
    ]
    rows += [(f"latency {name}", _latency(histogram)) for name, histogram in _by_variant(recorder).items()]
    for name, value in rows:
        table.add_row(name, Text(value))
    title = "every beat was observed" if timeline.ok else "NOT every beat was observed"
    console.print()
    console.print(Panel(table, title=title, title_align="left", border_style="green" if timeline.ok else "red"))
    for complaint in timeline.missing:
        console.print(Text(f"missing: {complaint}", style="bold red"))


def document(timeline: Timeline, recorder: Recorder, plan: Plan, rate: float) -> Json:
    """The numbers for `--json`."""
    return {
        "ok": timeline.ok,
        "rate": rate,
        "plan": asdict(plan),
        **asdict(timeline),
        "onset_to_trip_s": timeline.onset_to_trip_s,
        "trip_to_last_candidate_answer_ms": timeline.trip_to_last_candidate_answer_ms,
        "latency_ms": {name: histogram.milliseconds() for name, histogram in _by_variant(recorder).items()},
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "processor": _processor(),
            "python": platform.python_version(),
        },
    }


@click.command()
@click.option("--exit", "leave", is_flag=True, help="Leave after the story; 0 only if every beat was observed.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers here.")
@click.option("--rate", type=click.FloatRange(20, 1000), default=80.0, show_default=True, help="Requests a second.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key of canarium.yaml.")
def main(leave: bool, json_path: Path | None, rate: float, overrides: tuple[str, ...]) -> None:
    """Tell the quickstart's story against a real server on this machine."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    signal.signal(signal.SIGTERM, _interrupt)
    plan = Plan()
    try:
        with Quickstart(overrides, say=lambda line: console.print(Text(f"{_clock()}  {line}"))) as quickstart:
            _addresses(console, quickstart)
            timeline, recorder = asyncio.run(tell(console, quickstart, plan, rate))
            show_timeline(console, timeline, recorder, plan)
            if json_path is not None:
                json_path.write_text(json.dumps(document(timeline, recorder, plan, rate), indent=2) + "\n")
            _addresses(console, quickstart)
            if not leave:
                console.print("The server stays up; Ctrl-C stops it.")
                signal.pause()
    except KeyboardInterrupt:
        sys.exit(130)
    except (CanariumError, ValueError, OSError) as error:
        console.print(Text(f"demo: {error}", style="bold red"))
        sys.exit(1)
    sys.exit(0 if timeline.ok else 1)


def _addresses(console: Console, quickstart: Quickstart) -> None:
    console.print()
    for name, url in (
        ("console", f"{quickstart.control_url}/"),
        ("metrics", f"{quickstart.monitor_url}/metrics"),
        ("inference", f"{quickstart.http_url}/v2/models/moderation/infer"),
    ):
        console.print(Text(f"  {name:10}{url}"))


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _by_variant(recorder: Recorder) -> dict[str, Histogram]:
    merged: dict[str, Histogram] = {}
    for (variant, _), histogram in sorted(recorder.by_answer.items()):
        merged[variant] = merged.get(variant, Histogram()).merge([histogram])
    return merged


def _latency(histogram: Histogram) -> str:
    row = histogram.milliseconds()
    return f"p50 {row['p50']} ms, p99 {row['p99']} ms, max {row['max']} ms ({row['count']} answers)"


def _clock() -> str:
    return datetime.now(UTC).strftime("%H:%M:%S")


def _time(at: float | None) -> str:
    return "-" if at is None else datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S.%f")[:-3] + " UTC"


def _number(value: float | None, unit: str, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f} {unit}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
