"""Which gateways follow this control plane, by their polls."""

from __future__ import annotations

from typing import Any

import msgspec

from serving.clock import Clock

#: A gateway not heard of for this many seconds is gone. A poll parks for at most 20.
EXPIRES_S = 30.0
GATEWAYS_MAX = 1024


class GatewayInfo(msgspec.Struct, frozen=True):
    """What a gateway says of itself with every poll; `rev` is the snapshot that it has in force."""

    id: str
    node: str = ""
    pid: int = 0
    rev: int = 0


class Gateways:
    """Last sighting of each gateway; at most `GATEWAYS_MAX`, the longest unseen give way."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[GatewayInfo, int]] = {}

    def see(self, gateway: GatewayInfo) -> None:
        self._seen.pop(gateway.id, None)  # to the end: the order is that of the last sighting
        self._seen[gateway.id] = (gateway, self._clock.monotonic_ns())
        while len(self._seen) > GATEWAYS_MAX:
            del self._seen[next(iter(self._seen))]

    def confirmed(self, rev: int) -> bool:
        """Whether every gateway that is still heard of has the snapshot `rev` or a later one in force.

        Nothing is confirmed while none is heard of: a control plane that has just started knows of none yet, and one
        that has fallen silent may still route by an older table.
        """
        heard = self.view()
        return bool(heard) and all(gateway["rev"] >= rev for gateway in heard)

    def view(self) -> list[dict[str, Any]]:
        """The `gateways` part of the status; forgets those that have fallen silent."""
        now = self._clock.monotonic_ns()
        self._seen = {name: seen for name, seen in self._seen.items() if (now - seen[1]) / 1e9 <= EXPIRES_S}
        return [
            {**msgspec.structs.asdict(gateway), "seen_age_s": round((now - at) / 1e9, 3)}
            for gateway, at in sorted(self._seen.values(), key=lambda seen: seen[0].id)
        ]
