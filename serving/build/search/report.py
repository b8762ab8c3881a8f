"""The report's sections on what was searched, and on what no other variant beats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.build.plan import Part
from serving.build.search.choose import front
from serving.build.search.plot import Point, pareto


def parts(document: Mapping[str, Any], plot: str) -> list[Part]:
    """From the report's JSON form: `variants`, and `search` where the recipe has one. `plot`: the SVG's file name."""
    found = [Part("Pareto", _pareto(document, plot))]
    if document.get("search"):
        found.insert(0, Part("Search", _search(document["search"])))
    return found


def points(document: Mapping[str, Any]) -> list[Point]:
    """The variants as measured on test, and the candidates that were only tried, on validation."""
    found = []
    rows = {name: row["measured"] for name, row in document["variants"].items() if row["relation"] != "damaged"}
    sizes = [(row["latency_ms"]["batch_1"]["p50"], -row["accuracy"], row["model_bytes"]) for row in rows.values()]
    for (name, row), on in zip(rows.items(), front(sizes), strict=True):
        low, high = row["accuracy_ci"]
        spent = row["latency_ms"]["batch_1"]["p50"]
        found.append(Point(name, spent, row["accuracy"], low, high, row["model_bytes"], front=on))
    for name, row in (document.get("search") or {"trials": {}})["trials"].items():
        if not row["failed"]:
            spent, accuracy = row["latency_ms"]["batch_1"]["p50"], row["accuracy"]
            found.append(Point(name, spent, accuracy, accuracy, accuracy, row["bytes"], tried=True))
    return found


def draw(document: Mapping[str, Any]) -> str:
    """The Pareto plot of a report, as SVG."""
    return pareto(f"{document['model']}: latency, accuracy and size", points(document))


def _pareto(document: Mapping[str, Any], plot: str) -> list[str]:
    served = [point for point in points(document) if not point.tried]
    lines = [
        f"![Pareto plot of the variants]({plot})",
        "",
        "| variant | p50 of one row (ms) | accuracy | model bytes | beaten by none |",
        "|---|---|---|---|---|",
    ]
    for point in sorted(served, key=lambda point: point.milliseconds):
        mark = "yes" if point.front else "no"
        lines.append(f"| {point.name} | {point.milliseconds:.3f} | {point.accuracy:.4f} | {point.bytes:,} | {mark} |")
    return [
        *lines,
        "",
        "Beaten by none: no other variant is at once as fast, as accurate and as small, and better in one of them. "
        "Accuracies closer than their intervals do not really order two variants.",
    ]


def _search(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"Candidates for `{found['variant']}`, measured on the validation split. Taken: **{found['chosen']}**, "
        f"{found['why']}.",
        "",
        "| candidate | accuracy | differs from fp32 | mean KL (nats) | p50 / p99 of one row (ms) | p50 of 16 (ms) "
        "| bytes | on the front | refused |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found["trials"].items():
        if row["failed"]:
            lines.append(f"| {name} |" + " – |" * 7 + f" {row['failed']} |")
            continue
        one, many = row["latency_ms"]["batch_1"], row["latency_ms"]["batch_16"]
        lines.append(
            f"| {name} | {row['accuracy']:.4f} | {row['disagreement']:.2%} | {row['mean_kl']:.6f} "
            f"| {one['p50']:.3f} / {one['p99']:.3f} | {many['p50']:.3f} | {row['bytes']:,} "
            f"| {'yes' if row['front'] else 'no'} | {row['refused'] or '–'} |"
        )
    if found["left_out"]:
        lines += ["", f"{found['left_out']} more settings of the grid were left out by the budget."]
    return lines
