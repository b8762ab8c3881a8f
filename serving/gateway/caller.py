"""What the transports tell the data plane of a request besides its tensors."""

from __future__ import annotations

import itertools
import secrets
from typing import NamedTuple

from serving.errors import bad_request
from serving.protocol.types import shown


class Caller(NamedTuple):
    """Who asks, and how; `arrived_ns` is when the request was complete (CLOCK_MONOTONIC)."""

    arrived_ns: int
    request_id: str = ""
    sticky: str = ""
    override: str = ""
    timeout_ms: int | None = None
    traceparent: str = ""
    within_ms: int | None = None  # what the transport says that the client waits at most
    slices: int = 0  # bits of the declared slices that its headers are in


class RequestIds:
    """Ids for requests that bring none: unique among all processes, and far cheaper than a UUID each."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(8)
        self._count = itertools.count(1)

    def next(self) -> str:
        return f"{self._prefix}-{next(self._count):x}"


def timeout_of(value: object) -> int | None:
    """A request's own deadline in milliseconds. Raises `RequestError` unless it is 1..600000."""
    if value is None:
        return None
    try:
        timeout_ms = int(str(value))
    except ValueError:
        timeout_ms = 0
    if not 1 <= timeout_ms <= 600_000:
        raise bad_request(f"x-canarium-timeout-ms: expected 1 to 600000 milliseconds, got {shown(value)}")
    return timeout_ms
