"""The quickstart's story: a healthy canary stays, a broken one is taken away by a guard.

Four beats, each observed or reported as missing. No terminal, process or socket here: load, control
plane, clock and narrator are arguments, so the same story runs against a fake in the tests.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

from deployments.quickstart.timeline import Plan, Timeline, unix_seconds
from loadtests.openloop import OpenLoop, Outcome, Recorder, Sleep
from serving.client import ClientError
from serving.clock import Clock

Json = dict[str, Any]
Found = TypeVar("Found")
POLL_S = 0.25


class Control(Protocol):
    """What the story needs of the control plane."""

    async def model(self, model: str) -> Json: ...
    async def verdicts(self, model: str) -> Json: ...
    async def audit(self, model: str, limit: int) -> list[Json]: ...
    async def traffic(self, model: str, weights: Mapping[str, float], reason: str) -> Json: ...


class Narrator(Protocol):
    """Who tells the story."""

    def beat(self, number: int, title: str) -> None: ...
    def say(self, line: str) -> None: ...
    def now(self, line: str) -> None:
        """What is going on at the moment; may be shown and forgotten."""
        ...

    def verdicts(self, rows: list[Json]) -> None: ...


class Story:
    """Tells the story once.

    Args:
        plan: who and how long.
        control: the control plane.
        narrator: the screen.
        clock, sleep: time.
        give_label: called with (request id, true label) for a share of the answers; must not block.
        labelled: that share, 0..1.
        seed: of the choice of labelled answers.
    """

    def __init__(
        self,
        plan: Plan,
        control: Control,
        narrator: Narrator,
        *,
        clock: Clock,
        sleep: Sleep = asyncio.sleep,
        give_label: Callable[[str, str], None] = lambda request_id, label: None,
        labelled: float = 0.5,
        seed: int = 0,
    ) -> None:
        self.plan, self.timeline = plan, Timeline()
        self._control, self._narrator, self._clock, self._sleep = control, narrator, clock, sleep
        self._labelled, self._random = labelled, random.Random(seed)
        self.give_label = give_label
        self._answers: Counter[str] = Counter()  # of the present beat, by variant
        self._example: Outcome | None = None
        self._damaged_live = False
        self._complaint: str | None = None
        self._failure = ""  # what the first failed request was told

    # ------------------------------------------------------------ what the load generator reports

    def on_response(self, outcome: Outcome) -> None:
        """Count one answer."""
        at = outcome.finished_wall_ns / 1e9
        if not outcome.ok:
            self.timeline.client_failures += 1
            self._answers[f"failed {outcome.code}"] += 1
            self._failure = self._failure or _failure(outcome)
            return
        request_id, row = outcome.request.tag
        self._answers[outcome.variant] += 1
        if row.label == "ham":  # what is shown on a screen had better not be spam
            self._example = outcome
        mine = outcome.variant == self.plan.damaged
        if mine or (self._damaged_live and outcome.reason.startswith("fallback")):
            self.timeline.routed_to_candidate += 1
            self.timeline.onset_at = self.timeline.onset_at or at
        if mine:
            self.timeline.suspect_answers += 1
            self.timeline.wrong_suspect_answers += _answer(outcome) != row.label
            self.timeline.last_candidate_answer_at = max(at, self.timeline.last_candidate_answer_at or at)
        if self._random.random() < self._labelled:
            self.give_label(request_id, row.label)

    # ------------------------------------------------------------ the beats

    async def tell(self, load: OpenLoop) -> Timeline:
        """Run all beats under this load, which must report to `on_response`. Bounded in time."""
        load.start()
        try:
            for beat in (self._baseline, self._canary, self._tripped, self._recovered):
                if not await beat():
                    break
        except ClientError as error:
            self._miss(f"the control plane did not do as told: {error}")
        finally:
            recorder = await load.stop()
        self._close(recorder)
        return self.timeline

    async def _baseline(self) -> bool:
        plan = self.plan
        self._narrator.beat(1, f"all traffic is on the baseline {plan.baseline}")
        await self._watch(plan.baseline_s)
        answers = self._take_answers()
        self._show(answers)
        return self._observe(
            "baseline",
            sum(answers.values()) >= plan.least_answers and set(answers) == {plan.baseline},
            f"expected only {plan.baseline} to answer, at least {plan.least_answers} times; got {dict(answers)}",
        )

    async def _canary(self) -> bool:
        plan = self.plan
        self._narrator.beat(2, f"{plan.percent:g} % canary on {plan.healthy}")
        await self._control.traffic(plan.model, {plan.healthy: plan.percent}, "demo: a healthy canary")
        await self._watch(plan.canary_s, verdicts_of=plan.healthy)
        answers = self._take_answers()
        self._show(answers)
        fresh = await self._until(lambda: self._fresh_verdicts(plan.healthy), plan.arrival_limit_s)
        stale, verdicts = fresh is None, fresh or []
        self._narrator.verdicts(verdicts)
        failing = [str(one.get("sentence")) for one in verdicts if one.get("verdict") == "fail"]
        seen = [one for one in verdicts if one.get("verdict") in ("pass", "inconclusive")]
        weight = await self._weight(plan.healthy)
        complaint = (
            f"the monitor's verdicts are stale ({self._complaint or 'no heartbeat'})" if stale
            else f"a guard failed {plan.healthy}: {'; '.join(failing)}" if failing
            else f"no guard had anything to say about {plan.healthy}" if not seen
            else f"{plan.healthy} has {weight:g} % and not {plan.percent:g} %" if weight != plan.percent
            else f"{plan.healthy} answered {answers[plan.healthy]} times, expected at least {plan.least_answers}"
            if answers[plan.healthy] < plan.least_answers
            else None
        )  # fmt: skip
        return self._observe("canary", complaint is None, complaint or "")

    async def _tripped(self) -> bool:
        plan = self.plan
        self._narrator.beat(3, f"{plan.healthy} steps back, {plan.damaged} takes {plan.percent:g} %")
        newest = await self._newest_audit()
        await self._control.traffic(
            plan.model, {plan.healthy: 0, plan.damaged: plan.percent}, "demo: a broken candidate"
        )
        self._damaged_live = True
        if await self._until(self._onset, plan.arrival_limit_s) is None:
            return self._observe("tripped", False, f"{plan.damaged} got no request in {plan.arrival_limit_s:g} s")
        self._narrator.say(f"the first request went to {plan.damaged}")
        entry = await self._until(lambda: self._trip_after(newest), plan.trip_limit_s)
        if entry is None:
            await self._control.traffic(plan.model, {plan.damaged: 0}, "demo: no guard tripped in time")
            why = f" ({self._complaint})" if self._complaint else ""
            return self._observe("tripped", False, f"no guard tripped within {plan.trip_limit_s:g} s{why}")
        line = self.timeline
        line.trip_at, line.trip_action = unix_seconds(entry.get("at")), str(entry.get("action"))
        line.trip_reason, line.trip_evidence = str(entry.get("reason")), entry.get("evidence")
        self._narrator.say(f"{entry.get('action')} by {entry.get('actor')}: {entry.get('reason')}")
        return self._observe("tripped", True, "")

    async def _recovered(self) -> bool:
        plan = self.plan
        self._narrator.beat(4, f"everything is back on {plan.baseline}")
        await self._watch(plan.settle_s / 2)  # answers under way at the trip are counted, not judged
        self._take_answers()
        await self._watch(plan.settle_s / 2)
        answers = self._take_answers()
        self._show(answers)
        weight = await self._weight(plan.damaged, unless_killed=True)
        alone = set(answers) == {plan.baseline} and sum(answers.values()) > 0
        complaint = f"expected only {plan.baseline} to answer after the trip; got {dict(answers)}"
        if alone and weight:
            complaint = f"the control plane still gives {plan.damaged} {weight:g} %"
        return self._observe("recovered", alone and not weight, complaint)

    # ------------------------------------------------------------ looking

    async def _watch(self, seconds: float, verdicts_of: str | None = None) -> None:
        """Let time pass and tell every second what is going on."""
        end = self._clock.monotonic_ns() + int(seconds * 1e9)
        while (left := end - self._clock.monotonic_ns()) > 0:
            await self._sleep(min(1.0, left / 1e9))
            line = _shares(self._answers)
            if verdicts_of is not None:
                words = Counter(str(one.get("verdict")) for one in (await self._verdicts(verdicts_of))[0])
                line += "; guards: " + (", ".join(f"{count} {word}" for word, count in words.items()) or "no data yet")
            self._narrator.now(line)

    async def _until(self, look: Callable[[], Awaitable[Found | None]], limit_s: float) -> Found | None:
        """What `look` finds within the limit; a control plane that fails to answer is asked again."""
        end = self._clock.monotonic_ns() + int(limit_s * 1e9)
        while self._clock.monotonic_ns() < end:
            try:
                if (found := await look()) is not None:
                    return found
            except ClientError as error:
                self._complaint = str(error)
            self._narrator.now(_shares(self._answers))
            await self._sleep(POLL_S)
        return None

    async def _onset(self) -> float | None:
        return self.timeline.onset_at

    async def _newest_audit(self) -> int:
        return max((int(entry["seq"]) for entry in await self._control.audit(self.plan.model, 1)), default=0)

    async def _trip_after(self, newest: int) -> Json | None:
        """The first rollback or kill of the damaged candidate by the monitor after an audit entry."""
        for entry in reversed(await self._control.audit(self.plan.model, 20)):
            action, about = str(entry.get("action")), entry.get("variant")
            if (
                int(entry["seq"]) > newest
                and str(entry.get("actor", "")).startswith("monitor")
                and action in ("rollback", "kill")
                and about in (self.plan.damaged, None, "", "*")
            ):
                return entry
        return None

    async def _verdicts(self, variant: str) -> tuple[list[Json], bool]:
        """The guards' verdicts about a variant, and whether they are stale."""
        try:
            answer = await self._control.verdicts(self.plan.model)
        except ClientError as error:
            self._complaint = str(error)
            return [], True
        rows = [one for one in answer.get("verdicts", []) if one.get("variant") == variant]
        return rows, bool(answer.get("stale"))

    async def _fresh_verdicts(self, variant: str) -> list[Json] | None:
        """None while they are stale, as for a moment on a machine that stood still."""
        rows, stale = await self._verdicts(variant)
        return None if stale else rows

    async def _weight(self, variant: str, *, unless_killed: bool = False) -> float:
        """Percent of the traffic; a kill leaves the table alone, so `unless_killed` gives 0 under one."""
        view = await self._control.model(self.plan.model)
        if unless_killed and view.get("killed"):
            return 0.0
        return sum(float(one["weight"]) for one in view["variants"] if one["name"] == variant)

    # ------------------------------------------------------------ keeping

    def _take_answers(self) -> Counter[str]:
        taken, self._answers = self._answers, Counter()
        self.timeline.answers = dict(Counter(self.timeline.answers) + taken)
        return taken

    def _show(self, answers: Counter[str]) -> None:
        self._narrator.say(_shares(answers))
        if self._example is not None:
            (_, row), one = self._example.request.tag, self._example
            text = " ".join(row.text.split())[:40]
            self._narrator.say(f"for example “{text}…” is {_answer(one)}, says {one.variant}; the truth is {row.label}")

    def _observe(self, beat: str, seen: bool, complaint: str) -> bool:
        self.timeline.beats[beat] = seen
        if not seen:
            self._miss(complaint)
        return seen

    def _miss(self, complaint: str) -> None:
        self.timeline.missing.append(complaint)
        self._narrator.say(f"MISSING: {complaint}")

    def _close(self, recorder: Recorder) -> None:
        self._take_answers()
        self.timeline.unsent = recorder.unsent
        if self.timeline.client_failures:
            self._miss(f"{self.timeline.client_failures} requests failed, expected none; the first: {self._failure}")
        if recorder.unsent:
            self._miss(f"{recorder.unsent} requests could not be sent: too much in flight")


def _answer(outcome: Outcome) -> str | None:
    """The label in an answer; None if there is none."""
    try:
        outputs = json.loads(outcome.response.body)["outputs"] if outcome.response is not None else []
        return next((str(one["data"][0]) for one in outputs if one["name"] == "label"), None)
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def _failure(outcome: Outcome) -> str:
    """What a failed request was told, or why it was told nothing."""
    body = outcome.response.body.decode(errors="replace") if outcome.response is not None else ""
    return f"{outcome.code} {body[:300]}".strip()


def _shares(answers: Counter[str]) -> str:
    total = sum(answers.values())
    parts = [f"{name} {count} ({100 * count / total:.1f} %)" for name, count in answers.most_common()]
    return f"{total} answers: {', '.join(parts)}" if total else "no answers yet"
