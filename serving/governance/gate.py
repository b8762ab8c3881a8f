"""Does what is known of an artifact fulfil a policy? Pure: a manifest's document in, verdicts with numbers out.

What was not measured is a failure, never a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

import msgspec

from serving.governance.policy import Policy, Rule


class Verdict(msgspec.Struct, frozen=True):
    """What became of one rule.

    Attributes:
        rule: what was asked for, in words.
        verdict: `pass`, `fail`, or `skip` where the rule does not apply.
        found: the number that decided, the worst where there are several; None if it is no number.
        why: the sentence.
    """

    rule: str
    verdict: str
    found: float | None
    why: str


def judge(policy: Policy, document: Mapping[str, Any]) -> list[Verdict]:
    """Every rule of a policy over a manifest as plain dictionaries and lists. Approvals are not judged here."""
    derived = bool(document.get("lineage", {}).get("parents"))
    return [_judge(rule, document, derived) for rule in policy.rules]


def failures(verdicts: list[Verdict]) -> list[str]:
    """The sentences of what failed."""
    return [verdict.why for verdict in verdicts if verdict.verdict == "fail"]


def asked(rule: Rule) -> str:
    """A rule in words, such as `evaluation.accuracy >= 0.9`."""
    limits = [(">=", rule.at_least), ("<=", rule.at_most)]
    words = [f"{sign} {limit:g}" for sign, limit in limits if limit is not None]
    return f"{rule.evidence} {' and '.join(words) or 'is measured'}"


def _judge(rule: Rule, document: Mapping[str, Any], derived: bool) -> Verdict:
    words = asked(rule)
    if rule.applies_to != "all" and (rule.applies_to == "derived") is not derived:
        return Verdict(words, "skip", None, f"applies to {rule.applies_to} artifacts only")
    found = list(_values(document, rule.evidence.split(".")))
    if not found or any(_nothing(value) for _, value in found):
        missing = next((path for path, value in found if _nothing(value)), rule.evidence)
        return Verdict(words, "fail", None, f"{missing}: not measured")
    if rule.at_least is None and rule.at_most is None:
        value = found[0][1]
        return Verdict(words, "pass", _number(value), f"{rule.evidence} is measured")
    for path, value in found:
        if _number(value) is None:
            return Verdict(words, "fail", None, f"{path}: {value!r} is not a number that could be compared")
    # The smallest distance to a limit decides; below zero it is beyond.
    worst = min(found, key=lambda one: _room(rule, float(one[1])))
    path, value = worst[0], float(worst[1])
    few = _too_few(rule, document, path)
    if rule.at_least is not None and value < rule.at_least:
        return Verdict(words, "fail", value, f"{path} is {value:g}, under {rule.at_least:g}{few}")
    if rule.at_most is not None and value > rule.at_most:
        return Verdict(words, "fail", value, f"{path} is {value:g}, over {rule.at_most:g}{few}")
    return Verdict(words, "pass", value, f"{path} is {value:g}")


def _too_few(rule: Rule, document: Mapping[str, Any], path: str) -> str:
    """That even a perfect artifact would fail, measured on as few clips; empty if it would not."""
    section, *parts = path.split(".")
    for _, best in _values(document, [section, "bounds_if_perfect", *parts]):
        number = _number(best)
        if number is not None and _room(rule, number) < 0:
            return f" (without any error it would be {number:g}: too few clips, measure on more)"
    return ""


def _room(rule: Rule, value: float) -> float:
    low = value - rule.at_least if rule.at_least is not None else float("inf")
    high = rule.at_most - value if rule.at_most is not None else float("inf")
    return min(low, high)


def _values(node: Any, parts: list[str], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that a path names; one that is not there is None."""
    if not parts:
        yield path, node
        return
    here, rest = parts[0], parts[1:]
    if isinstance(node, Mapping):
        names = list(node) if here == "*" else [here]
        children = [(name, node.get(name)) for name in names]
    elif isinstance(node, list | tuple):
        names = [str(index) for index in range(len(node))] if here == "*" else [here]
        children = [(name, node[int(name)] if name.isdecimal() and int(name) < len(node) else None) for name in names]
    else:
        children = []
    if not children:
        yield ".".join([*([path] if path else []), *parts]), None
    for name, child in children:
        yield from _values(child, rest, f"{path}.{name}".lstrip("."))


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return float(value)


def _nothing(value: Any) -> bool:
    """Whether nothing is there: absent, an empty text or an empty collection. Zero is a number."""
    return value is None or (isinstance(value, str | Mapping | list | tuple) and not value)
