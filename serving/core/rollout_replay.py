"""What a rollout would have done by evidence that was recorded: facts second by second in, moves out. Pure.

The traffic is what it was. A step's weight is taken as given, every gateway to obey at once, the monitor and a
worker to be there: what is replayed is when gates are met and brakes pull by this evidence. Approvals are taken
for granted unless it is to stop there. It ends with the first rollback: another attempt would need other users.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from serving.core.freeze import frozen_until
from serving.core.rollout import ENDED, OUT, Event, Hold, Move, Rollout, State, step
from serving.core.rollout_decide import Decision, Facts, Guard, decide
from serving.core.rollout_policy import Policy

replace = msgspec.structs.replace


class Moved(msgspec.Struct, frozen=True):
    """One move. `before` and `after`: the rollouts around it; the counts: what was seen by then."""

    at_ns: int
    move: Move
    before: Rollout
    after: Rollout
    live: int
    pairs: int
    suspect: float


class Replayed(msgspec.Struct, frozen=True):
    """How it ended. `waiting`: what it still waits for at the end of the recording, or ""."""

    rollout: Rollout
    moves: list[Moved]
    waiting: str

    @property
    def outcome(self) -> str:
        """rolled_back, killed, succeeded or under_way."""
        state = self.rollout.state
        if state is State.ROLLING_BACK:
            return "rolled_back"
        return str(state) if state in OUT else "under_way"


def recorded(guards: dict[str, Guard], live: int, pairs: int, suspect: float) -> Facts:
    """Facts of a time at which everything but the evidence is as a rollout wants it."""
    return Facts(
        fresh=True, guards=guards, silent_s=0.0, workers=1, live=live, pairs=pairs, suspect=suspect, confirmed=True
    )


def replay(
    policy: Policy, named: str, model: str, variant: str, looks: Iterable[tuple[int, Facts]], *, approve: bool = True
) -> Replayed:
    """Run a rollout over facts; all of them are read, also those after its end.

    Args:
        named: name of the policy.
        looks: times (nanoseconds since the epoch, never back) and what was known then; at least one.
        approve: take every approval for granted; else wait there to the end.
    """
    rollout: Rollout | None = None
    moves: list[Moved] = []
    waiting = ""
    for now_ns, facts in looks:
        if rollout is None:
            rollout = Rollout(
                id=f"{variant}-replay", model=model, variant=variant, policy=policy, policy_name=named,
                started_by="replay", created_ns=now_ns, changed_ns=now_ns,
            )  # fmt: skip
        if rollout.state in ENDED or rollout.state is State.KILLED:
            continue
        decision = decide(rollout, facts, now_ns)
        event = _approval(rollout, facts, now_ns) if approve and decision.event is None else _event(decision, facts)
        waiting = decision.why
        if event is None:
            continue
        before, (rollout, _) = rollout, step(rollout, event, now_ns)
        moves.append(Moved(now_ns, event.move, before, rollout, facts.live, facts.pairs, facts.suspect))
        waiting = "" if rollout.state in OUT else decide(rollout, facts, now_ns).why
    if rollout is None:
        raise ValueError("there is nothing to replay")
    return Replayed(rollout, moves, waiting)


def _approval(rollout: Rollout, facts: Facts, now_ns: int) -> Event | None:
    """The approval that a paused rollout waits for, unless a freeze window is open."""
    if rollout.hold is not Hold.APPROVAL or frozen_until(rollout.policy.freeze, now_ns) is not None:
        return None
    return Event(Move.APPROVE, "the approval is taken for granted", seen=facts.live)


def _event(decision: Decision, facts: Facts) -> Event | None:
    event = decision.event
    if event is None:
        return None
    guard = facts.guards.get(str(decision.evidence.get("guard")))
    if event.move is Move.FAIL and guard is not None and guard.action == "kill":
        return replace(event, move=Move.KILL)  # the monitor would have killed the model, not waited for the rollout
    return event
