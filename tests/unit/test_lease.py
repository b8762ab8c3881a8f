"""Two control planes on one database: the second waits while the first is alive, and never do both act."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from control_kit import ME, Rig, table

from serving.config import Config
from serving.control.lease import LEASE_S, WAIT_S, LeaseHeld
from serving.core.commands import SetTraffic
from serving.errors import ErrorKind, RequestError
from serving.gateway.live import LiveRouting

CONFIG = Config.model_validate(
    {
        "apiVersion": "canarium/v1",
        "models": {
            "moderation": {"baseline": "teacher", "variants": {"teacher": {"artifact": "moderation/teacher:1"}}}
        },
    }
)


class Standby(Rig):
    """A control plane of another name whose waiting lets time pass; `meanwhile` happens at each look."""

    def __init__(self, folder: Path, holder: str = "b") -> None:
        super().__init__(folder, holder=holder)
        self.looks = 0

    async def _sleep(self, seconds: float) -> None:
        self.looks += 1
        self.clock.advance(seconds)
        self.meanwhile()
        await asyncio.sleep(0)

    def meanwhile(self) -> None:
        """Overridden by tests."""


def traffic(percent: float) -> SetTraffic:
    return SetTraffic("moderation", ME, "salt", {"int8": percent})


async def test_while_the_leader_beats_nobody_takes_over(tmp_path: Path) -> None:
    leader, standby = Rig(tmp_path, holder="a"), Standby(tmp_path)
    await leader.start()
    standby.meanwhile = leader.store.renew  # type: ignore[method-assign]
    with pytest.raises(LeaseHeld, match=r"another control plane \(a, lease 1\) leads on this database and is alive"):
        await standby.start()
    assert WAIT_S <= standby.looks <= WAIT_S + 1
    await leader.plane.execute(traffic(7))
    assert leader.plane.state.lease == 1


async def test_a_leader_that_is_silent_is_replaced_and_what_it_then_tries_is_refused(tmp_path: Path) -> None:
    paused, standby = Rig(tmp_path, holder="a"), Standby(tmp_path)
    await paused.start()
    await paused.plane.execute(traffic(7))
    await standby.start()
    assert LEASE_S <= standby.looks <= LEASE_S + 1
    assert standby.plane.state.lease == 2
    assert table(standby.plane.state).candidates == table(paused.plane.state).candidates

    before = paused.plane.snapshot
    with pytest.raises(RequestError, match="another control plane has taken over") as caught:
        await paused.plane.execute(traffic(8))
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert paused.plane.snapshot == before  # it published nothing
    assert (await standby.trail())[-1].after["weights"]["int8"] == 7
    with pytest.raises(RequestError, match="another control plane has taken over"):
        await paused.plane.execute(traffic(7))  # stepped down for good
    await standby.plane.execute(traffic(9))
    assert (await standby.plane.verify()).ok


async def test_gateways_obey_the_later_leader_only(tmp_path: Path) -> None:
    paused, standby = Rig(tmp_path, holder="a"), Standby(tmp_path)
    await paused.start()
    await standby.start()
    live = LiveRouting(CONFIG, paused.word, paused.clock)
    assert live.accept(standby.plane.state.snapshot())
    assert not live.accept(msgspec.structs.replace(paused.plane.state.snapshot(), rev=2**40))


async def test_one_that_ends_hands_over_at_once(tmp_path: Path) -> None:
    leader, standby = Rig(tmp_path, holder="a"), Standby(tmp_path)
    await leader.start()
    await leader.plane.close()
    await standby.start()
    assert standby.looks == 0


async def test_one_that_crashed_leads_again_at_once(tmp_path: Path) -> None:
    await Standby(tmp_path, "a").start()
    again = Standby(tmp_path, "a")
    await again.start()
    assert (again.looks, again.plane.state.lease) == (0, 2)


async def test_of_two_that_wait_one_leads(tmp_path: Path) -> None:
    gone, quick, slow = Rig(tmp_path, holder="a"), Rig(tmp_path, holder="b"), Standby(tmp_path, "c")
    await gone.start()

    def meanwhile() -> None:
        if slow.looks == LEASE_S:  # just as it was about to take over
            quick.store.acquire()
        elif slow.looks > LEASE_S:
            quick.store.renew()

    slow.meanwhile = meanwhile  # type: ignore[method-assign]
    with pytest.raises(LeaseHeld, match=r"another control plane \(b, lease 2\) leads"):
        await slow.start()
