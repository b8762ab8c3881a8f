"""The admin API's rollouts: `/admin/v1/rollouts` and what may be asked of each."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from serving.control.auth import Principal
from serving.control.monitor_link import MonitorLink
from serving.control.plane import Plane
from serving.control.rollouts import rollout_of
from serving.control.seed import fresh_salt
from serving.control.tables import require_epoch
from serving.core.commands import By, MoveRollout, Rollback, StartRollout
from serving.core.rollout import Hold, Move, Rollout
from serving.core.rollout_decide import Facts, brakes, by_hand, promotion_lacks, raise_lacks, required
from serving.core.rollout_plan import StepPlan, plan
from serving.core.rollout_policy import NAMED, Policy, parse_policy
from serving.core.routing import weights as shares_of
from serving.errors import ConfigError, ErrorKind, RequestError, bad_request

log = logging.getLogger("canarium.control")

#: What a human may ask of a rollout, by the word in the path, and what comes of it.
ACTIONS = {
    "pause": "Stop advancing; the weights stay as they are.",
    "resume": "Go on from where it was paused; `override` although a guard pauses it.",
    "promote": "Skip the steps that are left; `override` although a required guard has not passed, something holds the "
    "ramp, or headroom lacks. Needs the role of each approval that it skips.",
    "abort": "End it: the candidate loses its traffic. It acts whatever If-Match says.",
    "approve": "Let it past the approval that it waits for; `override` although a guard pauses it.",
    "retry": "Start it again after its cooldown, with other users and evidence of its own.",
}
_MOVES = {"pause": Move.PAUSE, "approve": Move.APPROVE, "retry": Move.RETRY}


def policy_of(given: Any) -> tuple[str, Policy]:
    """The name and the policy that a request means: the name of a built-in one, or a whole policy.

    Raises:
        RequestError: BAD_REQUEST; the name is unknown, or the policy cannot be used (each fault with its path).
    """
    if isinstance(given, str):
        if given not in NAMED:
            raise bad_request(f"policy: unknown policy {given!r}, expected one of {', '.join(NAMED)}")
        return given, NAMED[given]
    try:
        return "file", parse_policy(given)
    except ConfigError as error:
        raise bad_request("\n".join(_under_policy(line) for line in str(error).splitlines())) from None


def _under_policy(fault: str) -> str:
    """A fault of a policy as one of the body's."""
    return f"policy: {fault}" if fault.startswith("expected") else f"policy.{fault}"


def listed(plane: Plane, model: str | None) -> list[dict[str, Any]]:
    """Every rollout (of one model), the latest first."""
    rollouts = sorted(plane.state.rollouts.values(), key=lambda rollout: rollout.created_ns, reverse=True)
    return [plane.rollout_view(rollout) for rollout in rollouts if model in (None, rollout.model)]


async def start(
    plane: Plane, by: By, model: str, variant: str, policy: Any, epoch: int | None = None
) -> dict[str, Any]:
    """Start a rollout; its view, with the `warnings` of its prediction, none if that cannot be made now.

    Raises:
        RequestError: as `start_rollout`; CONFLICT for an artifact that is not approved where that is enforced;
            PRECONDITION if the model's table is not at `epoch`.
    """
    name, checked = policy_of(policy)
    require_epoch(plane.state, model, epoch)
    await plane.require_admission(model, variant)
    outcome = await plane.execute(StartRollout(model, variant, checked, name, by, epoch))
    view = plane.rollout_view(rollout_of(plane.state, str(outcome.audit[0].after["rollout"])))
    return {**view, "warnings": await asyncio.to_thread(_warnings, plane.monitor, model, variant, checked)}


def _warnings(monitor: MonitorLink, model: str, variant: str, policy: Policy) -> list[str]:
    """What a prediction warns of. The rollout has started by then: nothing about it may fail."""
    try:
        return _warned(plan(policy, monitor.assumed(model, variant)))
    except RequestError:  # nothing is known of the traffic
        return []
    except Exception:  # the monitor's numbers are what they are
        log.exception("no prediction for %s of %s", variant, model)
        return []


def _warned(steps: list[StepPlan]) -> list[str]:
    return [warning for step in steps for warning in step.warnings]


def predict(plane: Plane, by: By, model: str, variant: str, policy: Any, epoch: int | None = None) -> dict[str, Any]:
    """What starting this rollout would take; nothing is started. Raises `RequestError` as `start` does."""
    name, checked = policy_of(policy)
    plane.dry_run(StartRollout(model, variant, checked, name, by, epoch))
    assumed = plane.monitor.assumed(model, variant)
    steps = plan(checked, assumed)
    return {
        "model": model,
        "variant": variant,
        "policy": name,
        "assumed": assumed,
        "steps": steps,
        "warnings": _warned(steps),
    }


async def ask(
    plane: Plane,
    principal: Principal,
    by: By,
    id_: str,
    action: str,
    override: bool = False,
    epoch: int | None = None,
) -> dict[str, Any]:
    """Carry out what a human asks of a rollout; its view afterwards.

    Args:
        override: with `resume` and `approve`, go on although a guard pauses it; with `promote`, although a required
            guard has not passed, something holds the ramp, or the baseline could not take the traffic back. All of
            it is written into the trail.
        epoch: refuse unless the model's table is at it; not with `abort`, which is a rollback and must always act.

    Raises:
        RequestError: NOT_FOUND; FORBIDDEN below the role of an approval that is given or skipped; CONFLICT, with
            `retry` for what `start` is refused for too; PRECONDITION.
    """
    rollout = rollout_of(plane.state, id_)
    facts = plane.facts(rollout)
    if action == "abort":
        if not rollout.live:
            raise RequestError(ErrorKind.CONFLICT, f"rollout {id_}: it is {rollout.state} already")
        evidence = {**by.evidence, "rollout": id_}
        await plane.execute(Rollback(rollout.model, By(by.actor, by.reason, evidence), rollout.variant))
        return plane.rollout_view(rollout_of(plane.state, id_))
    require_epoch(plane.state, rollout.model, epoch)
    if action == "retry":
        await plane.require_admission(rollout.model, rollout.variant)
    for role in _roles(rollout, action):
        principal.require(role)
    waive = _waived(rollout, facts, action, override)
    move = _MOVES.get(action) or Move(action)
    event = by_hand(move, rollout, facts, by.reason, waive, override)
    if action in ("approve", "resume"):
        _refuse_braked_raise(plane, MoveRollout(id_, event, by, "", epoch), rollout, facts, override)
    if overridden := [*waive, *(_set_aside(rollout, facts) if action == "promote" else ())]:
        by = By(by.actor, by.reason, {**by.evidence, "override": overridden})
    await plane.execute(MoveRollout(id_, event, by, fresh_salt(), epoch))
    return plane.rollout_view(rollout_of(plane.state, id_))


def _roles(rollout: Rollout, action: str) -> list[str]:
    """The roles that the steps ask for which an action approves, or skips."""
    if action == "approve" and rollout.hold is Hold.APPROVAL:
        passed = rollout.policy.steps[rollout.at : rollout.at + 1]
    else:
        passed = rollout.policy.steps[rollout.at :] if action == "promote" else ()
    return [step.approve.role for step in passed if step.approve is not None]


def _refuse_braked_raise(plane: Plane, command: MoveRollout, rollout: Rollout, facts: Facts, override: bool) -> None:
    """Raises `RequestError` CONFLICT if the command would raise the candidate's weight while something holds it.

    With `override` guards hold nothing. Whatever else the command is refused for is said first.
    """
    before, after = plane.state.tables.get(rollout.model), plane.dry_run(command).state.tables.get(rollout.model)
    if before is None or after is None or shares_of(after)[rollout.variant] <= shares_of(before)[rollout.variant]:
        return
    lacks = [lack for lack in raise_lacks(rollout, facts) if lack.guard is None or not override]
    if not lacks:
        return
    word = command.event.move
    hint = f"{word} it when that is over"
    if any(lack.guard is not None for lack in lacks):
        hint += f'; to {word} it although a guard pauses it, ask again with "override": true'
    held = "; ".join(lack.why for lack in lacks)
    raise RequestError(ErrorKind.CONFLICT, f"rollout {rollout.id}: it may not get more traffic: {held}; {hint}")


def _set_aside(rollout: Rollout, facts: Facts) -> list[str]:
    """What a promotion sets aside beside guards, in a word each."""
    names = {Hold.NO_HEADROOM: "headroom"}
    return [names.get(lack.hold, str(lack.hold)) for lack in raise_lacks(rollout, facts) if lack.guard is None]


def _waived(rollout: Rollout, facts: Facts, action: str, override: bool) -> tuple[str, ...]:
    """The guards that a human sets aside. Raises `RequestError` CONFLICT if one would have to be and is not."""
    pausing = [brake.guard.name for brake in brakes(rollout, facts) if brake.guard is not None]
    if action == "promote":
        if (lacks := promotion_lacks(rollout, facts)) and not override:
            raise RequestError(
                ErrorKind.CONFLICT,
                f"rollout {rollout.id}: a promotion needs a pass of every required guard, a ramp that nothing holds, "
                f'and room to go back: {"; ".join(lacks)}. To promote it all the same, ask again with "override": true',
            )
        words = {name: guard.verdict for name, guard in facts.guards.items()}
        failing = [name for name in required(rollout, facts) if words.get(name) != "pass"]
        return tuple(dict.fromkeys((*failing, *pausing)))
    return tuple(pausing) if action in ("resume", "approve") and override else ()
