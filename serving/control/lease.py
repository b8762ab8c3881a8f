"""One control plane at a time: who leads, and when another may take over.

The lease in the database is a number that rises with every leader; a write that names an older one is refused, so
whatever two processes believe, one alone can change anything. The leader also counts a beat. One that wants to lead
watches the beat by its own monotonic clock: no two clocks are ever compared.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, TypeVar

import msgspec

from serving.clock import Clock
from serving.core.commands import ControlState
from serving.errors import CanariumError

T = TypeVar("T")

#: How often the leader beats, and how long it may be silent before another takes over, in seconds.
BEAT_S = 5.0
LEASE_S = 15.0
LOOK_S = 1.0
#: How long one that starts waits for a leader to go before it gives up: shorter than its own start may take.
WAIT_S = 45.0


class StoreError(CanariumError):
    """The state database could not be read or written; nothing was changed."""


class StaleLease(StoreError):
    """Another control plane has taken over; this one must stop writing."""


class LeaseHeld(StoreError):
    """Another control plane leads, and is alive."""


class Leader(msgspec.Struct, frozen=True):
    """Who leads (nobody if `holder` is empty), by which lease, and how often it has beaten."""

    lease: int
    holder: str
    beat: int


class LeaseStore(Protocol):
    """What this needs of a store; the calls block."""

    holder: str

    def leader(self) -> Leader: ...

    def acquire(self, expected: Leader | None = None) -> ControlState: ...


class Blocking(Protocol):
    """Makes a blocking call elsewhere than on the event loop."""

    def __call__(self, call: Callable[[], T], /) -> Awaitable[T]: ...


async def take_lead(
    store: LeaseStore,
    blocking: Blocking,
    clock: Clock,
    sleep: Callable[[float], Awaitable[None]],
) -> ControlState:
    """Wait until nobody leads, or whoever does has been silent for `LEASE_S`; then lead.

    A leader of the same name is an earlier start of this very control plane, which has ended: no wait.

    Args:
        store: the database.
        blocking: how to call it.
        clock: monotonic time.
        sleep: how to wait, in seconds.

    Returns:
        The state as stored, with the new lease.

    Raises:
        LeaseHeld: another one still leads after `WAIT_S`.
        StoreError: the database does not answer.
    """
    seen: Leader | None = None
    began_ns = since_ns = clock.monotonic_ns()
    while True:
        found = await blocking(store.leader)
        now_ns = clock.monotonic_ns()
        if found != seen:
            seen, since_ns = found, now_ns
        if found.holder in ("", store.holder) or now_ns - since_ns >= LEASE_S * 1e9:
            try:
                return await blocking(partial(store.acquire, found))
            except LeaseHeld:  # another one was quicker, or the leader is back
                continue
        if now_ns - began_ns >= WAIT_S * 1e9:
            raise LeaseHeld(
                f"another control plane ({found.holder}, lease {found.lease}) leads on this database and is alive: "
                "end it first, or give this one a database of its own"
            )
        await sleep(LOOK_S)
