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
    if document.get("student_search"):
        found.insert(0, Part("Search for a student", _students(document["student_search"])))
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
    tried = [(document.get(key) or {"trials": {}})["trials"] for key in ("search", "student_search")]
    for name, row in (each for trials in tried for each in trials.items()):
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


def _students(found: Mapping[str, Any]) -> list[str]:
    control = found["control"]
    gap, noise = control["difference"], control["noise"]
    verdict = (
        "within noise, so no gain of distillation is claimed"
        if abs(gap) <= noise
        else f"beyond noise, {'in favour of' if gap > 0 else 'against'} distillation"
    )
    return [
        *_search(found),
        "",
        "Names: temperature, alpha, width, hidden units. Accuracies of students are means over the seeds; a control is "
        f"taught by the labels alone. What was taken is {gap:+.4f} from `{control['name']}`, with a noise of about "
        f"±{noise:.4f}: {verdict}.",
    ]


def _search(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"Candidates for `{found['variant']}`, measured on the validation split. Taken: **{found['chosen']}**, "
        f"{found['why']}.",
        "",
        "| candidate | accuracy | differs from the first | mean KL (nats) | p50 / p99 of one row (ms) | p50 of 16 (ms) "
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
    ran = {name: row["latency_ms"]["batch_1"]["p50"] for name, row in found["trials"].items() if not row["failed"]}
    lines += ["", f"Fastest for one row here: {min(ran, key=lambda name: ran[name])} ({min(ran.values()):.3f} ms)."]
    if found["left_out"]:
        lines += ["", f"{found['left_out']} more settings of the grid were left out by the budget."]
    return lines
