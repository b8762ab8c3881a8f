"""What makes rollouts move: once a second, each is asked what its situation calls for, and that is carried out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from serving.clock import Clock
from serving.control.plane import Plane
from serving.control.seed import fresh_salt
from serving.core.commands import By, Command, MoveRollout, Rollback
from serving.core.rollout import Move, Rollout
from serving.core.rollout_decide import decide
from serving.errors import RequestError

log = logging.getLogger("canarium.control")

TICK_S = 1.0
#: Who stands in the trail for what no human asked for.
ACTOR = "rollout"
#: What begins an attempt: an artifact that may not be served any more gets none.
BEGINS = (Move.RETRY, Move.START)


class RolloutDriver:
    """Moves every rollout of one plane.

    Args:
        clock: wall time, for the durations of steps.
        salt: makes routing salts.
        sleep: how to wait, in seconds; tests bring their own.
    """

    def __init__(
        self,
        plane: Plane,
        clock: Clock,
        *,
        salt: Callable[[], str] = fresh_salt,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._plane, self._clock, self._salt, self._sleep = plane, clock, salt, sleep

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            await self._sleep(TICK_S)
            try:
                await self.tick()
            except Exception:  # whatever it was, the next tick must come
                log.exception("the rollouts could not be looked at")

    async def tick(self) -> None:
        """One look at every rollout; each makes one move at most."""
        refused: dict[str, str] = {}
        for rollout in list(self._plane.state.rollouts.values()):
            command = self._due(rollout)
            if command is None:
                continue
            if why := await self._refusal(rollout, command):
                refused[rollout.id] = why
                if why != self._plane.refused.get(rollout.id):
                    log.warning("rollout %s: %s", rollout.id, why)
                continue
            try:
                await self._plane.execute(command)
            except RequestError as error:  # a brake came in between, or the database: the next tick sees anew
                log.warning("rollout %s: %s", rollout.id, error.message)
        self._plane.refused = refused

    async def _refusal(self, rollout: Rollout, command: Command) -> str:
        """Why the attempt that a command would begin is refused, as `start` and `retry` by a human would be; or ""."""
        if not isinstance(command, MoveRollout) or command.event.move not in BEGINS:
            return ""
        try:
            await self._plane.require_admission(rollout.model, rollout.variant)
        except RequestError as error:
            return error.message
        return ""

    def _due(self, rollout: Rollout) -> Command | None:
        decision = decide(rollout, self._plane.facts(rollout), self._clock.wall_ns())
        if decision.event is None:
            return None
        by = By(ACTOR, decision.why, {"rollout": rollout.id, **decision.evidence})
        if decision.event.move is Move.FAIL:  # a brake like any other: it acts first and persists behind
            return Rollback(rollout.model, by, rollout.variant)
        return MoveRollout(rollout.id, decision.event, by, self._salt())
