"""What a rollout is told to do: steps, limits, freezes, retries, and who is told. Values and their checks.

The same structures are the rollout file (YAML), the body of the admin API and what the store keeps.
Durations are texts such as "90s", "10m", "2h" or "1d"; shares are percent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from serving.contract import GUARDS, PASSING_GUARDS, SHADOW_GUARDS
from serving.core.freeze import MAX_DAYS, Window, parse_cron, seconds, zone
from serving.errors import ConfigError

Until = Literal["pass", "time"]
OnInconclusive = Literal["pause", "rollback"]


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When a step is done, and what becomes of one that is not in time.

    Args:
        until: "pass": every required guard that can be judged here has passed; "time": none has failed
            and each has data.
        min_requests: answers of the candidate (in a shadow: pairs) that must be seen in this step.
        min_duration: at least so long.
        max_duration: not done by then: `on_inconclusive`, or paused for want of data.
    """

    until: Until = "pass"
    min_requests: int = 0
    min_duration: str = "0s"
    max_duration: str = "1h"
    on_inconclusive: OnInconclusive = "pause"


class Shadow(Gate, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Copy a share of the requests to the candidate; nobody gets its answers."""

    percent: float


class Bake(Gate, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Stay at the present weight until the gate is met."""


class Approve(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Wait for a human with at least this role."""

    role: Literal["operator", "release-manager", "admin"] = "release-manager"


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Exactly one of these."""

    shadow: Shadow | None = None
    set_weight: float | None = None
    bake: Bake | None = None
    approve: Approve | None = None


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a rollout may never exceed.

    Args:
        max_weight: percent of the live traffic before the promotion.
        max_suspect_responses: live answers that differ from the teacher's, estimated from the scored ones;
            over it the candidate is rolled back. None: no such limit.
        max_duration: from start to success, pauses included; over it the candidate is rolled back.
        min_headroom: least `rollback_headroom_ratio` at which the candidate gets more traffic; 0 = any.
    """

    max_weight: float = 100.0
    max_suspect_responses: int | None = None
    max_duration: str = "30d"
    min_headroom: float = 1.0


class Monitor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long the promoted candidate is watched, with everything ready to go back."""

    duration: str = "1h"
    min_requests: int = 1


class Retry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Starting again after a rollback by a guard or a limit, `cooldown` * `backoff` ** (attempt - 1) later.

    Each attempt has users of its own (a new salt) and evidence of its own. `max_attempts` counts
    automatic ones; a human may always ask for another, after the same pause.
    """

    max_attempts: int = 0
    cooldown: str = "1h"
    backoff: float = 2.0


class Hook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A webhook, told of every change of state; `secret_file` holds the key of its signature."""

    url: str
    secret_file: str | None = None

    @property
    def shown(self) -> str:
        """Scheme and host, for logs and the trail: at many services whoever knows the path may post."""
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{re.split(r'[/?#]', rest, maxsplit=1)[0].rpartition('@')[2]}"


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole rollout file.

    Args:
        required: guards that must pass before a promotion; the others only have a veto.
        holdback: percent that stays on the old baseline until the rollout has succeeded.
        freeze: windows in which it may go back but not forward.
    """

    steps: tuple[Step, ...]
    required: tuple[str, ...] = ("errors", "latency", "agreement")
    holdback: float = 5.0
    limits: Limits = Limits()
    freeze: tuple[Window, ...] = ()
    monitor: Monitor = Monitor()
    retry: Retry = Retry()
    notify: tuple[Hook, ...] = ()

    @property
    def promotes(self) -> bool:
        """Whether it ever gives live traffic; one that only shadows ends without a promotion."""
        return any(step.set_weight is not None for step in self.steps)


def parse_policy(document: Any) -> Policy:
    """Check a decoded rollout file. Raises `ConfigError`, one line a fault, each starting with its path."""
    if not isinstance(document, dict):
        raise ConfigError(f"expected a mapping with steps, got {type(document).__name__}")
    try:
        policy = msgspec.convert(document, Policy)
    except msgspec.ValidationError as error:
        raise ConfigError(_located(str(error))) from None
    if faults := list(_faults(policy)):
        raise ConfigError("\n".join(faults))
    return policy


def _located(message: str) -> str:
    """msgspec's message with the path in front: `steps[0].shadow.percent: expected `float`, got `str``."""
    text, _, place = message.replace(" | null`", "`").partition(" - at `$")
    path = place.rstrip("`").lstrip(".")
    if unknown := re.search(r"unknown field `(.*)`", text):
        path, text = f"{path}.{unknown[1]}".lstrip("."), "unknown key"
        if re.fullmatch(r"steps\[\d+\]\.[^.]*", path):
            text = "unknown step, expected one of shadow, set_weight, bake, approve"
    elif missing := re.search(r"missing required field `(.*)`", text):
        path, text = f"{path}.{missing[1]}".lstrip("."), "is required"
    return f"{path}: {text[:1].lower()}{text[1:]}" if path else text


def _faults(policy: Policy) -> Iterator[str]:
    yield from _step_faults(policy)
    yield from _percent_fault("holdback", policy.holdback, 0, 50)
    yield from _percent_fault("limits.max_weight", policy.limits.max_weight, 0.01, 100)
    suspect = policy.limits.max_suspect_responses
    if suspect is not None and suspect < 1:
        yield f"limits.max_suspect_responses: {suspect} is under 1"
    if not 0 <= policy.limits.min_headroom <= 100:
        yield f"limits.min_headroom: {policy.limits.min_headroom:g} is not between 0 and 100"
    yield from _duration_faults("limits.max_duration", policy.limits.max_duration, positive=True)
    for name in policy.required:
        if name not in GUARDS:
            yield f"required: unknown guard {name!r}, expected some of {', '.join(PASSING_GUARDS)}"
        elif name not in PASSING_GUARDS:
            yield f"required: {name} only has a veto and never passes, expected some of {', '.join(PASSING_GUARDS)}"
    if policy.promotes and not policy.required:
        yield "required: a promotion needs at least one guard that must pass"
    for at, window in enumerate(policy.freeze):
        yield from _window_faults(f"freeze[{at}]", window)
    yield from _duration_faults("monitor.duration", policy.monitor.duration)
    if policy.monitor.min_requests < 1:
        yield f"monitor.min_requests: {policy.monitor.min_requests} is under 1"
    if policy.retry.max_attempts < 0:
        yield f"retry.max_attempts: {policy.retry.max_attempts} is under 0"
    if not 1 <= policy.retry.backoff <= 100:
        yield f"retry.backoff: {policy.retry.backoff:g} is not between 1 and 100"
    yield from _duration_faults("retry.cooldown", policy.retry.cooldown)
    for at, hook in enumerate(policy.notify):
        if not re.match(r"https?://[^/\s]+", hook.url):
            yield f"notify[{at}].url: {hook.url!r} is no http or https address"


def _step_faults(policy: Policy) -> Iterator[str]:
    if not policy.steps:
        yield "steps: needs at least one entry"
    weight = 0.0
    for at, step in enumerate(policy.steps):
        path = f"steps[{at}]"
        named = [name for name in Step.__struct_fields__ if getattr(step, name) is not None]
        if len(named) != 1:
            known = ", ".join(Step.__struct_fields__)
            yield f"{path}: names {' and '.join(named) or 'nothing'}, expected one of {known}"
            continue
        if step.shadow is not None:
            yield from _shadow_faults(f"{path}.shadow", step.shadow, policy)
            if at:
                yield f"{path}.shadow: may only be the first step"
        elif step.set_weight is not None:
            yield from _weight_faults(f"{path}.set_weight", step.set_weight, weight, policy)
            weight = max(weight, step.set_weight)
        elif not weight:
            yield f"{path}.{named[0]}: the candidate has no traffic yet, put a set_weight before it"
        if step.bake is not None:
            yield from _gate_faults(f"{path}.bake", step.bake)


def _shadow_faults(path: str, shadow: Shadow, policy: Policy) -> Iterator[str]:
    yield from _percent_fault(f"{path}.percent", shadow.percent, 0.01, 100)
    yield from _gate_faults(path, shadow)
    can_pass = [name for name in SHADOW_GUARDS if name in PASSING_GUARDS]
    if shadow.until == "pass" and not set(policy.required) & set(can_pass):
        yield f"{path}.until: no required guard can pass in a shadow ({', '.join(can_pass)} can), use time"


def _weight_faults(path: str, weight: float, before: float, policy: Policy) -> Iterator[str]:
    yield from _percent_fault(path, weight, 0.01, 100)
    if weight <= before:
        yield f"{path}: {weight:g} is not over the {before:g} of the step before"
    if weight > policy.limits.max_weight:
        yield f"{path}: {weight:g} is over limits.max_weight, {policy.limits.max_weight:g}"
    if weight > 100 - policy.holdback:
        yield f"{path}: {weight:g} is over the {100 - policy.holdback:g} that the holdback leaves"


def _gate_faults(path: str, gate: Gate) -> Iterator[str]:
    if gate.min_requests < 0:
        yield f"{path}.min_requests: {gate.min_requests} is under 0"
    bad = [
        *_duration_faults(f"{path}.min_duration", gate.min_duration),
        *_duration_faults(f"{path}.max_duration", gate.max_duration, positive=True),
    ]
    yield from bad
    if not bad and seconds(gate.max_duration) < seconds(gate.min_duration):
        yield f"{path}.max_duration: {gate.max_duration} is under min_duration, {gate.min_duration}"


def _window_faults(path: str, window: Window) -> Iterator[str]:
    for key, check, value in (("cron", parse_cron, window.cron), ("time_zone", zone, window.time_zone)):
        try:
            check(value)
        except ValueError as error:
            yield f"{path}.{key}: {error}"
    bad = list(_duration_faults(f"{path}.duration", window.duration, positive=True))
    yield from bad
    if not bad and seconds(window.duration) > MAX_DAYS * 86_400:
        yield f"{path}.duration: {window.duration} is over {MAX_DAYS}d"


def _duration_faults(path: str, duration: str, *, positive: bool = False) -> Iterator[str]:
    try:
        if seconds(duration) == 0 and positive:
            yield f"{path}: {duration} is not over 0"
    except ValueError as error:
        yield f"{path}: {error}"


def _percent_fault(path: str, percent: float, least: float, most: float) -> Iterator[str]:
    if not least <= percent <= most:  # what is not a number is within nothing
        yield f"{path}: {percent:g} is not between {least:g} and {most:g}"
    elif abs(round(percent * 100) - percent * 100) > 1e-6:
        yield f"{path}: {percent:g} is not a multiple of 0.01, the smallest step"


# ---------------------------------------------------------------- named policies


def _bake(until: Until, least: str, most: str, requests: int) -> Step:
    return Step(bake=Bake(until=until, min_duration=least, max_duration=most, min_requests=requests))


#: The built-in policy of a rollout that names none.
DEFAULT = "careful"

NAMED: dict[str, Policy] = {
    # Hours a step, a human before half of the traffic: for models whose mistakes are expensive.
    "careful": Policy(
        steps=(
            Step(shadow=Shadow(percent=20, min_requests=1000, min_duration="30m", max_duration="1d")),
            Step(set_weight=1),
            _bake("time", "1h", "1d", 100),
            Step(set_weight=5),
            _bake("time", "1h", "1d", 500),
            Step(set_weight=25),
            _bake("pass", "2h", "2d", 1000),
            Step(approve=Approve()),
            Step(set_weight=50),
            _bake("pass", "2h", "1d", 1000),
        ),
        monitor=Monitor("1d", 1000),
    ),
    # Minutes, at some ten requests a second or more. Every promotion needs the same evidence.
    "fast": Policy(
        steps=(
            Step(shadow=Shadow(percent=100, min_requests=100, min_duration="10s", max_duration="10m")),
            Step(set_weight=1),
            _bake("time", "15s", "10m", 5),
            Step(set_weight=10),
            _bake("time", "20s", "10m", 50),
            Step(set_weight=50),
            _bake("pass", "30s", "30m", 500),
            Step(approve=Approve("operator")),
        ),
        monitor=Monitor("1m", 500),
    ),
    # Never any live traffic: does it say what the teacher says?
    "shadow-only": Policy(
        steps=(Step(shadow=Shadow(percent=20, min_requests=1000, min_duration="10m", max_duration="2d")),),
    ),
}
