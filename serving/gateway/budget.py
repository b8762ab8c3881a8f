"""A bound on the bytes of requests that a gateway holds at once, over both protocols."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import ErrorKind, RequestError


class Held:
    """The bytes that one request holds; grows as its body arrives."""

    def __init__(self, budget: InflightBudget) -> None:
        self._budget = budget
        self.bytes = 0

    def add(self, count: int) -> None:
        """Raises `RequestError` UNAVAILABLE if that is more than the gateway may hold."""
        self.bytes += count
        self._budget.held += count
        if self._budget.held > self._budget.limit:
            raise RequestError(
                ErrorKind.UNAVAILABLE,
                f"over {self._budget.limit >> 20} MiB of request bodies are in flight, try again later",
                1,
            )


class InflightBudget:
    """`limit` bytes for all requests together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    @contextmanager
    def request(self) -> Iterator[Held]:
        """The share of one request, given back when it ends, however it ends."""
        held = Held(self)
        try:
            yield held
        finally:
            self.held -= held.bytes
