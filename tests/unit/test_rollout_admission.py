"""Rollouts that move by themselves begin no attempt with an artifact that may not be served."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from control_kit import ME, Rig, spec, table
from rollout_kit import POLICY

from serving.control.gateways import GatewayInfo
from serving.control.monitor_link import Heartbeat
from serving.control.rollout_driver import RolloutDriver
from serving.core.commands import By, Rollback, StartRollout
from serving.core.rollout import Rollout, State
from serving.core.routing import weights

REVOKED = "models.moderation.variants.int8: moderation/int8:1 is not approved"


class Governed:
    """A rollout with one retry, the driver that moves it, and what stands against its artifact."""

    def __init__(self, folder: Path) -> None:
        self.fault = ""
        self.rig = Rig(folder, refusal=lambda model, variant, artifact: self.fault)
        self.driver = RolloutDriver(self.rig.plane, self.rig.clock, salt=lambda: "salt-of-the-test")

    async def start(self) -> Governed:
        await self.rig.start({"moderation": spec(weights={}, shadow={})})
        await self.rig.plane.execute(StartRollout("moderation", "int8", POLICY["short"], "file", ME))
        return self

    async def tick(self, times: int = 1) -> None:
        """Each a minute later."""
        plane = self.rig.plane
        for _ in range(times):
            self.rig.clock.advance(60)
            counts = {"moderation": {"int8": {"workers": 1}}}
            plane.heartbeat(Heartbeat(at="now", mode="ok", rev=plane.state.rev, counts=counts))
            plane.gateways.see(GatewayInfo("gateway-1", rev=plane.state.rev))
            await self.driver.tick()

    @property
    def rollout(self) -> Rollout:
        return self.rig.plane.state.rollouts["int8-1"]

    @property
    def waiting(self) -> str:
        return str(self.rig.plane.rollout_view(self.rollout)["waiting"])


@pytest.fixture
async def governed(tmp_path: Path) -> Governed:
    return await Governed(tmp_path).start()


async def test_a_retry_by_itself_waits_while_its_artifact_is_refused(
    governed: Governed, caplog: pytest.LogCaptureFixture
) -> None:
    await governed.rig.plane.execute(Rollback("moderation", By("monitor", "loss", {"guard": "errors"}), "int8"))
    governed.fault = REVOKED
    with caplog.at_level(logging.WARNING, "canarium.control"):
        await governed.tick(6)
    assert (governed.rollout.state, governed.rollout.attempt, governed.waiting) == (State.ROLLED_BACK, 1, REVOKED)
    assert weights(table(governed.rig.plane.state))["int8"] == 0
    assert [record.getMessage() for record in caplog.records] == [f"rollout int8-1: {REVOKED}"]  # once
    governed.fault = ""
    await governed.tick()
    assert (governed.rollout.state, governed.rollout.attempt) == (State.PENDING, 2)
    governed.fault = REVOKED  # in its cooldown
    await governed.tick(3)
    assert (governed.rollout.state, governed.waiting) == (State.PENDING, REVOKED)
    governed.fault = ""
    await governed.tick()
    assert (governed.rollout.state, governed.waiting) == (
        State.WARMUP,
        "int8 has 1 worker: 100 % of the requests are copied",
    )


async def test_a_first_attempt_waits_too_and_can_be_ended(governed: Governed) -> None:
    governed.fault = REVOKED
    await governed.tick(2)
    assert (governed.rollout.state, governed.waiting) == (State.PENDING, REVOKED)
    await governed.rig.plane.execute(Rollback("moderation", ME, "int8"))
    await governed.tick()
    assert (governed.rollout.state, governed.waiting) == (State.ROLLED_BACK, "")
