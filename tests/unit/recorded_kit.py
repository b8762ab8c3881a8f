"""What the tests of recorded events share: spools written as gateways write them, on a clock of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serving.clock import FakeClock
from serving.contract import Cause, Flag, Kind, Reason
from serving.gateway.spool import SpoolWriter

SECOND = 1_000_000_000
VARIANTS = ("teacher", "int8")
LIVE = Flag.LIVE | Flag.BASELINE_VALID


class Gateway:
    """One gateway's spool. Each record gets a request key of its own unless it names one."""

    def __init__(self, folder: Path, clock: FakeClock, name: str = "g0", capacity: int = 8192) -> None:
        self.clock = clock
        self.spool = SpoolWriter.create(folder, name, clock, capacity)
        self.spool.set_model("m", [10.0], ["ham", "spam"])
        self.ids = {variant: self.spool.series_id("m", variant) for variant in VARIANTS}
        self.spool.set_model("other", [10.0], [])
        self.ids["other"] = self.spool.series_id("other", "x")

    @property
    def path(self) -> Path:
        return self.spool.path

    def write(self, kind: Kind, variant: str, answered: str, **more: Any) -> None:
        fields: dict[str, Any] = {
            "flags": LIVE, "status": 200, "rows": 1, "epoch": 1, "mono_ns": self.clock.monotonic_ns(),
            "wall_ns": self.clock.wall_ns(), "request_key": self.spool.written + 1, "total_us": 1000,
        }  # fmt: skip
        self.spool.record(kind, series=self.ids[variant], answered=self.ids[answered], **(fields | more))

    def request(self, variant: str, **more: Any) -> None:
        self.write(Kind.REQUEST, variant, variant, **more)

    def invalid(self, variant: str = "int8", **more: Any) -> None:
        cause = {"cause": Cause.INVALID_OUTPUT, "reason": Reason.FALLBACK}
        self.write(Kind.REQUEST, variant, "teacher", **cause, **more)

    def pair(self, flip: bool = False, kind: Kind = Kind.REFERENCE, **more: Any) -> None:
        self.write(kind, "int8", "teacher", flips=int(flip), cls=int(flip), ref_cls=0, **({"inclusion": 1.0} | more))


def traffic(gateway: Gateway, seconds: int, each: int = 10, flip: bool = False, epoch: int = 1) -> None:
    """`each` requests of both variants a second; the candidate's are scored, and differ if `flip`."""
    for _ in range(seconds):
        for _ in range(each):
            gateway.request("teacher", epoch=epoch)
            gateway.request("int8", epoch=epoch)
            gateway.pair(flip, epoch=epoch)
        gateway.clock.advance(1)
