"""Closed-loop load for integration tests, over the project's own load generator.

Its users are patient: one who is told that a queue is full comes again, as after a moment at which the whole machine
stood still. Every other refusal is an outcome, a 503 above all: it would hide that nobody was there to answer.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterable, Iterator

from loadtests.openloop import ClosedLoop, Outcome
from loadtests.transport import HttpTransport, PatientTransport, Request


def text_request(model: str, text: str, user: str, **headers: str) -> Request:
    """One JSON inference request of `user`."""
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}]}
    pairs = (("x-user-id", user), *((key.replace("_", "-"), value) for key, value in headers.items()))
    return Request(f"/v2/models/{model}/infer", json.dumps(body).encode(), pairs, tag=user)


def send_all(url: str, requests: Iterable[Request], clients: int = 8) -> list[Outcome]:
    """Send every request once from `clients` connections; returns the outcomes."""
    outcomes: list[Outcome] = []
    asyncio.run(_send(url, requests, clients, outcomes))
    return outcomes


async def _send(url: str, requests: Iterable[Request], clients: int, outcomes: list[Outcome]) -> None:
    transport = PatientTransport(HttpTransport(url, timeout_s=60), statuses=(429,))
    try:
        loop = ClosedLoop(transport, requests, clients, on_response=outcomes.append)
        loop.start()
        await loop.wait()
    finally:
        await transport.close()


def told(outcome: Outcome) -> tuple[str, str]:
    """Code and body of an answer."""
    return outcome.code, outcome.response.body.decode(errors="replace")[:200] if outcome.response else ""


class Background:
    """`clients` users in a thread who send until told to stop. Use it as a context manager."""

    def __init__(self, url: str, model: str, clients: int, text: str = "ham spam", users: int = 1000) -> None:
        self._url, self._clients = url, clients
        self._requests = self._forever(model, text, users)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._error: BaseException | None = None
        self.outcomes: list[Outcome] = []

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(120)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
        assert self.outcomes, "not one request was answered"

    def _work(self) -> None:
        try:
            asyncio.run(_send(self._url, self._requests, self._clients, self.outcomes))
        except BaseException as error:
            self._error = error

    def _forever(self, model: str, text: str, users: int) -> Iterator[Request]:
        number = 0
        while not self._stopped.is_set():
            number += 1
            yield text_request(model, text, f"user-{number % users}")

    @property
    def failures(self) -> list[tuple[str, str]]:
        """Code and body of every request that did not get a 2xx answer."""
        return [told(outcome) for outcome in list(self.outcomes) if not outcome.ok]

    @property
    def reasons(self) -> Counter[str]:
        return Counter(outcome.reason for outcome in list(self.outcomes))

    @property
    def variants(self) -> Counter[str]:
        return Counter(outcome.variant for outcome in list(self.outcomes))
