"""A bound on the bytes of requests that a gateway holds at once, over both protocols."""

from __future__ import annotations

from serving.errors import ErrorKind, RequestError

#: Bytes of a request that brings no tensors.
SMALL_BODY = 65_536


def over(what: str, limit: int) -> RequestError:
    """The refusal of a body of more than `limit` bytes."""
    size = f"{limit >> 20} MiB" if limit >> 20 else f"{limit >> 10} KiB"
    return RequestError(ErrorKind.TOO_LARGE, f"{what} is over the limit of {size}")


class InflightBudget:
    """`limit` bytes for all requests together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0


class Held:
    """The bytes that one request holds; grows as its body arrives, and must be released when it ends."""

    __slots__ = ("_budget", "bytes")

    def __init__(self, budget: InflightBudget) -> None:
        self._budget = budget
        self.bytes = 0

    def add(self, count: int) -> None:
        """Raises `RequestError` UNAVAILABLE if that is more than the gateway may hold."""
        self.bytes += count
        budget = self._budget
        budget.held += count
        if budget.held > budget.limit:
            raise RequestError(
                ErrorKind.UNAVAILABLE,
                f"over {budget.limit >> 20} MiB of request bodies are in flight, try again later",
                1,
            )

    def release(self) -> None:
        """Give it all back."""
        self._budget.held -= self.bytes
        self.bytes = 0
