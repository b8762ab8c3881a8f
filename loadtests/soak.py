"""Half an hour of everything that users do at once, and the memory of every process by minute.

    python -m loadtests.memory soak --minutes 30 --rate 40

The instance is the quickstart with a canary, a shadow and reference scoring. The load is single and
several-row requests, feedback, requests that are wrong, and clients that go away before their answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.openloop import OpenLoop, Outcome, Recorder
from loadtests.payloads import Row, feedback_request
from loadtests.rss import Resident, growth, of_processes
from loadtests.transport import Request
from serving.processes import members

#: What the quickstart is started with.
TRAFFIC = (
    "models.moderation.routing.weights={int8: 10}",
    "models.moderation.routing.shadow={distilled: 20}",
    "models.moderation.routing.reference_percent=20",
)
#: Shares of all requests: feedback, wrong in some way, several rows.
FEEDBACK, WRONG, SEVERAL = 0.15, 0.05, 0.2
#: Clients a second that go away before their answer.
LEAVING_RATE = 1.0
#: The instance is flat if its memory grows by less than this from the fifth minute to the last, and if no process
#: grows by as much in the second half. In the first half bounded stores fill up: the records that the gateway keeps
#: for the monitor (65,536), the requests that the monitor remembers for labels to come (20,000).
LIMIT, SETTLED_MINUTE = 0.05, 5


@dataclass
class Soak:
    """The outcome: readings by process (one a minute) and what the generator saw."""

    readings: dict[tuple[int, str], list[Resident]] = field(default_factory=dict)
    minutes: int = 0
    left: int = 0
    recorder: Recorder | None = None

    def growth(self, process: tuple[int, str], since: int = SETTLED_MINUTE) -> tuple[float, float] | None:
        """Relative growth (all, own) since that minute; None for a process that was not there all the time."""
        series = self.readings[process]
        if len(series) < self.minutes or self.minutes <= since + 1:
            return None
        settled = series[since:]
        return growth([one.total for one in settled]), growth([one.own for one in settled])

    @property
    def total(self) -> list[float]:
        """Memory of all processes together, by minute."""
        return [
            sum(series[minute].total for series in self.readings.values() if minute < len(series))
            for minute in range(self.minutes)
        ]


class Mix:
    """Endless requests of the mixed load; feed its answers back to `answered`."""

    def __init__(self, model: str, rows: Sequence[Row], seed: int = 0) -> None:
        self._model = model
        self._rows = rows
        self._draw = random.Random(seed)
        self._known: deque[tuple[str, str]] = deque(maxlen=1000)  # ids that were answered, with their true label
        self._number = 0

    def __iter__(self) -> Iterator[Request]:
        while True:
            chance = self._draw.random()
            if chance < FEEDBACK and self._known:
                yield feedback_request(self._model, *self._known.popleft())
            elif chance < FEEDBACK + WRONG:
                yield self._wrong()
            else:
                yield self.infer(self._draw.randint(2, 8) if self._draw.random() < SEVERAL else 1)

    def infer(self, count: int) -> Request:
        self._number += 1
        chosen = self._draw.choices(self._rows, k=count)
        tensor = {"name": "text", "datatype": "BYTES", "shape": [count], "data": [row.text for row in chosen]}
        name = f"soak-{self._number}"
        headers = (("Content-Type", "application/json"), ("x-user-id", f"user-{self._draw.randrange(5000)}"))
        body = json.dumps({"id": name, "inputs": [tensor]}).encode()
        return Request(f"/v2/models/{self._model}/infer", body, headers, tag=(name, chosen[0].label))

    def answered(self, outcome: Outcome) -> None:
        """Remember what can be given feedback on."""
        if outcome.ok and outcome.request.tag is not None:
            self._known.append(outcome.request.tag)

    def _wrong(self) -> Request:
        path = f"/v2/models/{self._model}/infer"
        wrong = self._draw.choice((b"{", b'{"inputs": []}', b'{"inputs": [{"name": "text", "datatype": "FP32"}]}'))
        return Request(path, wrong, (("Content-Type", "application/json"),))


async def soak(
    url: str, model: str, rows: Sequence[Row], instance: str, *, minutes: int, rate: float, minute_s: float = 60.0
) -> Soak:
    """Load a running instance and read the memory of its processes once a minute, aloud."""
    result, mix = Soak(minutes=minutes + 1), Mix(model, rows)
    load = OpenLoop(url, mix, rate, on_response=mix.answered)
    load.start()
    leaving = asyncio.create_task(_leave(url, mix, result))
    began = time.monotonic()
    try:
        for minute in range(minutes + 1):
            await asyncio.sleep(max(0.0, began + minute * minute_s - time.monotonic()))
            now = of_processes(await asyncio.to_thread(members, instance))
            for process, memory in now.items():
                result.readings.setdefault(process, []).append(memory)
            total, own = (sum(getattr(one, what) for one in now.values()) for what in ("total", "own"))
            print(
                f"minute {minute:3d}: {len(now)} processes, resident {total:.0f} MiB, own {own:.0f} MiB, "
                f"{load.recorder.all.count} answers",
                flush=True,
            )
    finally:
        leaving.cancel()
        result.recorder = await load.stop()
    return result


async def _leave(url: str, mix: Mix, result: Soak) -> None:
    """Clients that send a request and are gone before it is answered, or in the middle of their body."""
    host, _, port = url.removeprefix("http://").partition(":")
    while True:
        await asyncio.sleep(1 / LEAVING_RATE)
        request = mix.infer(8)
        head = f"POST {request.path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(request.body)}\r\n\r\n"
        cut = len(request.body) // 2 if result.left % 4 == 0 else len(request.body)
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(head.encode() + request.body[:cut])
            await writer.drain()
            await asyncio.sleep(0.003)
            writer.transport.abort()
            result.left += 1


def table(result: Soak) -> str:
    """Markdown, one line a process, the largest first."""
    shown = [minute for minute in (0, 5, 10, 15, 20, 25, 30) if minute < result.minutes]
    if shown[-1] != result.minutes - 1:
        shown.append(result.minutes - 1)
    lines = [
        "| process | " + " | ".join(f"minute {minute}" for minute in shown) + " | since minute 5 | own memory |",
        "|---|" + "---:|" * (len(shown) + 2),
    ]
    for process, series in sorted(result.readings.items(), key=lambda item: -item[1][-1].total):
        cells = [f"{series[minute].total:.1f}" if minute < len(series) else "" for minute in shown]
        change = result.growth(process)
        cells += [f"{part:+.1%}" for part in change] if change else ["", ""]
        lines.append(f"| {process[1]} | " + " | ".join(cells) + " |")
    total = result.total
    cells = [f"{total[minute]:.0f}" for minute in shown]
    cells.append(f"{growth(total[SETTLED_MINUTE:]):+.1%}" if result.minutes > SETTLED_MINUTE + 1 else "")
    lines.append(f"| all | {' | '.join(cells)} | |")
    return "\n".join(lines)


def grown(result: Soak) -> list[str]:
    """What is not flat, with by how much; empty if the soak passed."""
    total, half = result.total[min(SETTLED_MINUTE, result.minutes - 1) :], result.minutes // 2
    wrong = [f"all processes {growth(total):+.1%} since minute {SETTLED_MINUTE}"] if growth(total) > LIMIT else []
    for process in result.readings:
        change = result.growth(process, half)
        if change is not None and change[0] > LIMIT:
            wrong.append(f"{process[1]} {change[0]:+.1%} since minute {half}")
    return wrong


def save(result: Soak, path: Path) -> None:
    """All readings as JSON."""
    recorder = result.recorder or Recorder()
    path.write_text(
        json.dumps(
            {
                "processes": [
                    {"pid": pid, "title": name, "mib": [list(one) for one in series]}
                    for (pid, name), series in result.readings.items()
                ],
                "codes": dict(recorder.codes),
                "answers": {f"{variant} {reason}": h.count for (variant, reason), h in recorder.by_answer.items()},
                "left": result.left,
                "unsent": recorder.unsent,
            },
            indent=1,
        )
        + "\n"
    )
