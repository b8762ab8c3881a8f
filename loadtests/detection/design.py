"""Which simulations are made: not every combination, but one factor at a time around a default, and a few corners.

The default is `Setting()`: 10 requests/s, a quarter of them the candidate's, a tenth of its answers scored again, a
tenth of those labelled after an hour, nothing lost; bad from its first answer on, five hours to find it. Harms and
their sizes are all measured there, with every comparator. Traffic, reference share, labels, loss and onset vary one at
a time, for a harm of middle size of each guard that they matter to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from loadtests.detection.family import SATURATIONS, SCALES, TEMPERATURES
from loadtests.detection.streams import LATER, RAMP, STEP, TRANSIENT, Harm, Onset, Setting

#: Chance of a false alarm over the whole stream that every comparator is calibrated to, and that each guard is given.
CHANCE = 0.01
DEFAULT = Setting()
#: Multiples of what is tolerated; the aim is stated at one of them.
HARMS, AIMED = (1.5, 2.0, 4.0), 2.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One harm of one size under one setting.

    Attributes:
        harm: its name; cells of one name make one curve over `magnitude`.
        size: how large, in words.
        kind: what is watched, see `columns.py`: answers | certainty | errors | latency | invalid.
        guards: the guards meant for it, the most direct one first.
        factor: what differs from the default, in words; "" for the default.
        compare: whether the comparators run too; only on streams as long as those that they are calibrated on.
    """

    harm: str
    size: str
    magnitude: float
    what: Harm
    kind: str
    guards: tuple[str, ...]
    onset: Onset = STEP
    setting: Setting = DEFAULT
    factor: str = ""
    compare: bool = True


#: Healthy streams of each kind, on which thresholds are calibrated.
HEALTHY_CELLS = {
    kind: Cell("nothing", "", 0.0, Harm(), kind, guards)
    for kind, guards in {
        "answers": ("agreement", "harm", "calibration"),
        "certainty": ("calibration",),
        "errors": ("errors",),
        "latency": ("latency",),
        "invalid": ("invalid_output",),
    }.items()
}

_ANSWERS = ("agreement", "harm", "calibration")
_CERTAINTY = ("calibration", "agreement", "harm")
FLIPS = tuple(
    Cell("flips", f"+{points} points", points, Harm(flips=points / 100), "answers", _ANSWERS)
    for points in (1, 2, 5, 10)
)
SHARP = tuple(
    Cell("temperature", f"× {by:g}", by, Harm(f"temperature {by:g}"), "certainty", _CERTAINTY) for by in TEMPERATURES
)
SCALE = tuple(
    Cell("INT8 scale", f"× {by:g}, a quarter of the channels", by, Harm(f"scale ×{by:g}"), "answers", _ANSWERS)
    for by in SCALES
)
SATURATED = tuple(
    Cell("saturated layer", f"range ÷ {by:g}", by, Harm(f"saturated ×{by:g}"), "certainty", ("saturation", *_CERTAINTY))
    for by in SATURATIONS
)
CACHE = (
    Cell(
        "calibration cache", "of another pre-processing", 1.0, Harm("wrong cache"), "answers", (*_ANSWERS, "saturation")
    ),
)
SLICE = (
    Cell(
        "one slice", "shortest tenth of the mails", 1.0, Harm(f"scale ×{SCALES[-1]:g}", short_only=True),
        "answers", ("slices", *_ANSWERS),
    ),
)  # fmt: skip
ERRORS = tuple(
    Cell("errors", f"{percent:g} %", percent, Harm(errors=percent / 100), "errors", ("errors",))
    for percent in (0.5, 1, 2, 5)
)
SLOW = tuple(
    Cell("latency", f"p99 × {by:g}", by, Harm(slower=by), "latency", ("latency",)) for by in (1.5, 2, 4)
)  # fmt: skip
INVALID = tuple(
    Cell("NaN", f"{percent:g} %", percent, Harm(invalid=percent / 100), "invalid", ("invalid_output",))
    for percent in (0.1, 1, 10)
)
DEFAULTS = (*FLIPS, *SHARP, *SCALE, *SATURATED, *CACHE, *SLICE, *ERRORS, *SLOW, *INVALID)

#: Middle-sized harms that the other factors are tried on.
_FLIPS, _ERRORS, _LABELLED = FLIPS[2], ERRORS[1], replace(FLIPS[3], guards=("harm",))


def _vary(cell: Cell, factor: str, onset: Onset = STEP, **setting: float) -> Cell:
    return replace(cell, factor=factor, onset=onset, setting=replace(DEFAULT, **setting), compare=False)


FACTORS = (
    # Ten times less traffic takes ten times as long: the stream is longer, so that it can be seen.
    *(_vary(cell, "1 request/s", rate=1.0, hours=40.0) for cell in (_FLIPS, _ERRORS)),
    *(_vary(cell, "100 requests/s", rate=100.0, hours=0.4) for cell in (_FLIPS, _ERRORS)),
    _vary(_FLIPS, "reference 0.5 %", reference=0.005, hours=40.0),
    _vary(_FLIPS, "reference 2 %", reference=0.02, hours=20.0),
    _vary(_LABELLED, "labels 10 % after 1 h", hours=20.0),
    _vary(_LABELLED, "labels 0 %", labels=0.0),
    _vary(_LABELLED, "labels 1 % after 1 h", labels=0.01, hours=80.0),
    _vary(_LABELLED, "labels 10 % at once", label_delay_s=0.0, hours=20.0),
    _vary(_LABELLED, "labels 10 % after 24 h", label_delay_s=86_400.0, hours=48.0),
    *(_vary(cell, "1 % of the records lost", loss=0.01) for cell in (_FLIPS, _ERRORS)),
    *(_vary(cell, "20 % of the records lost", loss=0.2) for cell in (_FLIPS, _ERRORS)),
    *(_vary(cell, "ramp over an hour", RAMP) for cell in (_FLIPS, _ERRORS, SLOW[2])),
    *(_vary(cell, "transient, 20 minutes", TRANSIENT) for cell in (_FLIPS, _ERRORS, SLOW[2])),
    # As long as the others, so that the comparators can be asked too.
    *(
        replace(cell, factor="after an hour of health", onset=LATER, setting=replace(DEFAULT, hours=4.0))
        for cell in (_FLIPS, _ERRORS, SLOW[2])
    ),
    # Corners: everything scarce, and everything plentiful.
    _vary(_FLIPS, "1 request/s, reference 2 %, 20 % lost", rate=1.0, reference=0.02, loss=0.2, hours=200.0),
    _vary(_FLIPS, "100 requests/s, reference 10 %, nothing lost, ramp", RAMP, rate=100.0, hours=1.0),
)


@dataclass(frozen=True, slots=True)
class Size:
    """How many runs: of each healthy stream, of each cell, of each null with so many `requests`, of each bound.

    `harms`: multiples of what is tolerated at which delays are set beside their bounds. `judged`: whether the guards
    are asked about the healthy streams too, which takes as long as several cells.
    """

    healthy: int
    runs: int
    nulls: int
    requests: int
    bounds: int
    harms: tuple[float, ...]
    judged: bool
    cells: tuple[Cell, ...]
    seed: int = 1


FULL = Size(
    healthy=150, runs=30, nulls=1000, requests=3000, bounds=1000, harms=HARMS, judged=True, cells=(*DEFAULTS, *FACTORS)
)
_QUICK_CELLS = (FLIPS[2], FLIPS[3], SHARP[2], SCALE[2], CACHE[0], ERRORS[1], ERRORS[3], SLOW[2], INVALID[1])
QUICK = Size(healthy=30, runs=8, nulls=800, requests=600, bounds=600, harms=(AIMED,), judged=False, cells=_QUICK_CELLS)
