"""Which event the present situation of a rollout calls for, and why. Pure: (rollout, facts, time) -> decision.

The reason is there also when nothing is to be done: it says what the rollout waits for, in numbers.
Missing data is never a pass: a guard without fresh data keeps every gate shut.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from serving.contract import SHADOW_GUARDS
from serving.core.evidence import bounded
from serving.core.freeze import SECOND_NS, frozen_until, seconds
from serving.core.rollout import ADVANCING, OUT, Event, Hold, Move, Rollout, State
from serving.core.rollout_policy import Gate

#: A monitor silent for longer than this, in seconds, is lost: the ramp pauses.
MONITOR_SILENT_S = 10.0


class Guard(msgspec.Struct, frozen=True):
    """One guard's verdict on the candidate, as the monitor gave it."""

    name: str
    verdict: str  # pass | fail | inconclusive | no_data | degraded
    action: str = "none"  # none | alert | pause | rollback | kill
    sentence: str = ""
    statistic: dict[str, Any] = {}
    dry_run: bool = False  # it only observes


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a candidate now.

    Args:
        fresh: the monitor has spoken since the latest change of traffic; else guards and counts are unknown.
        guards: verdicts by guard.
        silent_s: seconds since the monitor's heartbeat; None if there was none.
        listened_s: seconds for which this control plane has listened for one.
        workers: workers of the candidate; None if unknown.
        live: live answers of the candidate that the monitor has counted in this attempt.
        pairs: its answers that were compared with the teacher's.
        suspect: live answers that differ from the teacher's, estimated from the compared ones.
        confirmed: every gateway obeys the latest change of traffic.
        room: basis points of live traffic that the candidate can have beside the other candidates and the holdback.
        killed: the model's kill-switch is on.
        headroom: rows a second that the baseline can do over those that are asked; None if unknown.
        ailing: why the baseline is not well itself, or "".
        hindered: why no attempt may begin now: of a rollout that is over, or whose artifact is refused; or "".
    """

    fresh: bool = False
    guards: dict[str, Guard] = {}
    silent_s: float | None = None
    listened_s: float = math.inf
    workers: int | None = None
    live: int = 0
    pairs: int = 0
    suspect: float = 0.0
    confirmed: bool = False
    room: int = 10_000
    killed: bool = False
    headroom: float | None = None
    ailing: str = ""
    hindered: str = ""

    @property
    def monitor_lost(self) -> bool:
        return self.silent_s is None or self.silent_s > MONITOR_SILENT_S


class Decision(msgspec.Struct, frozen=True):
    """`event` None: wait. `why` says for what; `evidence` goes into the trail."""

    event: Event | None
    why: str
    evidence: dict[str, Any] = {}


def decide(rollout: Rollout, facts: Facts, now_ns: int) -> Decision:
    """What to do now. Brakes come first; a freeze turns every advance into a pause."""
    if rollout.state in OUT:
        return _after(rollout, facts)
    decision = _brake(rollout, facts, now_ns) or _onward(rollout, facts, now_ns)
    event = decision.event
    if event is not None and event.move in ADVANCING:
        until = frozen_until(rollout.policy.freeze, now_ns)
        if until is not None:
            why = f"a freeze window is open for {(until - now_ns) / SECOND_NS / 3600:.1f} h more"
            if rollout.state in (State.PENDING, State.WARMUP, State.PAUSED, State.PROMOTING):
                return Decision(None, why)
            return _event(Move.HOLD, facts, rollout, why, hold=Hold.FREEZE)
    return decision


def required(rollout: Rollout, facts: Facts) -> tuple[str, ...]:
    """Guards that must pass: those of the policy but for what a human set aside and what only observes.

    Should all of them only observe, they are required all the same: a promotion needs evidence.
    """
    acting = tuple(name for name in rollout.required if not (name in facts.guards and facts.guards[name].dry_run))
    return acting or rollout.required


def unmet(rollout: Rollout, facts: Facts) -> list[str]:
    """What stands against a promotion: a sentence for each required guard that has not passed."""
    return [_said(guard, facts) for guard in required(rollout, facts) if _word(guard, facts) != "pass"]


def headroom_lack(rollout: Rollout, facts: Facts) -> str | None:
    """Why the baseline could not take all traffic back; None if it can, or nothing is known of it."""
    least = rollout.policy.limits.min_headroom
    if facts.headroom is None or facts.headroom >= least:
        return None
    return (
        f"{rollout.baseline} can do {facts.headroom:.2f} times the present traffic alone, under the {least:g} of "
        "limits.min_headroom: a rollback would bury it"
    )


class Brake(msgspec.Struct, frozen=True):
    """What stops the candidate from getting more traffic. `guard`: the guard that does, if it is one."""

    hold: Hold
    why: str
    guard: Guard | None = None


def brakes(rollout: Rollout, facts: Facts) -> list[Brake]:
    """What stops a ramp now, whoever would go on: a lost monitor, an ailing baseline, guards that pause it.

    Without guards that a human has set aside.
    """
    found = []
    if facts.monitor_lost:
        silent = f"been silent for {facts.silent_s:.0f} s" if facts.silent_s is not None else _UNHEARD
        found.append(Brake(Hold.MONITOR_LOST, f"the monitor has {silent}"))
    if facts.ailing:
        found.append(Brake(Hold.BASELINE, facts.ailing))
    for guard in facts.guards.values():
        if guard.verdict == "fail" and guard.action == "pause" and guard.name not in rollout.waived:
            found.append(Brake(Hold.GUARD, guard.sentence, guard))
    return found


def raise_lacks(rollout: Rollout, facts: Facts) -> list[Brake]:
    """What stands against more traffic by a human's word: the brakes, and too little headroom."""
    lack = headroom_lack(rollout, facts)
    return [*brakes(rollout, facts), *([Brake(Hold.NO_HEADROOM, lack)] if lack else [])]


def promotion_lacks(rollout: Rollout, facts: Facts) -> list[str]:
    """What a promotion by a human needs an override for, a sentence each."""
    judges = required(rollout, facts)
    others = [brake for brake in raise_lacks(rollout, facts) if brake.guard is None or brake.guard.name not in judges]
    return [*unmet(rollout, facts), *(brake.why for brake in others)]


def by_hand(
    move: Move, rollout: Rollout, facts: Facts, why: str, waive: tuple[str, ...] = (), override: bool = False
) -> Event:
    """What a human asks of a rollout, as an event."""
    braked = any(brake.hold in (Hold.GUARD, Hold.MONITOR_LOST) for brake in brakes(rollout, facts))
    return Event(move, why, seen=_seen(move, rollout, facts), waive=waive, free=override or not braked)


# ---------------------------------------------------------------- what has ended


def _after(rollout: Rollout, facts: Facts) -> Decision:
    if rollout.state is State.ROLLING_BACK:
        if facts.confirmed:
            return _event(Move.DONE, facts, rollout, rollout.why)
        return Decision(None, "waits for every gateway to confirm that it is out of traffic")
    if rollout.state is State.KILLED:
        return Decision(None, "the model is killed: waits for a re-arm, and is rolled back then")
    if rollout.state is State.ROLLED_BACK and rollout.failed and rollout.attempt <= rollout.policy.retry.max_attempts:
        if facts.hindered:
            return Decision(None, facts.hindered)
        return _event(Move.RETRY, facts, rollout, f"attempt {rollout.attempt + 1} after: {rollout.why}")
    return Decision(None, "it is over")


# ---------------------------------------------------------------- brakes


def _brake(rollout: Rollout, facts: Facts, now_ns: int) -> Decision | None:
    """What goes back, or stops, whatever the step says."""
    # Before its START clears them, verdicts and counts are about an earlier attempt.
    begun = State.PENDING not in (rollout.state, rollout.held)
    for guard in facts.guards.values() if begun else ():
        if guard.verdict == "fail" and guard.action in ("rollback", "kill"):
            return _event(Move.FAIL, facts, rollout, guard.sentence, evidence=_evidence(guard))
    limits = rollout.policy.limits
    if begun and limits.max_suspect_responses is not None and facts.suspect > limits.max_suspect_responses:
        why = f"about {facts.suspect:.0f} suspect answers were given, over the limit of {limits.max_suspect_responses}"
        evidence: dict[str, Any] = {"limit": "max_suspect_responses", "threshold": limits.max_suspect_responses}
        evidence |= {"suspect": facts.suspect, "live": facts.live, **_guards_evidence(("agreement",), facts)}
        return _event(Move.FAIL, facts, rollout, why, evidence=evidence)
    if now_ns - max(rollout.created_ns, rollout.not_before_ns) > seconds(limits.max_duration) * SECOND_NS:
        why = f"not done within limits.max_duration, {limits.max_duration}"
        return _event(Move.FAIL, facts, rollout, why, evidence={"limit": "max_duration"})
    if rollout.state not in (State.SHADOW, State.RAMPING, State.MONITORING):
        return None
    if facts.silent_s is None and facts.listened_s <= MONITOR_SILENT_S:  # too early to call it lost, or to go on
        return Decision(None, f"waits for the monitor, which has {_UNHEARD}")
    for brake in brakes(rollout, facts):
        if brake.hold is Hold.BASELINE and rollout.state is State.MONITORING:
            continue
        found = _evidence(brake.guard) if brake.guard is not None else {}
        return _event(Move.HOLD, facts, rollout, brake.why, hold=brake.hold, evidence=found)
    return None


# ---------------------------------------------------------------- onward


def _onward(rollout: Rollout, facts: Facts, now_ns: int) -> Decision:
    if rollout.state is State.PENDING:
        if facts.killed:
            return Decision(None, "the model is killed")
        if (wait_ns := rollout.not_before_ns - now_ns) > 0:
            return Decision(None, f"attempt {rollout.attempt} starts in {wait_ns / SECOND_NS:.0f} s")
        if facts.hindered:
            return Decision(None, facts.hindered)
        return _event(Move.START, facts, rollout, f"attempt {rollout.attempt}")
    if rollout.state is State.WARMUP:
        return _warmup(rollout, facts)
    if rollout.state is State.PROMOTING:
        why = "every gateway obeys the promotion"
        return _unsettled(facts, "the promotion") or _event(Move.PROMOTED, facts, rollout, why)
    if rollout.state is State.PAUSED:
        return _paused(rollout, facts, now_ns)
    return _gate(rollout, facts, now_ns)


def _warmup(rollout: Rollout, facts: Facts) -> Decision:
    if facts.monitor_lost:
        return Decision(None, "waits for the monitor")
    if not facts.workers:
        return Decision(None, f"waits for a worker of {rollout.variant}")
    why = f"{rollout.variant} has {facts.workers} worker{'s' if facts.workers > 1 else ''}"
    first = rollout.policy.steps[0]
    if first.shadow is not None:
        return _event(Move.SHADOW, facts, rollout, f"{why}: {first.shadow.percent:g} % of the requests are copied")
    return _to_weight(rollout, facts, Move.RAMP, 0, why)


def _paused(rollout: Rollout, facts: Facts, now_ns: int) -> Decision:
    if rollout.hold in (Hold.MANUAL, Hold.GUARD):
        return Decision(None, f"waits for a human: {rollout.why}")
    if rollout.hold is Hold.APPROVAL:
        if lacks := raise_lacks(rollout, facts):
            return Decision(None, f"{rollout.why}; before more traffic: {'; '.join(lack.why for lack in lacks)}")
        return Decision(None, rollout.why)
    if rollout.hold is Hold.MONITOR_LOST:
        if facts.monitor_lost or not facts.guards:
            return Decision(None, "waits for the monitor")
        return _event(Move.RESUME, facts, rollout, "the monitor is back")
    if rollout.hold is Hold.BASELINE:
        if facts.ailing or facts.monitor_lost:
            return Decision(None, facts.ailing or "waits for the monitor")
        return _event(Move.RESUME, facts, rollout, f"{rollout.baseline} is well again")
    if rollout.hold is Hold.FREEZE:
        return _event(Move.RESUME, facts, rollout, "the freeze window has closed")
    if facts.monitor_lost:
        return Decision(None, "waits for the monitor")
    running = msgspec.structs.replace(rollout, state=rollout.held or State.RAMPING, held=None, hold=None)
    ahead = _gate(running, facts, now_ns)
    if ahead.event is not None and ahead.event.move is Move.FAIL and rollout.hold in (Hold.NO_DATA, Hold.INCONCLUSIVE):
        return ahead
    if ahead.event is not None and ahead.event.move not in (Move.HOLD, Move.FAIL):
        return _event(Move.RESUME, facts, rollout, ahead.why, evidence=ahead.evidence)
    return Decision(None, ahead.why)


def _gate(rollout: Rollout, facts: Facts, now_ns: int) -> Decision:
    """Whether the present step (or the monitoring) is done."""
    step = rollout.step
    if rollout.state is State.MONITORING:
        return _monitoring(rollout, facts, now_ns)
    if rollout.state is State.SHADOW and step is not None and step.shadow is not None:
        missing = _missing(rollout, facts, now_ns, step.shadow, facts.pairs, SHADOW_GUARDS)
        if missing is not None:
            return missing
        found = _gate_evidence(rollout, facts, facts.pairs, SHADOW_GUARDS)
        if not rollout.policy.promotes:
            why = "the shadow has passed; this policy promotes nothing"
            return _event(Move.FINISH, facts, rollout, why, evidence=found)
        return _to_weight(rollout, facts, Move.RAMP, rollout.at + 1, "the shadow has passed", found)
    if step is None:
        # An approval before it has set the weight: verdicts from before that are no lack of data.
        return _unsettled(facts, _weight(rollout)) or _promotion(rollout, facts)
    if step.approve is not None:
        why = f"waits for the approval of {_article(step.approve.role)} {step.approve.role}"
        return _event(Move.HOLD, facts, rollout, why, hold=Hold.APPROVAL)
    if step.bake is not None:
        missing = _missing(rollout, facts, now_ns, step.bake, facts.live, rollout.required)
        if missing is not None:
            return missing
        found = _gate_evidence(rollout, facts, facts.live, rollout.required)
        return _to_weight(rollout, facts, Move.ADVANCE, rollout.at + 1, f"{_weight(rollout)} has held", found)
    why = f"every gateway obeys {_weight(rollout)}"
    return _unsettled(facts, _weight(rollout)) or _to_weight(rollout, facts, Move.ADVANCE, rollout.at + 1, why)


def _unsettled(facts: Facts, what: str) -> Decision | None:
    """Who has yet to see the latest change of traffic: the next step counts from a number given after it."""
    if not facts.confirmed:
        return Decision(None, f"waits for every gateway to confirm {what}")
    return None if facts.fresh else Decision(None, f"waits for the monitor to have seen {what}")


def _missing(
    rollout: Rollout, facts: Facts, now_ns: int, gate: Gate, seen: int, judged: tuple[str, ...]
) -> Decision | None:
    """What keeps a gate shut; None if it is met."""
    guards = [guard for guard in required(rollout, facts) if guard in judged]
    counted = _counted(rollout, seen)
    empty = [guard for guard in guards if _word(guard, facts) in ("no_data", "degraded")]
    unsure = [guard for guard in guards if gate.until == "pass" and _word(guard, facts) not in ("pass", *_EMPTY)]
    spent_s = (now_ns - rollout.step_ns) / SECOND_NS
    waits = [_said(guard, facts) for guard in (*empty, *unsure)]
    if counted < gate.min_requests:
        waits.append(f"{counted} of {gate.min_requests} requests")
    if spent_s < seconds(gate.min_duration):
        waits.append(f"{spent_s:.0f} s of {gate.min_duration}")
    if not waits:
        return None
    why = "; ".join(waits)
    if spent_s < seconds(gate.max_duration):
        return Decision(None, f"waits for: {why}")
    late = f"not done within {gate.max_duration}: {why}"
    found = _gate_evidence(rollout, facts, seen, judged)
    if empty or counted < gate.min_requests:
        return _event(Move.HOLD, facts, rollout, late, hold=Hold.NO_DATA, evidence=found)
    if gate.on_inconclusive == "rollback":
        return _event(Move.FAIL, facts, rollout, late, evidence={"limit": "on_inconclusive", **found})
    return _event(Move.HOLD, facts, rollout, late, hold=Hold.INCONCLUSIVE, evidence=found)


def _counted(rollout: Rollout, seen: int) -> int:
    """Of `seen`, what belongs to the present step. A monitor that lost its state counts from nothing again."""
    return seen - rollout.step_seen if seen >= rollout.step_seen else seen


def _promotion(rollout: Rollout, facts: Facts) -> Decision:
    if waits := unmet(rollout, facts):
        words = {_word(guard, facts) for guard in required(rollout, facts)}
        hold = Hold.NO_DATA if words & set(_EMPTY) else Hold.INCONCLUSIVE
        found = _guards_evidence(required(rollout, facts), facts)
        return _event(Move.HOLD, facts, rollout, f"a promotion needs: {'; '.join(waits)}", hold=hold, evidence=found)
    if (thin := headroom_lack(rollout, facts)) is not None:
        return _event(Move.HOLD, facts, rollout, thin, hold=Hold.NO_HEADROOM)
    if rollout.weight > facts.room:
        lack = f"a promotion needs the {_weight(rollout)} that it has and {_left(facts)}"
        return _event(Move.HOLD, facts, rollout, lack, hold=Hold.NO_ROOM)
    judges = required(rollout, facts)
    passed = "; ".join(_said(guard, facts) for guard in judges)
    evidence = {"passes": {name: bounded(facts.guards[name].statistic) for name in judges}}
    return _event(Move.PROMOTE, facts, rollout, f"every required guard has passed: {passed}", evidence=evidence)


def _monitoring(rollout: Rollout, facts: Facts, now_ns: int) -> Decision:
    monitor = rollout.policy.monitor
    gate = Gate(
        until="time",
        min_requests=monitor.min_requests,
        min_duration=monitor.duration,
        max_duration=rollout.policy.limits.max_duration,  # the limit comes first: see `_brake`
    )
    missing = _missing(rollout, facts, now_ns, gate, facts.live, rollout.required)
    if missing is not None:
        return missing
    why = f"watched for {monitor.duration} after its promotion, nothing failed"
    found = _gate_evidence(rollout, facts, facts.live, rollout.required)
    return _event(Move.SUCCEED, facts, rollout, why, evidence=found)


def _to_weight(
    rollout: Rollout, facts: Facts, move: Move, at: int, why: str, evidence: dict[str, Any] | None = None
) -> Decision:
    """Go on to step `at`, if what it gives can be had beside the other candidates. `evidence`: that it may."""
    wanted = msgspec.structs.replace(rollout, at=at).weight
    if wanted > facts.room:
        lack = f"step {at + 1} needs {wanted / 100:g} % and {_left(facts)}"
        if rollout.state in (State.SHADOW, State.RAMPING):
            return _event(Move.HOLD, facts, rollout, lack, hold=Hold.NO_ROOM)
        return Decision(None, lack)
    more = move is Move.RAMP or wanted > rollout.weight
    if more and (thin := headroom_lack(rollout, facts)) is not None:
        if rollout.state in (State.SHADOW, State.RAMPING):
            return _event(Move.HOLD, facts, rollout, thin, hold=Hold.NO_HEADROOM)
        return Decision(None, thin)
    return _event(move, facts, rollout, why, evidence=evidence)


# ---------------------------------------------------------------- evidence


def _evidence(guard: Guard) -> dict[str, Any]:
    """What a guard's verdict rests on: threshold, counts and examples of request keys are in the statistic."""
    found: dict[str, Any] = bounded(
        {"guard": guard.name, "verdict": guard.verdict, "sentence": guard.sentence, "statistic": guard.statistic}
    )
    return found


def _guards_evidence(names: tuple[str, ...], facts: Facts) -> dict[str, Any]:
    """The same of several guards, by name; without those that have said nothing."""
    return {"guards": {name: _evidence(facts.guards[name]) for name in names if name in facts.guards}}


def _gate_evidence(rollout: Rollout, facts: Facts, seen: int, judged: tuple[str, ...]) -> dict[str, Any]:
    """What a gate was judged by: the answers of its step, and the guards that it waited for."""
    names = tuple(name for name in required(rollout, facts) if name in judged)
    return {"requests": _counted(rollout, seen), **_guards_evidence(names, facts)}


# ---------------------------------------------------------------- words

_EMPTY = ("no_data", "degraded")
_UNHEARD = "not been heard since the control plane started"


def _word(guard: str, facts: Facts) -> str:
    known = facts.guards.get(guard)
    return "no_data" if known is None else known.verdict


def _said(guard: str, facts: Facts) -> str:
    known = facts.guards.get(guard)
    return f"{guard} (no verdict yet)" if known is None else f"{guard}, {known.verdict} ({known.sentence})"


def _weight(rollout: Rollout) -> str:
    return f"{rollout.weight / 100:g} %"


def _left(facts: Facts) -> str:
    return f"the other candidates and the holdback leave {facts.room / 100:g} %"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _event(
    move: Move,
    facts: Facts,
    rollout: Rollout,
    why: str,
    *,
    hold: Hold | None = None,
    evidence: dict[str, Any] | None = None,
) -> Decision:
    return Decision(Event(move, why, hold, _seen(move, rollout, facts)), why, evidence or {})


def _seen(move: Move, rollout: Rollout, facts: Facts) -> int:
    """What the monitor has counted so far of what the next step counts: pairs in a shadow, else live answers.

    Without a fresh count the earlier one stands: counted from 0, the whole attempt would be the next step's.
    """
    if not facts.fresh and move not in (Move.SHADOW, Move.RAMP):  # with these, something else is counted
        return rollout.step_seen
    shadowed = move is Move.SHADOW or (move is not Move.RAMP and State.SHADOW in (rollout.state, rollout.held))
    return facts.pairs if shadowed else facts.live
