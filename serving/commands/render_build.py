"""What a dry run and a verification say, line by line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.build.dry_run import Planned
    from serving.build.verify import Compared

_TIERS = {
    "bytes": "same bytes",
    "outputs": "other bytes, bit-equal golden outputs",
    "decisions": "other numbers within the tolerance, same decisions",
    "none": "NOT reproduced",
}


def planned_lines(planned: Planned) -> list[str]:
    """One line a step, and how long those that are left will take."""
    lines = []
    for step in planned.steps:
        took = "never done here" if math.isnan(step.seconds) else f"about {step.seconds:.1f} s"
        lines.append(f"  {step.name:<28} {'cached' if step.cached else f'to do, {took}'}")
    left = sum(not step.cached for step in planned.steps)
    if planned.waits_for:
        lines.append(f"  … and what the result decides: {planned.waits_for}")
    if not left and not planned.waits_for:
        return [*lines, f"nothing to do: all {len(planned.steps)} steps are cached"]
    unknown = f", and {planned.unknown} of which no time is known" if planned.unknown else ""
    return [*lines, f"{left} of {len(planned.steps)} steps to do, about {planned.seconds:.0f} s{unknown}"]


def planned_json(planned: Planned) -> dict[str, Any]:
    """The same for programs; a time that is not known is null."""
    return {
        "steps": [
            {
                "name": step.name,
                "cached": step.cached,
                "seconds": None if math.isnan(step.seconds) else step.seconds,
            }
            for step in planned.steps
        ],
        "waits_for": planned.waits_for or None,
        "seconds": planned.seconds,
    }


def compared_lines(compared: Sequence[Compared]) -> list[str]:
    """One line a variant: its tier, and the cause where it is not the highest."""
    lines = []
    for each in compared:
        asked = each.tier != "bytes" and not math.isnan(each.largest_difference)
        numbers = f" (probabilities differ by up to {each.largest_difference:.2g})" if asked else ""
        flips = f", {each.flips} decisions flipped" if each.flips else ""
        cause = f": {each.cause}" if each.cause else ""
        lines.append(f"  {each.ref:<32} {_TIERS[each.tier]}{numbers}{flips}{cause}")
    same = sum(each.tier == "bytes" for each in compared)
    return [*lines, f"{same} of {len(compared)} artifacts are the same bit for bit"]


def compared_json(compared: Sequence[Compared]) -> dict[str, Any]:
    """The same for programs; a difference that could not be measured is null."""
    return {
        "variants": [
            {
                **each._asdict(),
                "largest_difference": None if math.isnan(each.largest_difference) else each.largest_difference,
            }
            for each in compared
        ]
    }
