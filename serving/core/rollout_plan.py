"""What a rollout will need before it starts: answers and time a step, by the traffic there is now. Pure.

Expectations, not promises. Evidence is taken to grow as it does on average: after n observations with mean p it
is the weighted mean over the stakes of exp(n g_k), g_k the expected log gain of stake k (see
`monitoring.detectors.betting`).
Beside it stands the least number of observations that any test with the same budget can do with on average,
ln(1/alpha) / KL(p, m), m being the limit (Wald). How fast `latency` passes depends on tails that nobody knows yet:
it is not predicted.
"""

from __future__ import annotations

import math

import msgspec

from monitoring.detectors.betting import EQUAL, WEIGHTS, Floats, log_gain, log_gain_mirrored, log_mixture
from serving.core.freeze import seconds
from serving.core.rollout_policy import Gate, Policy

#: By how much the candidate may turn out worse than its limit, where detection is asked for.
HARMS = (1.5, 2.0, 4.0)
#: Beyond this many observations it is not worth a number.
MANY = 10**9


class Assumed(msgspec.Struct, frozen=True):
    """What the prediction rests on.

    Args:
        rate: requests a second of the model.
        reference: share of the candidate's live answers that the teacher scores, in [0, 1].
        agreement: limit on the share of answers unlike the teacher's, in (0, 1).
        disagreement: that share as measured when the candidate was built.
        errors: limit on its share of errors, in (0, 1).
        alpha: chance of a false alarm that one guard may take.
        pass_alpha: chance of a false pass.
    """

    rate: float
    reference: float
    agreement: float
    disagreement: float
    errors: float
    alpha: float
    pass_alpha: float


class Need(msgspec.Struct, frozen=True):
    """How much of something it takes. `seconds` None: never at this traffic.

    Args:
        observations: that the guard needs on average; `MANY`: no number is enough.
        bound: that any test needs on average.
        suspect: live answers unlike the teacher's that are given until then.
    """

    observations: int
    bound: int
    seconds: float | None
    suspect: float = 0.0


class StepPlan(msgspec.Struct, frozen=True):
    """One step: `passes` by guard, from what earlier steps have gathered; `detects` by harm, from nothing."""

    step: int
    rate: float  # the candidate's answers (in a shadow: pairs) a second
    seconds: float | None  # that the step takes
    passes: dict[str, Need]
    detects: dict[str, Need]
    warnings: list[str]


def plan(policy: Policy, assumed: Assumed) -> list[StepPlan]:
    """The shadow and the bakes of a policy, in order."""
    found: list[StepPlan] = []
    weight, pairs, live = 0.0, 0.0, 0.0
    for at, step in enumerate(policy.steps):
        if step.set_weight is not None:
            weight = step.set_weight / 100
        gate = step.shadow or step.bake
        if gate is None:
            continue
        shadow = step.shadow is not None
        answers = assumed.rate * (step.shadow.percent / 100 if step.shadow is not None else weight)
        scored = answers if shadow else answers * assumed.reference
        gathered = {"agreement": pairs, **({} if shadow else {"errors": live})}
        rates = {"agreement": scored, "errors": 0.0 if shadow else answers}
        one = _step(at, policy, gate, assumed, answers, gathered, rates, shadow)
        found.append(one)
        spent = one.seconds if one.seconds is not None else seconds(gate.max_duration)
        pairs, live = pairs + spent * scored, live + (0.0 if shadow else spent * answers)
    if found and policy.promotes and found[-1].seconds is not None:
        lacks = [_lack(guard, need, assumed) for guard, need in found[-1].passes.items() if need.seconds is None]
        later = [f"the promotion will wait: {lack}" for lack in lacks]
        found[-1] = msgspec.structs.replace(found[-1], warnings=[*found[-1].warnings, *later])
    return found


def _truths(assumed: Assumed) -> dict[str, tuple[float, float]]:
    """Guard -> the share of its bad events that is expected, and the limit on it."""
    return {"agreement": (assumed.disagreement, assumed.agreement), "errors": (0.0, assumed.errors)}


def _step(
    at: int,
    policy: Policy,
    gate: Gate,
    assumed: Assumed,
    answers: float,
    gathered: dict[str, float],
    rates: dict[str, float],
    shadow: bool,
) -> StepPlan:
    truths = _truths(assumed)
    passes = {
        guard: _need_to_pass(*truths[guard], assumed.pass_alpha, gathered[guard], rates[guard])
        for guard in policy.required
        if guard in gathered
    }
    given = 0.0 if shadow else answers
    detects = {
        f"{harm:g}x": _need_to_detect(assumed.agreement, harm, assumed.alpha, rates["agreement"], given)
        for harm in HARMS
    }
    times = [seconds(gate.min_duration), gate.min_requests / answers if answers else math.inf]
    empty = [guard for guard in passes if not gathered[guard] and not rates[guard]]  # they keep any gate shut
    waits = passes if gate.until == "pass" else {guard: passes[guard] for guard in empty}
    times += [math.inf if need.seconds is None else need.seconds for need in waits.values()]
    spent = max(times) if max(times) < math.inf else None
    limit = seconds(gate.max_duration)
    late = {guard: need for guard, need in waits.items() if need.seconds is None or need.seconds > limit}
    lacks = [f"{guard} gets no data" if guard in empty else _lack(guard, need, assumed) for guard, need in late.items()]
    return StepPlan(at, answers, spent, passes, detects, _warnings(at, gate, spent, lacks, answers))


def _warnings(at: int, gate: Gate, spent: float | None, lacks: list[str], answers: float) -> list[str]:
    if not answers:
        return [f"step {at + 1} gets no requests at the present traffic"]
    if spent is not None and spent <= seconds(gate.max_duration):
        return []
    slow = lacks or [f"it waits for {gate.min_requests} requests"]
    return [f"step {at + 1} is not done within {gate.max_duration} at {answers:.3g} answers/s: {', '.join(slow)}"]


def _lack(guard: str, need: Need, assumed: Assumed) -> str:
    """What is between a guard and its pass."""
    expected, limit = _truths(assumed)[guard]
    if need.observations >= MANY:
        return f"{guard} never passes at the expected {expected * 100:.3g} %, its limit is {limit * 100:.3g} %"
    return f"{guard} needs {need.observations} answers{' and gets no more' if need.seconds is None else ''}"


def _need_to_pass(rate: float, limit: float, alpha: float, gathered: float, each_s: float) -> Need:
    gains = rate * log_gain_mirrored(1.0, limit) + (1 - rate) * log_gain_mirrored(0.0, limit)
    needed = _first(gains, EQUAL, alpha)
    left = max(0.0, needed - gathered)
    bound = _bound(rate, limit, alpha) if rate < limit else MANY
    if needed >= MANY or (left and not each_s):
        return Need(needed, bound, None)
    return Need(needed, bound, left / each_s if left else 0.0)


def _need_to_detect(limit: float, harm: float, alpha: float, each_s: float, answers: float) -> Need:
    rate = min(harm * limit, 0.99)
    gains = rate * log_gain(1.0, limit) + (1 - rate) * log_gain(0.0, limit)
    needed = _first(gains, WEIGHTS, alpha)
    spent = None if needed >= MANY or not each_s else needed / each_s
    return Need(needed, _bound(rate, limit, alpha), spent, 0.0 if spent is None else spent * answers * rate)


def _first(rates: Floats, weights: Floats, alpha: float) -> int:
    """The least n at which the mixture over the stakes of exp(n g_k) reaches 1 / alpha; MANY if it never does."""
    target = -math.log(alpha)
    if rates.max() <= 0 or float(log_mixture(rates * MANY, weights)) < target:
        return MANY
    low, high = 0, MANY
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if float(log_mixture(rates * middle, weights)) >= target else (middle, high)
    return high


def _bound(rate: float, limit: float, alpha: float) -> int:
    """ln(1/alpha) over the Kullback-Leibler divergence of two Bernoulli variables."""
    divergence = (1 - rate) * math.log((1 - rate) / (1 - limit)) if rate < 1 else 0.0
    divergence += rate * math.log(rate / limit) if rate > 0 else 0.0
    return math.ceil(-math.log(alpha) / divergence) if divergence > 0 else MANY
