"""What the cards have in common: numbers of an evaluation with their intervals, flat, and Markdown's small parts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from serving.registry.manifest import Manifest, Signature

#: What nobody has said is said to be so, never left out: a reader must not take silence for an answer.
UNSTATED = "not stated"
_RELATIONS = {
    "root": "trained from scratch",
    "finetuned": "fine-tuned",
    "quantized": "quantized",
    "distilled": "distilled",
    "qad": "distilled with quantization in the loop",
    "damaged": "damaged on purpose, to watch a bad release being caught",
}


class Measure(NamedTuple):
    """A number of an evaluation under its dotted name; `interval` is its confidence interval, if there is one."""

    name: str
    value: float
    interval: tuple[float, float] | None


def measures(evaluation: Mapping[str, Any]) -> list[Measure]:
    """Every number of an evaluation that is no interval itself, nested ones with dotted names."""
    return list(_measures(evaluation, ""))


def grids(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, list[Measure]]]]:
    """What was measured in the same way of several things, such as slices: its dotted name, and the numbers of each."""
    inner = list(node.values())
    if inner and all(isinstance(one, Mapping) and one.keys() == inner[0].keys() for one in inner):
        found = {name: list(_measures(one, "")) for name, one in node.items()}
        if all(found.values()):
            yield prefix, found
            return
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from grids(value, f"{prefix}.{key}" if prefix else key)


def _measures(node: Mapping[str, Any], prefix: str) -> Iterator[Measure]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _measures(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield Measure(f"{prefix}{key}", float(value), _interval(node.get(f"{key}_ci")))


def _interval(given: Any) -> tuple[float, float] | None:
    if isinstance(given, list | tuple) and len(given) == 2 and all(isinstance(end, int | float) for end in given):
        return float(given[0]), float(given[1])
    return None


def relation_of(manifest: Manifest) -> str:
    """How it was made, in words."""
    if imported_of(manifest) and manifest.lineage.relation == "root":
        return "imported as it is"
    return _RELATIONS.get(manifest.lineage.relation, manifest.lineage.relation)


def imported_of(manifest: Manifest) -> Mapping[str, Any]:
    """`origin`, `licence` and `sha256` of the file from elsewhere whose weights it has; empty if they were trained."""
    found = manifest.data.get("imported")
    return found if isinstance(found, Mapping) and found.keys() >= {"origin", "licence", "sha256"} else {}


def card_of(manifest: Manifest) -> dict[str, Any]:
    """What people have said of an artifact in its recipe."""
    return manifest.card if isinstance(manifest.card, dict) else {}


def tensors(signature: Signature) -> list[tuple[str, str, str]]:
    """(tensor, element type, shape) of everything taken, then of everything given."""
    return [
        (Markdown(f"{way} {code(spec.name)}"), spec.datatype, str(list(spec.shape)))
        for way, specs in (("in", signature.inputs), ("out", signature.outputs))
        for spec in specs
    ]


def number(value: float) -> str:
    """A number as people read it: whole ones whole, others with four digits."""
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.4g}"


def with_interval(one: Measure) -> str:
    """A number, and its interval in brackets."""
    if one.interval is None:
        return number(one.value)
    return f"{number(one.value)} ({number(one.interval[0])} – {number(one.interval[1])})"


class Markdown(str):
    """Text that is Markdown already, so that `cell` leaves its markup alone."""

    __slots__ = ()


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table, with an empty line before and after."""
    titles = [cell(one) if one else "" for one in header]
    lines = [titles, ["---"] * len(header), *([cell(one) for one in row] for row in rows)]
    return ["", *(f"| {' | '.join(line)} |" for line in lines), ""]


def cell(value: object) -> str:
    """A value in a table. What would end the cell or begin markup is escaped."""
    text = value if isinstance(value, Markdown) else escaped(plain(value))
    return text.replace("|", "\\|")


def code(value: object) -> Markdown:
    """A value as code. Within a fence nothing has a meaning but one that is as long."""
    text = plain(value)
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return Markdown(f"{fence}{space}{text}{space}{fence}")


def escaped(text: str) -> str:
    """Text without Markdown's meaning."""
    return re.sub(r"([\\`*<\[])", r"\\\1", text)


def plain(value: object) -> str:
    """A text on one line."""
    return " ".join(str(value).split()) or UNSTATED


def listed(values: Sequence[object]) -> list[str]:
    """A Markdown list, or a line that says that nothing was stated."""
    return [f"- {escaped(plain(value))}" for value in values] or [f"{UNSTATED.capitalize()}."]


def flat(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, value) of everything in nested mappings; lists of plain values on one line."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list | tuple) and any(isinstance(one, Mapping) for one in node):
        for index, value in enumerate(node):
            yield from flat(value, f"{prefix}.{index}")
    else:
        yield prefix, ", ".join(map(str, node)) if isinstance(node, list | tuple) else _shown(node)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    return "–" if value is None or value == "" else str(value)
