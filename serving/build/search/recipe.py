"""What a recipe may search over. Everything is chosen on the validation split and reported on test."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from serving.build.recipe import Count, Positive, Section, Share

Ranges = Literal["minmax", "entropy", "percentile-99.9", "percentile-99.99", "percentile-99.999"]
Format = Literal["dynamic-int8", "fp16", "torch", "torch-bf16", "torch-compile", "torchao-int8"]


class QuantizeSearch(Section):
    """Settings of static INT8, tried in every combination up to `candidates`."""

    ranges: Annotated[tuple[Ranges, ...], Field(min_length=1)] = ("minmax", "percentile-99.99", "entropy")
    per_channel: Annotated[tuple[bool, ...], Field(min_length=1)] = (True,)
    #: How many of the layers that suffer most from rounding stay in float.
    float_layers: Annotated[tuple[Annotated[int, Field(ge=0, le=64)], ...], Field(min_length=1)] = (0,)

    def settings(self) -> list[dict[str, Any]]:
        """Every combination: `name`, `float_layers`, and what it sets in a `QuantizeRecipe`."""
        found = []
        for ranges in self.ranges:
            method, _, percentile = ranges.partition("-")
            for per_channel in self.per_channel:
                for layers in self.float_layers:
                    name = ranges + ("" if per_channel else "-per-tensor") + (f"-float-{layers}" if layers else "")
                    found.append(
                        {
                            "name": name,
                            "float_layers": layers,
                            "quantize": {"ranges": method, "per_channel": per_channel}
                            | ({"percentile": float(percentile)} if percentile else {}),
                        }
                    )
        return found


class StudentSearch(Section):
    """Settings of the student, tried in every combination up to `candidates`.

    Each size is trained by the labels alone as well (cross-entropy only), from the same seeds: the control.
    """

    temperature: Annotated[tuple[Positive, ...], Field(min_length=1)] = (2.0,)
    alpha: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.5,)
    #: Sizes; the student's own if none are given.
    width: tuple[Count, ...] = ()
    hidden: tuple[Count, ...] = ()
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (1, 2)

    def settings(self, width: int, hidden: int) -> list[dict[str, Any]]:
        """Every combination: `name`, and what it sets in a student's recipe. `width` and `hidden`: of the recipe."""
        return [
            {
                "name": f"t{temperature:g}-a{alpha:g}-w{wide}-h{inner}",
                "student": {"temperature": temperature, "alpha": alpha, "width": wide, "hidden": inner},
            }
            for wide in self.width or (width,)
            for inner in self.hidden or (hidden,)
            for temperature in self.temperature
            for alpha in self.alpha
        ]


class SearchRecipe(Section):
    """The search of a recipe.

    `candidates` bounds the settings: of more, the first and a random sample are tried. `prefer` decides between those
    that meet the requirements: `fidelity` takes the one nearest to the model it stands in for, `size` and `speed` the
    smallest or fastest of those as accurate as the most accurate up to one standard error. Speed is measured, so that
    `speed` may choose otherwise on another machine. `formats` are measured beside them, not registered.
    """

    candidates: Annotated[int, Field(ge=1, le=200)] = 12
    prefer: Literal["fidelity", "size", "speed"] = "fidelity"
    quantize: QuantizeSearch | None = None
    students: StudentSearch | None = None
    formats: tuple[Format, ...] = ()
