"""A Pareto plot as SVG: latency across, accuracy up, size as area. No library: the file must be the same each time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 760, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 24, 56, 56
_INK, _FAINT, _GRID = "#1f2933", "#616e7c", "#e4e7eb"
_FILL, _FRONT, _HOLLOW = "#2563a8", "#c2410c", "#7b8794"
_FONT = "font-family=\"ui-sans-serif, system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\""


class Point(NamedTuple):
    """One model: `low` and `high` bound its accuracy; `tried` draws it hollow and without a name."""

    name: str
    milliseconds: float
    accuracy: float
    low: float
    high: float
    bytes: int
    front: bool = False
    tried: bool = False


def pareto(title: str, points: Sequence[Point]) -> str:
    """The plot. Latency is on a logarithmic axis; the line joins the points of the front.

    Args:
        points: at least one; `milliseconds` above 0.
    """
    across = _log_axis([point.milliseconds for point in points])
    up = _linear_axis([value for point in points for value in (point.low, point.high)])
    largest = max(point.bytes for point in points)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img" {_FONT}>',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, 28, title, 15, _INK, weight="600"),
        *_axes(across, up),
    ]
    line = sorted((point for point in points if point.front), key=lambda point: point.milliseconds)
    if len(line) > 1:
        path = " ".join(f"{_x(point.milliseconds, across):.1f},{_y(point.accuracy, up):.1f}" for point in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{_FRONT}" stroke-dasharray="5 4" opacity="0.6"/>')
    taken: list[tuple[float, float, float, float]] = []
    for point in sorted(points, key=lambda point: (not point.tried, -point.bytes)):
        parts += _mark(point, across, up, largest)
    for point in sorted((point for point in points if not point.tried), key=lambda point: -point.accuracy):
        parts.append(_name(point, across, up, largest, taken))
    return "\n".join([*parts, *_legend(any(point.tried for point in points)), "</svg>"]) + "\n"


Axis = tuple[float, float, list[float]]


def _log_axis(values: Sequence[float]) -> Axis:
    low, high = math.log10(min(values)), math.log10(max(values))
    pad = max(0.12 * (high - low), 0.2)
    low, high = low - pad, high + pad
    ticks = [
        factor * 10.0**power
        for power in range(math.floor(low), math.ceil(high) + 1)
        for factor in (1, 2, 5)
        if low <= math.log10(factor * 10.0**power) <= high
    ]
    return low, high, ticks


def _linear_axis(values: Sequence[float]) -> Axis:
    low, high = min(values), min(1.0, max(values))
    pad = max(0.08 * (high - low), 0.005)
    low, high = max(0.0, low - pad), min(1.0 + pad / 2, high + pad)
    raw = (high - low) / 5
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * factor for factor in (1, 2, 5, 10) if base * factor >= raw)
    first = math.ceil(low / step)
    ticks = [round(number * step, 10) for number in range(first, math.floor(min(high, 1.0) / step) + 1)]
    return low, high, ticks


def _x(milliseconds: float, axis: Axis) -> float:
    low, high, _ = axis
    return _LEFT + (math.log10(milliseconds) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)


def _y(accuracy: float, axis: Axis) -> float:
    low, high, _ = axis
    return _HEIGHT - _BOTTOM - (accuracy - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)


def _radius(size: int, largest: int) -> float:
    return 4 + 14 * math.sqrt(size / largest)


def _text(x: float, y: float, text: str, size: int, colour: str, anchor: str = "start", weight: str = "400") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )


def _axes(across: Axis, up: Axis) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick in up[2]:
        y = _y(tick, up)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{_GRID}"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{tick:g}", 11, _FAINT, "end"))
    for tick in across[2]:
        x = _x(tick, across)
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="{_GRID}"/>')
        parts.append(_text(x, bottom + 16, f"{tick:g}", 11, _FAINT, "middle"))
    middle = (_LEFT + right) / 2
    parts.append(_text(middle, _HEIGHT - 14, "one row, median, one thread (ms, logarithmic)", 12, _INK, "middle"))
    x, y = 18, (_TOP + bottom) / 2
    parts.append(f'<g transform="rotate(-90 {x} {y:.1f})">{_text(x, y, "accuracy", 12, _INK, "middle")}</g>')
    return parts


def _mark(point: Point, across: Axis, up: Axis, largest: int) -> list[str]:
    x, y, radius = _x(point.milliseconds, across), _y(point.accuracy, up), _radius(point.bytes, largest)
    if point.tried:
        return [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="none" stroke="{_HOLLOW}" stroke-width="1.5"/>']
    colour = _FRONT if point.front else _FILL
    low, high = _y(point.low, up), _y(min(point.high, 1.0), up)
    return [
        f'<line x1="{x:.1f}" y1="{low:.1f}" x2="{x:.1f}" y2="{high:.1f}" stroke="{colour}" opacity="0.45"/>',
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}" fill-opacity="0.3" stroke="{colour}"/>',
    ]


def _name(point: Point, across: Axis, up: Axis, largest: int, taken: list[tuple[float, float, float, float]]) -> str:
    """The point's name beside it, moved down until it covers no name written before."""
    x, y, radius = _x(point.milliseconds, across), _y(point.accuracy, up), _radius(point.bytes, largest)
    label = f"{point.name} · {_megabytes(point.bytes)}"
    width = 6.4 * len(label)
    left = x + radius + 5
    if left + width > _WIDTH - _RIGHT:
        left = x - radius - 5 - width
    top = y - 6
    while any(left < b and a < left + width and top < d and c < top + 14 for a, c, b, d in taken):
        top += 14
    taken.append((left, top, left + width, top + 14))
    halo = _text(left, top + 11, label, 12, "white").replace("<text ", '<text stroke="white" stroke-width="4" ', 1)
    return halo + _text(left, top + 11, label, 12, _INK)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _legend(tried: bool) -> list[str]:
    items = [(_FRONT, "on the Pareto front", False), (_FILL, "beaten by another", False)]
    if tried:
        items.append((_HOLLOW, "only tried (validation split)", True))
    parts, x = [], float(_LEFT)
    for colour, label, hollow in items:
        fill = "none" if hollow else colour
        parts.append(
            f'<circle cx="{x + 5:.1f}" cy="42" r="4.5" fill="{fill}" fill-opacity="0.3" stroke="{colour}" '
            f'stroke-width="1.5"/>'
        )
        parts.append(_text(x + 15, 46, label, 11, _FAINT))
        x += 30 + 6 * len(label)
    parts.append(_text(_WIDTH - _RIGHT, 46, "area: size; bars: 95 % intervals", 11, _FAINT, "end"))
    return parts
