"""Power and delay against the size of the harm, as one small SVG each. Needs matplotlib (extra `bench`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtests.detection.comparators import NAMES
from loadtests.detection.measure import TOLERANT, Delays, Found

#: Curves with at least two sizes, and what their axis says.
AXES = {
    "flips": "answers flipped besides, points",
    "temperature": "logits multiplied by",
    "INT8 scale": "scale of a quarter of the channels × ",
    "saturated layer": "range of a layer divided by",
    "errors": "candidate's extra errors, %",
    "latency": "candidate's latency ×",
    "NaN": "answers that are NaN, %",
}
#: What the guard meant for a harm is called in every panel; its own name is in the title.
GUARD = "guard"
#: Of the comparators.
COLOURS = ("#bcbd22", "#17becf", "#1f77b4", "#8c564b", "#ff7f0e", "#2ca02c", "#e377c2")


def draw(found: Sequence[Found], folder: Path) -> list[Path]:
    """Write `detection-power.svg` and `detection-delay.svg`; returns the paths."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    # The same numbers give the same file, with text as text.
    matplotlib.rcParams.update({"svg.hashsalt": "canarium", "svg.fonttype": "none", "font.size": 8})
    curves = {name: [one for one in found if one.cell.harm == name and not one.cell.factor] for name in AXES}
    curves = {name: cells for name, cells in curves.items() if len(cells) > 1}
    paths = []
    for what in ("power", "delay"):
        figure, grid = pyplot.subplots(2, 4, figsize=(14, 6), squeeze=False)
        panels = grid.ravel()
        for panel, (name, cells) in zip(panels, curves.items(), strict=False):
            _panel(panel, cells, what)
            panel.set_title(f"{name}: {cells[0].cell.guards[0]}")
            panel.set_xlabel(AXES[name])
        for panel in panels[len(curves) :]:
            panel.set_visible(False)
        labels: dict[str, object] = {}
        for panel in panels:
            labels.update(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
        figure.legend(labels.values(), labels.keys(), loc="lower center", ncols=9, frameon=False)
        figure.tight_layout(rect=(0, 0.05, 1, 1))
        path = folder / f"detection-{what}.svg"
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
        paths.append(path)
    return paths


def _panel(panel: Any, cells: Sequence[Found], what: str) -> None:
    """The guard meant for the harm, as it is configured by default too, and every comparator."""
    first = cells[0].cell.guards[0]
    drawn = {GUARD: first, GUARD + TOLERANT: first + TOLERANT}
    for label, name in drawn.items():
        style = {"color": "#d62728", "marker": "o", "linewidth": 2.2} if label == GUARD else {"color": "#ff9896"}
        _line(panel, [(one.cell.magnitude, one.guards.get(name)) for one in cells], what, label=label, **style)
    for number, name in enumerate(NAMES):
        sizes = [(one.cell.magnitude, one.comparators.get(name)) for one in cells]
        _line(panel, sizes, what, label=name, color=COLOURS[number], marker=".", linewidth=1.0, linestyle="--")
    panel.set_xscale("log")
    ticks = [one.cell.magnitude for one in cells]
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
    if what == "power":
        panel.set_ylabel("share found in 5 h")
        panel.set_ylim(-0.03, 1.05)
    else:
        panel.set_ylabel("median delay, minutes")
        panel.set_yscale("log")


def _line(panel: Any, sizes: Sequence[tuple[float, Delays | None]], what: str, **style: Any) -> None:
    known = [(size, delays) for size, delays in sizes if delays is not None]
    if known:
        values = [delays.power if what == "power" else _minutes(delays) for _, delays in known]
        panel.plot([size for size, _ in known], values, **style)


def _minutes(delays: Delays) -> float:
    return max(delays.median, 0.6) / 60.0 if math.isfinite(delays.median) else math.nan
