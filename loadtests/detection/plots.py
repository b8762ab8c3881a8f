"""Power and delay against the size of the harm, as one small SVG each. Needs matplotlib (extra `bench`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from loadtests.detection.comparators import NAMES
from loadtests.detection.measure import Delays, Found

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
COLOURS = ("#d62728", "#9467bd", "#7f7f7f", "#bcbd22", "#17becf", "#1f77b4", "#8c564b", "#ff7f0e", "#2ca02c", "#e377c2")


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
            panel.set_title(name)
            panel.set_xlabel(AXES[name])
        for panel in panels[len(curves) :]:
            panel.set_visible(False)
        labels: dict[str, object] = {}
        for panel in panels:
            labels.update(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
        figure.legend(labels.values(), labels.keys(), loc="lower center", ncols=5, frameon=False)
        figure.tight_layout(rect=(0, 0.09, 1, 1))
        path = folder / f"detection-{what}.svg"
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
        paths.append(path)
    return paths


def _panel(panel: object, cells: Sequence[Found], what: str) -> None:
    ways: dict[str, list[tuple[float, Delays]]] = {}
    for one in cells:
        for name, delays in ({f"guard {name}": d for name, d in one.guards.items()} | one.comparators).items():
            ways.setdefault(name, []).append((one.cell.magnitude, delays))
    order = [*[name for name in ways if name.startswith("guard")], *[name for name in NAMES if name in ways]]
    for name in order:
        guard = name.startswith("guard")
        sizes = [size for size, _ in ways[name]]
        values = [delays.power if what == "power" else _minutes(delays) for _, delays in ways[name]]
        colour = COLOURS[(_GUARDS.index(name) if name in _GUARDS else 0) if guard else 3 + NAMES.index(name) % 7]
        panel.plot(  # type: ignore[attr-defined]
            sizes, values, label=name, color=colour, marker="o" if guard else ".", linewidth=2.2 if guard else 1.0,
            linestyle="-" if guard else "--",
        )  # fmt: skip
    panel.set_xscale("log")  # type: ignore[attr-defined]
    ticks = [one.cell.magnitude for one in cells]
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])  # type: ignore[attr-defined]
    panel.minorticks_off()  # type: ignore[attr-defined]
    if what == "power":
        panel.set_ylabel("share found in 5 h")  # type: ignore[attr-defined]
        panel.set_ylim(-0.03, 1.05)  # type: ignore[attr-defined]
    else:
        panel.set_ylabel("median delay, minutes")  # type: ignore[attr-defined]
        panel.set_yscale("log")  # type: ignore[attr-defined]


_GUARDS = ("guard agreement", "guard harm", "guard calibration")  # the others are alone in their panel


def _minutes(delays: Delays) -> float:
    return max(delays.median, 0.6) / 60.0 if math.isfinite(delays.median) else math.nan
